"""status, explain, requeue, cancel, logs, run-hook, rebuild on jobs that a real daemon has carried through three trees."""

import json
import os
import pathlib
import subprocess
import time

import pytest
from helpers import wait_for
from click.testing import CliRunner

from watchties import markers, record, recordfile
from watchties.cli import main
from watchties.demo import Demo

ENVIRONMENT_HOOK = """#!/bin/sh
env | grep ^WATCHTIES_ | sort
cat "$WATCHTIES_JOBS"
echo odd >&2
[ -e /proc/self/fd/$WATCHTIES_LOCK_FD ] && exit 7
"""
SLOW = "#!/bin/sh\nsleep 60\n"


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not come about in time")


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """Three jobs that have gone the whole way; the daemon has ended."""
    work = Demo(str(tmp_path_factory.mktemp("carried") / "d"), 3)
    work.prepare()
    work.start()
    try:
        work.drop()
        until(lambda: all(way.ended for way in work.look()))
    finally:
        work.stop()
    assert work.lacking(work.look()) == []
    return work


def call(work, *args):
    shown = CliRunner().invoke(main, ["--config", work.conf, "--state", work.state, *map(str, args)])
    assert shown.exception is None or isinstance(shown.exception, SystemExit), (shown.output, shown.exception)
    return shown


def facts(work, command, job):
    return json.loads(call(work, command, job, "--json").stdout)


def listed(work):
    return json.loads(call(work, "status", "--json").stdout)["jobs"]


ODD = 'zoë o\'neil/Exp 2, "closeness"; $(second try)'


def test_status_of_one_job(carried):
    for job in ("ann/Exp_1", ODD, f"demo:{ODD}", os.path.join(carried.mirror, ODD)):
        shown = call(carried, "status", job)
        assert shown.exit_code == 0, shown.output
        assert "DONE" in shown.output and "mail@DONE done" in shown.output and "fetch" in shown.output
    told = facts(carried, "status", ODD)
    assert told["job"] == f"demo:{ODD}" and told["state"] == "DONE" and told["attempt"] == 1 and told["host"] == "b01"
    assert [row["marker"] for row in told["markers"]] == ["DONE"] and told["markers"][0]["fields"]["exit"] == "0"
    assert {event["event"] for event in told["history"]} >= {"PENDING", "SUBMITTED", "DONE"}


def test_explain_of_a_job_at_rest(carried):
    shown = call(carried, "explain", "bob/Exp_3_again")
    assert shown.exit_code == 0 and "nothing: everything that was asked for has ended" in shown.output
    assert "vision" in shown.output.partition("not seen from here")[2]
    told = facts(carried, "explain", "bob/Exp_3_again")
    assert told["next"] == [] and os.path.exists(told["record_file"])


def test_logs_of_one_job_hold_no_other_outcome(carried):
    lines = call(carried, "logs", ODD).output.splitlines()
    assert all(any(f" {rule}-" in line for line in lines) for rule in ("pull", "submit", "report", "fetch", "push", "mail"))
    assert not any(" job demo:ann/Exp_1 " in line for line in lines)
    assert lines == sorted(lines, key=lambda line: line[:23])


def test_logs_of_a_hook_of_the_daemon_and_of_all(carried):
    assert {line.split()[2].split("-")[0] for line in call(carried, "logs", "--hook", "push").output.splitlines()} == {"push"}
    assert "is at work" in call(carried, "logs", "--daemon").output
    assert len(call(carried, "logs", "-n", "4").output.splitlines()) == 4
    assert call(carried, "logs", "-n", "0").output == ""
    unknown = call(carried, "logs", "--hook", "pusch")
    assert unknown.exit_code == 2 and "push" in unknown.output
    assert call(carried, "logs", "--hook", "push", "--daemon").exit_code == 2


def test_run_hook_shows_what_the_hook_says_and_records_nothing(carried):
    path = pathlib.Path(carried.mirror, ODD, ".watchties", "record.json")
    before = path.read_bytes()
    # not through CliRunner: the hook writes to the real standard output
    done = subprocess.run(carried.words("run-hook", "mail", ODD), capture_output=True, text=True)
    assert done.returncode == 0 and "it told: done: written to" in done.stdout and "zoe@example.org" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(os.path.join(carried.state, "runs")) == [] and os.listdir(os.path.join(carried.state, "by-hand")) == []


