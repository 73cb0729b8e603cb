"""The hooks' logs: lines that belong to their run, live, whole, and never in a job's way."""

import os

import pytest

from watchties import hooklog, runs
from watchties.hooklog import HookLog

JOB = {"tree": "main", "job": "u/E", "dir": "/m/u/E", "marker": "DONE", "attempt": 1}


@pytest.fixture
def site(tmp_path):
    dirs = runs.RunDirs(str(tmp_path))
    return dirs, HookLog(str(tmp_path / "log"), keep=3600)


def prepare(dirs, *jobs):
    return dirs.prepare(dirs.new_id("push"), "push", "vision", "0", [JOB | {"job": j} for j in jobs], 60, "/hooks/push")


def say(run, text, name="out"):
    with open(run.path(name), "a") as file:
        file.write(text)


def texts(log):
    with open(log.path("push")) as file:
        return [line.rstrip("\n").split(" ", 3)[2:] for line in file]


def test_two_runs_at_once_stay_readable(site):
    dirs, log = site
    one, two = prepare(dirs, "u/A"), prepare(dirs, "u/B")
    log.begin(one), log.begin(two)
    say(one, "half a "), say(two, "from two\n")
    log.feed(one), log.feed(two)
    say(one, "line\n")
    log.feed(one)
    log.end(dirs.collect(two, 0)), log.end(dirs.collect(one, 75))
    mine = [text for label, text in texts(log) if label == one.id]
    assert mine[0].startswith("start host=vision jobs=1: main:u/A") and mine[1] == "half a line"
    assert mine[2].startswith("job main:u/A retry") and mine[3].startswith("end host=vision retry=1 exit=75 seconds=")


def test_standard_error_and_a_last_line_without_an_end_are_kept(site):
    dirs, log = site
    run = prepare(dirs, "u/A")
    say(run, "no newline", "err")
    log.feed(run)
    log.end(dirs.collect(run, 1))
    assert ["job main:u/A failed: no newline", "no newline"] == sorted(t for _, t in texts(log) if "newline" in t)


def test_control_characters_do_not_reach_a_terminal(site):
    dirs, log = site
    run = prepare(dirs, "u/A")
    say(run, "\x1b[2Jgone\n")
    log.end(dirs.collect(run, 0))
    assert not any("\x1b" in text for _, text in texts(log))


def test_a_large_log_is_renamed_away_and_an_old_one_goes(site, monkeypatch):
    dirs, log = site
    monkeypatch.setattr(hooklog, "ROTATE_AT", 100)
    log.write("push", "x", ["y" * 200])
    (old,) = os.listdir(log.folder)
    assert old.startswith("push.log.")
    log.write("push", "x", ["after"])
    assert texts(log) == [["x", "after"]]
    os.utime(os.path.join(log.folder, old), (1, 1))
    log.prune()
    assert os.listdir(log.folder) == ["push.log"]


def test_a_log_that_cannot_be_written_stops_nothing(site, tmp_path):
    _, log = site
    os.mkdir(log.path("push"))
    log.write("push", "x", ["lost"])


def test_of_a_hook_that_has_run_wild_the_end_is_kept(site, monkeypatch):
    """All of it would fill the memory of the daemon, and of the next one, which reads it again."""
    dirs, log = site
    monkeypatch.setattr(hooklog, "AT_ONCE", 100)
    run = prepare(dirs, "u/E")
    say(run, "y" * 50 + "\n" + "z\n" * 1000 + "the end\n")
    log.feed(run)
    lines = [text for _, text in texts(log)]
    assert "(1959 bytes of out are left out here)" in lines[0] and lines[-1] == "the end" and len(lines) < 60
    say(run, "and more\n")
    log.end(dirs.collect(run, 0))
    assert "and more" in [text for _, text in texts(log)]


def test_a_log_that_goes_while_old_ones_are_removed_stops_nothing(site):
    _, log = site
    os.rmdir(log.folder)
    log.prune()
