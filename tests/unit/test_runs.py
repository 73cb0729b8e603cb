"""What a run leaves on disk, and how it is read, also by a daemon that did not start it."""

import asyncio
import fcntl
import json
import os

import pytest

from watchties import runs
from watchties.errors import AGAIN, UserError
from watchties.model import JobId, Outcome
from watchties.runner import Runner

JOBS = [{"tree": "main", "job": f"u/E {n}", "dir": f"/m/u/E {n}", "marker": "DONE", "attempt": 1} for n in range(3)]


@pytest.fixture
def dirs(tmp_path):
    return runs.RunDirs(str(tmp_path))


def prepare(dirs, jobs=JOBS):
    return dirs.prepare(dirs.new_id("push"), "push", "vision", "0", jobs, 60, "/hooks/push")


def write_results(run, *lines):
    with open(run.path("result"), "w") as file:
        file.writelines(line + "\n" for line in lines)


def result(job, outcome, **more):
    return json.dumps({"tree": "main", "job": job, "outcome": outcome, **more})


def test_a_line_decides_for_its_job_and_the_exit_code_for_the_rest(dirs):
    run = prepare(dirs)
    write_results(run, result("u/E 0", "retry", reason="not now"), result("u/E 1", "done", fields={"exit": "0"}))
    with open(run.path("err"), "w") as file:
        file.write("first\nall is lost\n")
    ended = dirs.collect(run, 1)
    assert ended.outcome(JobId("main", "u/E 0")) == Outcome("retry", "not now")
    assert ended.outcome(JobId("main", "u/E 1")) == Outcome("done", "", {"exit": "0"})
    assert ended.outcome(JobId("main", "u/E 2")) == Outcome("failed", "all is lost")


@pytest.mark.parametrize("code, outcome", [(0, "done"), (75, "retry"), (1, "failed"), (126, "failed"), (-9, "retry")])
def test_exit_codes(dirs, code, outcome):
    assert dirs.collect(prepare(dirs), code).outcome(JobId("main", "u/E 0")).outcome == outcome


def test_what_an_unseen_run_did_not_settle_is_undecided(dirs):
    run = prepare(dirs)
    write_results(run, result("u/E 0", "done"))
    (again,) = dirs.left_over()
    ended = dirs.collect(again, None)
    assert ended.outcome(JobId("main", "u/E 0")) == Outcome("done")
    assert ended.outcome(JobId("main", "u/E 1")) is None


def test_torn_lines_strangers_and_junk_decide_nothing(dirs):
    run = prepare(dirs)
    lines = ["", "null", "[1]", '{"job": 3}', result("u/E 9", "done"), result("u/E 0", "perhaps"), result("u/E 1", "done")[:-4]]
    write_results(run, *lines)
    assert runs.read_results(run.path("result"), JOBS) == {}


def test_the_last_line_for_a_job_counts(dirs):
    run = prepare(dirs)
    write_results(run, result("u/E 0", "retry"), result("u/E 0", "done"))
    assert runs.read_results(run.path("result"), JOBS)[JobId("main", "u/E 0")].outcome == "done"


def test_a_lock_that_somebody_holds_is_not_free(dirs):
    run = prepare(dirs)
    assert dirs.is_free(run.lock)
    with open(run.lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not dirs.is_free(run.lock)
    assert dirs.is_free(run.lock)


def test_a_directory_that_was_never_finished_goes(dirs, tmp_path):
    os.mkdir(tmp_path / "runs" / "push-1")
    assert dirs.left_over() == [] and os.listdir(tmp_path / "runs") == []


def test_a_run_that_cannot_be_read_now_stays(dirs, tmp_path):
    run = prepare(dirs)
    os.rename(run.path("jobs"), run.path("away"))
    os.mkdir(run.path("jobs"))  # any error but that it is not there
    with pytest.raises(IsADirectoryError):
        dirs.left_over()
    os.rmdir(run.path("jobs"))
    os.rename(run.path("away"), run.path("jobs"))
    assert [one.id for one in dirs.left_over()] == [run.id]


def test_hooks_of_the_user_come_first_and_must_be_executable(tmp_path):
    for name in "own", "ours":
        (tmp_path / name).mkdir()
        (tmp_path / name / "push").write_text("#!/bin/sh\n")
    folders = [str(tmp_path / "own"), str(tmp_path / "ours")]
    with pytest.raises(UserError, match="chmod"):
        runs.find_hook("push", folders)
    os.chmod(tmp_path / "own" / "push", 0o755)
    assert runs.find_hook("push", folders) == str(tmp_path / "own" / "push")
    with pytest.raises(UserError, match="is not in"):
        runs.find_hook("pull", folders)


def test_a_result_that_is_nested_without_end_decides_nothing(dirs):
    run = prepare(dirs)
    write_results(run, "[" * 200_000, '{"job": "u/E 1", "outcome": "done", "fields": ' + '{"a":' * 200_000, result("u/E 0", "done"))
    assert list(dirs.collect(run, None).settled) == [JobId("main", "u/E 0")]


def test_a_hook_that_an_upgrade_has_taken_away_for_a_moment_is_asked_again(dirs, tmp_path):
    run = dirs.prepare("push-1", "push", "vision", "0", [], 60.0, str(tmp_path / "gone"))
    ended = asyncio.run(Runner(dirs, "/config", {}).run(run))
    assert ended.code == AGAIN and "cannot be started: No such file" in ended.reason


def test_a_run_has_room_for_what_its_hook_says_before_the_hook_begins(tmp_path):
    run = runs.RunDirs(str(tmp_path)).prepare("pull-1", "pull", "web", "0", [], 60, "/hook")
    assert all(os.path.exists(run.path(name)) for name in ("result", "out", "err")), "or a disk without inodes makes it fail for good"