def test_what_a_run_by_hand_that_was_killed_has_left_is_removed_by_the_next_when_its_hook_has_ended(carried):
    by_hand = pathlib.Path(carried.state, "by-hand")
    hook, rules = own_hook(carried, "#!/bin/sh\ntouch begun\nwhile ! [ -e go ]; do sleep 0.05; done\n")
    again = lambda: subprocess.run(carried.words("run-hook", "mail", ODD), capture_output=True, check=True)  # noqa: E731
    try:
        process = subprocess.Popen(carried.words("run-hook", "plots", ODD), stdout=subprocess.DEVNULL)
        wait_for(lambda: list(by_hand.glob("*/runs/*/begun")))
        process.kill()
        process.wait()
        again()
        (left,) = by_hand.glob("*/runs/*")  # its hook goes on there
        (left / "go").touch()
        wait_for(lambda: again() and not list(by_hand.iterdir()), every=0.2)
    finally:
        os.unlink(rules)
        os.unlink(hook)


def own_hook(work, text):
    path = work.at("hooks", "plots")
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755)
    rules = os.path.join(work.conf, "60-own.toml")
    with open(rules, "w") as file:
        file.write('[[rule]]\nname = "plots"\non = ["mirror:DONE"]\nafter = ["push"]\n')
    return path, rules


def test_run_hook_has_the_environment_of_the_contract_and_the_exit_code_of_the_hook(carried):
    hook, rules = own_hook(carried, ENVIRONMENT_HOOK)
    try:
        done = subprocess.run(carried.words("run-hook", "plots", ODD), capture_output=True, text=True)
    finally:
        os.unlink(rules)
        os.unlink(hook)
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("WATCHTIES_"))
    assert done.returncode == 7 and "odd" in done.stderr and "exit code: 7" in done.stdout
    assert said["WATCHTIES_RULE"] == "plots" and said["WATCHTIES_JOB"] == ODD and said["WATCHTIES_MARKER"] == "DONE"
    assert said["WATCHTIES_JOB_DIR"] == os.path.join(carried.mirror, ODD) and said["WATCHTIES_ATTEMPT"] == "1"
    assert json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["token"]


def test_run_hook_refuses_what_makes_no_sense(carried):
    assert 'did you mean "push"' in call(carried, "run-hook", "pusch", ODD).output
    assert call(carried, "run-hook", "push", ODD, "--host", "nosuch").exit_code == 2
    assert call(carried, "run-hook", "push", "ann/nosuch").exit_code == 2
    os.makedirs(os.path.join(carried.mirror, "eve/new"))
    for rule, job, why in ("notice", ODD, "is for no job"), ("fetch", "eve/new", "touch PENDING"), ("mail", "eve/new", "touch PENDING"):
        shown = call(carried, "run-hook", rule, job)
        assert shown.exit_code == 2 and why in shown.output, (rule, shown.output)
    os.removedirs(os.path.join(carried.mirror, "eve/new"))


def test_cancel_of_a_job_that_has_ended_or_never_began_is_refused(carried):
    shown = call(carried, "cancel", "ann/Exp_1")
    assert shown.exit_code == 2 and "it is DONE already" in shown.output
    os.makedirs(os.path.join(carried.mirror, "eve/new"))
    shown = call(carried, "cancel", "eve/new")
    assert shown.exit_code == 2 and "nothing was ever asked for" in shown.output
    os.removedirs(os.path.join(carried.mirror, "eve/new"))
    assert not any("CANCEL" in names for _, _, names in os.walk(carried.mirror))


def test_nothing_is_asked_for_if_one_name_is_wrong(carried):
    shown = call(carried, "requeue", "ann/Exp_1", "ann/nosuch")
    assert shown.exit_code == 2 and not markers.look(os.path.join(carried.mirror, "ann/Exp_1")).markers.get("PENDING")


def test_a_job_directory_that_is_a_link_is_refused(carried, tmp_path):
    link = os.path.join(carried.mirror, "ann/link")
    os.symlink(tmp_path, link)
    try:
        for command in ("requeue", "cancel", "explain"):
            shown = call(carried, command, "ann/link")
            assert shown.exit_code == 1 and "is a symbolic link" in shown.output
    finally:
        os.unlink(link)
    assert os.listdir(tmp_path) == []


def test_explain_of_a_damaged_record_is_an_error_in_one_line(carried):
    path = os.path.join(carried.mirror, "ann/Exp_1", ".watchties", "record.json")
    with open(path) as file:
        whole = file.read()
    try:
        with open(path, "w") as file:
            file.write(whole[:20])
        shown = call(carried, "explain", "ann/Exp_1")
        assert shown.exit_code == 1 and "is damaged" in shown.output and len(shown.output.splitlines()) == 1
    finally:
        with open(path, "w") as file:
            file.write(whole)


def test_rebuild_makes_the_same_index_from_the_disk(carried):
    before = json.loads(call(carried, "status", "--all", "--json").stdout)["jobs"]
    for tail in ("", "-wal", "-shm"):
        if os.path.exists(f"{carried.state}/journal.sqlite{tail}"):
            os.unlink(f"{carried.state}/journal.sqlite{tail}")
    assert call(carried, "status").exit_code == 2
    shown = call(carried, "rebuild")
    assert shown.exit_code == 0 and "3 jobs found in 1 mirror" in shown.output
    after = json.loads(call(carried, "status", "--all", "--json").stdout)["jobs"]
    keep = ("tree", "job", "state", "attempt", "host")
    assert sorted([row[k] for k in keep] for row in after) == sorted([row[k] for k in keep] for row in before)


# ---- with a daemon at work; these come last, as they change the jobs ----


def test_explain_before_and_after_a_requeue_without_a_daemon(carried):
    shown = call(carried, "requeue", "bob/Exp_3_again")
    assert shown.exit_code == 0 and "no daemon is at work here" in shown.output
    told = facts(carried, "explain", "bob/Exp_3_again")["next"]
    assert [(step["action"], step["what"]) for step in told] == [("daemon", "accept PENDING")]
    assert "would" not in told[0]["reason"] and "PENDING stands in the mirror" in told[0]["reason"]


@pytest.fixture
def at_work(carried):
    carried.start()
    yield carried
    carried.stop()


def test_requeue_runs_a_job_once_more_and_cancel_stops_it(at_work):
    before = facts(at_work, "status", "bob/Exp_3_again")["attempt"]
    assert call(at_work, "requeue", "bob/Exp_3_again").exit_code == 0
    until(lambda: (told := facts(at_work, "status", "bob/Exp_3_again"))["attempt"] > before and told["state"] == "DONE")
    job = os.path.join(at_work.mirror, ODD)
    with open(os.path.join(job, "command"), "w") as file:
        file.write(SLOW)
    assert call(at_work, "requeue", ODD).exit_code == 0
    until(lambda: facts(at_work, "status", ODD)["state"] == "SUBMITTED")
    until(lambda: any(row["job"] == ODD and row["attempt"] == 2 and row["waiting_on"] for row in listed(at_work)))
    assert call(at_work, "cancel", ODD).exit_code == 0
    asked = time.monotonic()
    until(lambda: recordfile.load(job).phase == "FAILED")
    assert time.monotonic() - asked < 20 and recordfile.load(job).fields["cause"] == "cancelled"
    until(lambda: markers.look(os.path.join(at_work.web, ODD)).markers.get("FAILED"))


def test_submit_by_hand_is_refused_before_the_daemon_has_chosen_a_host(carried):
    where = os.path.join(carried.mirror, "ann/Exp_1")
    rec = record.accept(recordfile.load(where), record.Request("mirror", "PENDING", 1), "f" * 12)
    before = recordfile.dumps(recordfile.load(where))
    path = os.path.join(where, ".watchties", "record.json")
    try:
        with open(path, "wb") as file:
            file.write(recordfile.dumps(rec))
        shown = call(carried, "run-hook", "submit", "ann/Exp_1")
        assert shown.exit_code == 2 and "has not been given to a host yet" in shown.output
        shown = call(carried, "run-hook", "mail", "ann/Exp_1")
        assert shown.exit_code == 2 and "is PENDING: mail is for jobs that have ended" in shown.output
        assert any(n["action"] == "daemon" for n in facts(carried, "explain", "ann/Exp_1")["next"])
    finally:
        with open(path, "wb") as file:
            file.write(before)
