"""The hooks as programs, on three directories, with real rsync and the real agent."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import AGENT, HOOKS, files_below, identity, make_site, put, read_rows, runs, wait_for, write  # noqa: E402

pytestmark = pytest.mark.skipif(not AGENT.exists(), reason="no agent.sh")
NAME = "ann/two words $(touch x) 'it''s' é;*"


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


def request(site, name=NAME, **files):
    """Put a job on the web host and return its PENDING's identity."""
    write(site.web / name, **({"command": "echo hello", "data_dot_csv": "1,2\n"} | files))
    put(site.web / name / "PENDING")
    return identity(site.web / name / "PENDING")


def pull(site, name=NAME, **more):
    job = site.job(name, **({"identity": identity(site.web / name / "PENDING")} | more))
    return site.run_hook("pull", [job])


def submit(site, *names, **more):
    return site.run_hook("submit", [site.job(name, place="mirror", **more) for name in names or [NAME]])


def exit_file(site, name=NAME, attempt=1, token=None):
    return site.compute / name / ".watchties" / f"{attempt}.{token or site.token}" / "exit"


def is_whole(exit_file):
    """Return whether the wrapper has written its last line there."""
    return exit_file.exists() and exit_file.read_text().endswith("whole=yes\n")


def run_to_exit(site, name=NAME, **more):
    """Pull, submit, and wait for the wrapper's end; return the fields that the record would hold."""
    pull(site, name)
    fields = submit(site, name, **more).fields(name)
    wait_for(lambda: is_whole(exit_file(site, name, more.get("attempt", 1), more.get("token"))))
    return fields


def fetch(site, name=NAME, marker="DONE", **more):
    return site.run_hook("fetch", [site.job(name, place="compute", marker=marker, **more)])


def push(site, name=NAME, marker="DONE", **more):
    return site.run_hook("push", [site.job(name, place="mirror", marker=marker, **more)])


# ---- the whole way ----


def test_a_job_goes_all_the_way_and_its_results_come_back_byte_for_byte(site):
    blob = bytes(range(256)) * 100
    put(site.web / NAME / "blob", blob)
    command = "cat blob blob >result; mkdir plots; cp blob plots/DONE; echo said; echo wrong >&2; echo more >>data.csv"
    number = request(site, command=command)
    fields = run_to_exit(site)
    shown = site.run_hook("report", [site.job(NAME, marker="SUBMITTED", accepted=[int(number)], fields=fields)])
    assert shown.fields(NAME) == {"pending": "", "cancel": ""} and not (site.web / NAME / "PENDING").exists()
    assert f"id={fields['id']}" in (site.web / NAME / "SUBMITTED").read_text().splitlines()
    polled = site.run_hook("poll", [site.job(NAME, marker="SUBMITTED", fields=fields)])
    assert polled.fields(NAME)["seen"] == "DONE"
    fetched = fetch(site, fields=fields)
    assert fetched.fields(NAME) | {"state": "DONE", "exit": "0"} == fetched.fields(NAME)
    pushed = push(site, fields=fields | fetched.fields(NAME), accepted=[int(number)])
    assert pushed.outcome(NAME) == "done"
    web = files_below(site.web / NAME)
    assert web["result"] == blob * 2 and web["plots/DONE"] == blob and web["data.csv"] == b"1,2\nmore\n"
    assert web["remote_ties_run.res"] == b"said\n" and web["remote_ties_run.err"] == b"wrong\n"
    assert not (site.web / NAME / "SUBMITTED").exists() and "exit=0" in web["DONE"].decode().splitlines()


def test_jobs_of_a_batch_are_settled_each(site):
    names = [f"ann/e{n}" for n in range(7)]
    for name in names:
        request(site, name)
    jobs = [site.job(n, identity=identity(site.web / n / "PENDING"), token=f"{site.token}{n[-1]}") for n in names]
    assert [row["outcome"] for row in site.run_hook("pull", jobs).rows] == ["done"] * 7
    ended = site.run_hook("submit", jobs)
    assert len({ended.fields(n)["id"] for n in names}) == 7
    for name, job in zip(names, jobs, strict=True):
        wait_for(lambda: is_whole(exit_file(site, name, token=job["token"])))  # noqa: B023
    ended = site.run_hook("fetch", [job | {"marker": "DONE"} for job in jobs])
    assert all(ended.fields(n)["state"] == "DONE" for n in names)


def test_one_bad_job_does_not_spoil_the_batch(site):
    names = ["ann/e1", "eve/bad", "bob/e2"]
    for name in names:
        request(site, name)
    (site.mirror / "eve").symlink_to(site.base)  # into which nothing may be written
    ended = site.run_hook("pull", [site.job(n) for n in names])
    assert [ended.outcome(n) for n in names] == ["done", "retry", "done"] and "eve" in ended.reason("eve/bad")
    assert not (site.base / "bad").exists()


# ---- pull ----


def test_pull_tells_the_identity_size_and_named_host(site):
    number = request(site, CPU_SERVER="b01 please\n")
    fields = pull(site).fields(NAME)
    assert fields == {"identity": number, "latest": "", "files": 3, "bytes": len("echo hello1,2\nb01 please\n"), "cpu_server": "b01"}


@pytest.mark.parametrize(
    ("files", "limits", "reason"),
    [
        ({"CPU_SERVER": "nowhere"}, {}, "CPU_SERVER names nowhere, which is no compute host of this tree: there are b01"),
        ({}, {"size": 10}, "14 bytes are 4 more than the limit of 10"),
        ({}, {"files": 1}, "2 files are 1 more than the limit of 1"),
    ],
)
def test_pull_rejects_with_the_reason(site, files, limits, reason):
    site.config["tree"]["ties"]["limits"] = limits
    request(site, **files)
    ended = pull(site)
    assert ended.outcome(NAME) == "done" and ended.fields(NAME)["cause"] == "rejected" and ended.fields(NAME)["reason"] == reason


def test_pull_rejects_a_job_without_command(site):
    put(site.web / NAME / "data.csv")
    put(site.web / NAME / "PENDING")
    assert pull(site).fields(NAME)["reason"].startswith("there is no file command in it")


@pytest.mark.parametrize("deleted", [False, True])
def test_a_request_that_was_taken_back_is_told_as_such(site, deleted):
    if not deleted:
        put(site.web / NAME / "command")
    ended = site.run_hook("pull", [site.job(NAME, identity="17")])
    assert (ended.outcome(NAME), ended.fields(NAME)["identity"]) == ("done", "")


def test_pull_follows_a_request_that_changes_meanwhile(site):
    """[pull_open] PENDING is touched, and inputs are edited, after the daemon saw it: the newer inputs come."""
    request(site)
    pull(site)
    put(site.web / NAME / "data.csv", "new\n")
    number = identity(put(site.web / NAME / "PENDING"))
    ended = site.run_hook("pull", [site.job(NAME, identity="1")])
    assert ended.fields(NAME)["identity"] == number and (site.mirror / NAME / "data.csv").read_text() == "new\n"


def test_pull_asks_no_more_than_it_must(site):
    put(site.base / "bin/rsync", f'#!/bin/sh\necho once >>{site.base}/count\nPATH="{os.environ["PATH"]}" exec rsync "$@"\n').chmod(0o755)
    request(site)
    job = site.job(NAME, identity=identity(site.web / NAME / "PENDING"))
    site.run_hook("pull", [job], PATH=f"{site.base / 'bin'}:{os.environ['PATH']}")
    assert (site.base / "count").read_text() == "once\n"


def test_a_host_that_refuses_one_job_costs_no_other_its_pull(site):
    names = ["ann/e1", "bob/e2"]
    for name in names:
        request(site, name)
    put(site.roots["vision"] / "scripts/agent.sh", "cat >&2; printf 'ann/e1\\terror\\twhatever\\nbob/e2\\t-\\t-\\t-\\n'")
    ended = site.run_hook("pull", [site.job(name) for name in names])
    assert [ended.outcome(name) for name in names] == ["retry", "done"] and ended.reason("ann/e1").endswith("stands there: whatever")


def test_pull_gives_up_for_now_when_pending_never_stands_still(site, tmp_path):
    request(site)
    agent = f'read -r job; touch "$2/$job/PENDING"; printf "%s\\t$(date +%s%N)\\t-\\t-\\n" "$job" | tee -a {tmp_path}/asked'
    put(site.roots["vision"] / "scripts/agent.sh", agent)
    ended = pull(site)
    assert ended.outcome(NAME) == "retry" and "again and again" in ended.reason(NAME)
    assert len((tmp_path / "asked").read_text().splitlines()) == 5


def test_pull_spares_what_was_made_and_not_pushed(site):
    """[pull_spares] Results in the mirror that the web host has not got yet are not overwritten with older ones."""
    request(site, command="echo new >result; echo input >input; mkdir -p d")
    fields = run_to_exit(site)
    fetch(site, fields=fields)
    write(site.web / NAME, result="old", input="edited meanwhile", d__more="edited too", data_dot_csv="edited")
    made = site.mirror / NAME / ".watchties/made.1"
    pull(site, fields={"spare": str(made)})
    mirror = files_below(site.mirror / NAME)
    assert mirror["result"] == b"new\n" and mirror["input"] == b"input\n"
    assert mirror["data.csv"] == b"edited" and mirror["d/more"] == b"edited too"
    pull(site)
    assert files_below(site.mirror / NAME)["result"] == b"old"


def test_links_that_lead_outside_are_left_behind_and_named(site):
    request(site)
    put(site.web / "bob/e1/secret", "s")
    for name, target in {
        "absolute": "/etc/passwd", "neighbour": "../../bob/e1/secret", "good": "data.csv", "sub/up": "../data.csv",
        "sub/deep/top": "../..", "sub/trick": "deep/top/../x",
    }.items():  # fmt: skip
        (site.web / NAME / name).parent.mkdir(parents=True, exist_ok=True)
        (site.web / NAME / name).symlink_to(target)
    ended = pull(site)
    links = sorted(str(p.relative_to(site.mirror / NAME)) for p in (site.mirror / NAME).rglob("*") if p.is_symlink())
    assert links == ["good", "sub/deep/top", "sub/up"]
    assert all(f"{name} left behind" in ended.out for name in ("absolute", "neighbour", "sub/trick"))


def test_a_job_directory_that_is_a_link_is_rejected(site):
    write(site.base / "elsewhere", command="true", PENDING="")
    (site.web / "ann").mkdir()
    (site.web / "ann/e1").symlink_to(site.base / "elsewhere")
    ended = site.run_hook("pull", [site.job("ann/e1", identity="1")])
    assert ended.fields("ann/e1")["cause"] == "rejected" and "symbolic link" in ended.reason("ann/e1")
    assert not os.path.lexists(site.mirror / "ann/e1")


# ---- submit ----


def test_submit_twice_runs_once(site):
    request(site, command=f"echo run >>{site.base}/ran")
    pull(site)
    first, second = submit(site), submit(site)
    assert first.fields(NAME)["id"] == second.fields(NAME)["id"]
    wait_for(lambda: is_whole(exit_file(site)))
    assert (site.base / "ran").read_text() == "run\n"


def test_claim_first_inputs_do_not_change_under_a_job_that_was_submitted(site):
    """[claim_first]"""
    request(site, command="sleep 0.3; cat data.csv")
    pull(site)
    submit(site)
    put(site.mirror / NAME / "data.csv", "edited")
    submit(site)
    wait_for(lambda: is_whole(exit_file(site)))
    assert (site.compute / NAME / "data.csv").read_text() == "1,2\n"


def test_an_intent_without_reply_is_asked_for_by_name_twice_before_it_is_submitted_again(site):
    request(site, command=f"echo run >>{site.base}/ran")
    pull(site)
    attempt = site.compute / NAME / f".watchties/1.{site.token}"
    attempt.mkdir(parents=True)
    (attempt / "intent.run-cut-off").touch()
    first = submit(site)
    assert first.outcome(NAME) == "retry" and time.time() - first.fields(NAME)["asked"] < 60
    soon = submit(site, fields=first.fields(NAME))
    assert soon.outcome(NAME) == "retry" and soon.fields(NAME)["asked"] == first.fields(NAME)["asked"]
    assert not (site.base / "ran").exists()
    write(site.compute / NAME, command=f"echo run >>{site.base}/ran")
    later = submit(site, fields={"asked": first.fields(NAME)["asked"] - 100})
    assert later.outcome(NAME) == "done"
    assert [row["fields"].get("asked") for row in later.rows] == [0, None]  # a crash in between asks twice again
    wait_for(lambda: is_whole(exit_file(site)))
    assert (site.base / "ran").read_text() == "run\n"


def test_what_may_not_be_submitted_again_is_kept_from_beginning_before_it_fails(site):
    """Its cap was lowered meanwhile. Its intent stands: what the scheduler may show late must do nothing by then."""
    request(site, **{"job.toml": "cores = 4"})
    pull(site)
    attempt = site.compute / NAME / f".watchties/1.{site.token}"
    attempt.mkdir(parents=True)
    (attempt / "intent.run-cut-off").touch()
    site.config["host"]["b01"]["caps"] = {"cores": 2}
    ended = submit(site, fields={"asked": time.time() - 100})
    assert [row["outcome"] for row in ended.rows] == ["failed"] and ended.fields(NAME)["cause"] == "rejected"  # and nothing else after it
    assert "cores = 4 is more than b01 allows, 2" in ended.reason(NAME)
    assert (attempt / "begun").read_text().startswith("state=cancelled\nwhy=rejected\n")


@pytest.mark.parametrize("word, fields, asks", [("held", {}, True), ("held", {"clear": 1}, False), ("new", {"clear": 1}, True)])
def test_the_scheduler_is_asked_by_name_where_a_claim_may_be_all_that_a_removal_has_left(site, word, fields, asks):
    request(site)
    pull(site)
    attempt = site.compute / NAME / f".watchties/1.{site.token}"
    if word == "held":
        attempt.mkdir(parents=True)
        (attempt / "claim.run-cut-off").touch()
    site.config["host"]["b01"]["setup"] = f"grep() {{ touch {shlex.quote(str(site.base / 'asked'))}; command grep \"$@\"; }}"
    ended = submit(site, fields=fields)
    assert ended.outcome(NAME) == "done" and (site.base / "asked").exists() == asks
    assert [row["fields"].get("clear") for row in ended.rows] == ([0, None] if word == "new" else [None])


def test_an_intent_whose_wrapper_is_found_is_adopted(site):
    """The wrapper has started, and died to the world before `begun`: it is known by its token alone."""
    request(site)
    pull(site)
    attempt = site.compute / NAME / f".watchties/1.{site.token}"
    attempt.mkdir(parents=True)
    (attempt / "intent.run-cut-off").touch()
    stands_for_it = subprocess.Popen(["sh", "-c", "sleep 60; true", "wrapper", NAME, "1", site.token])
    try:
        assert submit(site).fields(NAME)["id"] == str(stands_for_it.pid)
        assert submit(site).fields(NAME)["id"] == str(stands_for_it.pid)  # from the reply, now
    finally:
        stands_for_it.kill()
        stands_for_it.wait()


def test_a_cancelled_attempt_is_not_submitted(site):
    request(site)
    pull(site)
    assert site.run_hook("cancel", [site.job(NAME)]).fields(NAME) == {"how": "none"}
    fields = submit(site).fields(NAME)
    assert (fields["state"], fields["cause"]) == ("FAILED", "cancelled")


def test_a_submit_command_that_is_refused_fails_the_job_in_the_schedulers_words(site):
    request(site)
    pull(site)
    site.config["host"]["b01"]["setup"] = "setsid() { :; }\necho() { printf 'no such queue\\n' >&2; return 127; }"
    ended = submit(site)
    begun = site.compute / NAME / f".watchties/1.{site.token}/begun"
    assert begun.read_text().startswith("state=cancelled\nwhy=rejected\n"), "nothing of it begins, whatever the scheduler has kept of it"
    again = submit(site)  # as if the first had died before it could say so
    for told in ended, again:
        assert told.outcome(NAME) == "failed" and told.fields(NAME)["cause"] == "rejected" and "no such queue" in told.reason(NAME)


def test_an_agent_that_is_killed_costs_no_job_its_attempt(site):
    request(site, command=f"echo run >>{site.base}/ran")
    pull(site)
    site.config["host"]["b01"]["setup"] = "kill -KILL $$"
    ended = submit(site)
    assert ended.code == 75 and ended.fields(NAME) == {"host_down": True} and "b01" in ended.reason(NAME)
    site.config["host"]["b01"]["setup"] = None
    assert submit(site).fields(NAME)["id"].isdigit()
    wait_for(lambda: is_whole(exit_file(site)))
    assert (site.base / "ran").read_text() == "run\n"


def test_not_now_is_not_remembered_as_the_answer(site):
    """The reply is stored; were it given for ever, the job would never be submitted."""
    request(site)
    pull(site)
    site.config["host"]["b01"]["setup"] = "setsid() { :; }\necho() { printf 'Cannot fork\\n' >&2; return 2; }"
    ended = submit(site)
    assert ended.outcome(NAME) == "retry" and "takes no more for now: Cannot fork" in ended.reason(NAME)
    site.config["host"]["b01"]["setup"] = None
    asked = submit(site)
    assert asked.fields(NAME)["asked"] > 0
    assert submit(site, fields={"asked": 1}).fields(NAME)["id"].isdigit()


# ---- fetch and push ----


def test_made_list_holds_what_differs_and_no_more(site):
    """[made_list]"""
    request(site, command="echo r >result; touch -d 2001-01-01 data.csv; mkdir -p empty; ln -s result link; rm -f gone", gone="x", kept="x")
    run_to_exit(site)
    fetch(site)
    made = [json.loads(line)["p"] for line in (site.mirror / NAME / ".watchties/made.1").read_text().splitlines()]
    assert made == ["data.csv", "empty", "link", "remote_ties_run.err", "remote_ties_run.res", "result"]


def test_what_a_user_edited_for_the_next_attempt_is_never_overwritten(site):
    """[made_list] fetch spares it in the mirror, push does not send it."""
    request(site, command="echo by the job >>data.csv; echo by the job >notes", notes="first", other="o")
    fields = run_to_exit(site)
    write(site.web / NAME, data_dot_csv="edited on the web")
    pull(site)
    fetched = fetch(site, fields=fields)
    spared = [json.loads(line)["p"] for line in (site.mirror / NAME / ".watchties/spared.1").read_text().splitlines()]
    assert spared == ["data.csv"] and (site.mirror / NAME / "data.csv").read_text() == "edited on the web"
    put(site.web / NAME / "other", "edited later")
    push(site, fields=fields | fetched.fields(NAME))
    web = files_below(site.web / NAME)
    assert web["data.csv"] == b"edited on the web" and web["notes"] == b"by the job\n" and web["other"] == b"edited later"


def test_an_interrupted_fetch_does_not_take_its_own_results_for_a_users_edits(site):
    request(site, command="echo by the job >>data.csv")
    fields = run_to_exit(site)
    fetch(site, fields=fields)
    for kind in "made", "spared":
        (site.mirror / NAME / f".watchties/{kind}.1").unlink()
    fetch(site, fields=fields)
    made = (site.mirror / NAME / ".watchties/made.1").read_text()
    assert '"data.csv"' in made and (site.mirror / NAME / ".watchties/spared.1").read_text() == ""


def test_a_job_whose_results_cannot_be_looked_at_does_not_spoil_a_fetch(site):
    """Its paths can be carried, as rsync works from the tree's root, and are too long below the mirror's full name."""
    names = "ann/deep", "ann/e1"
    word = "d" * 200
    makes = f"for n in $(seq 20); do mkdir {word}; cd {word}; done; mkdir {'e' * 46}"
    for name, command in zip(names, (makes, "echo x"), strict=True):
        request(site, name, command=command)
    jobs = [site.job(name, token=f"{site.token}{n}") for n, name in enumerate(names)]
    site.run_hook("pull", [job | {"identity": identity(site.web / job["job"] / "PENDING")} for job in jobs])
    site.run_hook("submit", jobs)
    for job in jobs:
        wait_for(lambda: is_whole(exit_file(site, job["job"], token=job["token"])))  # noqa: B023
    ended = site.run_hook("fetch", [job | {"place": "compute", "marker": "DONE"} for job in jobs])
    assert [ended.outcome(name) for name in names] == ["retry", "done"], ended
    assert "File name too long" in ended.reason("ann/deep")


def test_links_in_results_that_lead_outside_are_left_behind(site):
    request(site, command="ln -s /etc/passwd bad; ln -s data.csv good")
    run_to_exit(site)
    ended = fetch(site)
    assert "bad left behind" in ended.out and not os.path.lexists(site.mirror / NAME / "bad")
    push(site, fields=ended.fields(NAME))
    assert os.readlink(site.web / NAME / "good") == "data.csv" and not os.path.lexists(site.web / NAME / "bad")


def test_push_does_not_follow_a_directory_that_became_a_link(site):
    request(site, command="mkdir plots; echo r >plots/a")
    run_to_exit(site)
    fields = fetch(site).fields(NAME)
    put(site.base / "elsewhere/a", "secret")
    (site.mirror / NAME / "plots/a").unlink()
    (site.mirror / NAME / "plots").rmdir()
    (site.mirror / NAME / "plots").symlink_to(site.base / "elsewhere")
    push(site, fields=fields)
    assert "secret" not in str(files_below(site.web / NAME)) and not os.path.lexists(site.web / NAME / "plots")


@pytest.mark.parametrize(
    ("command", "success", "cause", "reason"),
    [
        ("echo said why >&2; exit 3", {}, "exit", "exit code 3: said why"),
        ("kill -9 $$", {}, "exit", "signal 9"),
        ("echo oops >&2", {"stderr_empty": True}, "success", "remote_ties_run.err is not empty (5 bytes)"),
        ("true", {"require": ["out/*.csv"]}, "success", "it made no out/*.csv, which this tree requires"),
        ("touch FAILURE.txt", {"forbid": ["FAILURE*"]}, "success", "it made FAILURE.txt, which means failure in this tree"),
        ("mkdir out; touch out/a.csv", {"require": ["out/*.csv"], "forbid": ["FAILURE*.txt"], "stderr_empty": True}, None, None),
    ],
)
def test_success_is_the_exit_code_and_what_the_tree_adds(site, command, success, cause, reason):
    site.config["tree"]["ties"]["success"] = success
    request(site, command=command)
    run_to_exit(site)
    fields = fetch(site).fields(NAME)
    assert (fields["state"], fields.get("cause"), fields.get("reason")) == ("FAILED" if cause else "DONE", cause, reason)


def test_an_earlier_attempts_evidence_does_not_count(site):
    site.config["tree"]["ties"]["success"] = {"forbid": ["FAILURE_REPORT.txt"], "require": ["result"]}
    request(site, command="[ -e flag ] || { touch FAILURE_REPORT.txt result; }; [ -e bad ] || touch result")
    run_to_exit(site)
    assert fetch(site).fields(NAME)["cause"] == "success"
    write(site.web / NAME, flag="", PENDING="")
    run_to_exit(site, attempt=2, token=f"{site.token}2")
    assert fetch(site, attempt=2, token=f"{site.token}2").fields(NAME)["state"] == "DONE"
    write(site.web / NAME, bad="", PENDING="")
    run_to_exit(site, attempt=3, token=f"{site.token}3")
    assert fetch(site, attempt=3, token=f"{site.token}3").fields(NAME)["reason"] == "it made no result, which this tree requires"


def test_results_that_are_not_all_to_be_seen_are_waited_for_a_grace_period_long(site):
    request(site, command="echo r >result")
    fields = run_to_exit(site)
    (site.compute / NAME / "result").unlink()
    ended = fetch(site, fields=fields)
    assert ended.outcome(NAME) == "retry" and "results are not all to be seen yet" in ended.reason(NAME)
    late = fetch(site, fields=fields | {"short_since": ended.fields(NAME)["short_since"] - 100})
    assert late.fields(NAME)["state"] == "DONE" and "taken as it is" in late.out


def test_fetch_waits_for_an_exit_file_and_takes_a_lost_job_as_failed(site):
    request(site, command="echo part >part; sleep 60")
    pull(site)
    fields = submit(site).fields(NAME)
    wait_for((site.compute / NAME / "part").exists)
    assert fetch(site, fields=fields).outcome(NAME) == "retry"
    early = fetch(site, marker="lost", fields=fields)  # whoever has given it up was wrong
    assert early.outcome(NAME) == "done" and early.fields(NAME)["seen"] == "" and "is there after all" in early.fields(NAME)["note"]
    os.killpg(int(fields["id"]), signal.SIGKILL)
    ahead = fetch(site, fields=fields | {"removed_since": time.time() + 86400})  # the clock was set back
    assert ahead.outcome(NAME) == "retry" and ahead.fields(NAME)["removed_since"] <= time.time()
    gone = fetch(site, fields=fields | {"removed_since": time.time() - 1000})
    assert gone.outcome(NAME) == "done" and gone.fields(NAME)["seen"] == "lost" and "state" not in gone.fields(NAME)
    assert not (site.mirror / NAME / "part").exists(), "it may be tried again, with the inputs as they were"
    lost = fetch(site, marker="lost", fields=fields).fields(NAME)
    assert (lost["state"], lost["cause"]) == ("FAILED", "lost") and (site.mirror / NAME / "part").read_text() == "part\n"


def test_an_account_that_comes_late_is_waited_for_where_it_tells_the_cause(site):
    """Killed by Grid Engine, and qacct knows nothing of it for some seconds; the answers are shaped like the recorded ones."""
    request(site, command="kill -KILL $$")
    number, bin = run_to_exit(site)["id"], site.base / "bin"
    put(bin / "qstat", "#!/bin/sh\necho \"<?xml version='1.0'?><job_info><queue_info/><job_info/></job_info>\"\n").chmod(0o755)
    put(bin / "qacct", f"#!/bin/sh\necho 'error: job id {number} not found' >&2; exit 1\n").chmod(0o755)
    site.config["host"]["b01"] |= {"scheduler": "sge", "setup": f"PATH={bin}:$PATH"}
    first = fetch(site, marker="FAILED", fields={"id": number})
    assert first.outcome(NAME) == "retry" and "no account of it yet" in first.reason(NAME)
    later = fetch(site, marker="FAILED", fields={"id": number, "untold_since": first.fields(NAME)["untold_since"] - 1000})
    assert (later.fields(NAME)["state"], later.fields(NAME)["cause"]) == ("FAILED", "exit")


def test_done_is_not_shown_without_the_list_of_results(site):
    request(site)
    run_to_exit(site)
    fields = fetch(site).fields(NAME)
    (site.mirror / NAME / ".watchties/made.1").unlink()
    ended = push(site, fields=fields)
    assert ended.outcome(NAME) == "failed" and "made.1 is not there" in ended.reason(NAME)
    assert not (site.web / NAME / "DONE").exists()
    assert push(site, marker="FAILED", fields={"cause": "rejected", "reason": "no\ncommand"}).outcome(NAME) == "done"
    assert "reason=no command\n" in (site.web / NAME / "FAILED").read_text()


def test_a_state_is_not_shown_where_the_results_did_not_arrive(site):
    for name in "ann/e1", "ann/e2":
        request(site, name, command="echo r >result")
        run_to_exit(site, name)
        fetch(site, name)
    put(site.web / "ann/e2/result/in the way")
    ended = site.run_hook("push", [site.job(name, place="mirror", marker="DONE") for name in ("ann/e1", "ann/e2")])
    assert [ended.outcome(name) for name in ("ann/e1", "ann/e2")] == ["done", "retry"] and "result" in ended.reason("ann/e2")
    assert (site.web / "ann/e1/DONE").exists() and not (site.web / "ann/e2/DONE").exists()


def test_one_whose_record_takes_no_note_does_not_spoil_a_push(site):
    for name in "ann/e1", "ann/e2":
        request(site, name, command="echo r >result")
        run_to_exit(site, name)
        fetch(site, name)
    (site.mirror / "ann/e2/.watchties/sending.1").mkdir()
    ended = site.run_hook("push", [site.job(name, place="mirror", marker="DONE") for name in ("ann/e2", "ann/e1")])
    assert [ended.outcome(name) for name in ("ann/e1", "ann/e2")] == ["done", "retry"], (ended.out, ended.err)
    assert (site.web / "ann/e1/DONE").exists() and "Is a directory" in ended.reason("ann/e2")


def test_a_request_that_is_not_accepted_stays_on_the_web(site):
    number = request(site)
    ended = site.run_hook("report", [site.job(NAME, marker="SUBMITTED", accepted=[1])])
    assert ended.fields(NAME) == {"pending": number, "cancel": ""} and (site.web / NAME / "PENDING").exists()


# ---- poll and cancel ----


def test_poll_sees_running_then_lost_when_the_session_is_gone(site):
    request(site, command="sleep 60")
    pull(site)
    fields = submit(site).fields(NAME)
    wait_for((site.compute / NAME / f".watchties/1.{site.token}/begun").exists)

    def poll(**more):
        return site.run_hook("poll", [site.job(NAME, marker="SUBMITTED", fields=fields | more)]).fields(NAME)

    assert poll() == {"seen": "", "note": "running"}
    os.killpg(int(fields["id"]), signal.SIGKILL)
    assert poll()["seen"] == ""  # too young
    site.config["daemon"]["grace"] = 0.001
    assert poll()["seen"] == "lost"


def test_a_job_that_never_began_is_lost_only_after_two_looks_a_grace_period_apart(site):
    request(site)
    site.config["daemon"]["grace"] = 30.0
    attempt = site.compute / NAME / f".watchties/1.{site.token}"
    put(attempt / "reply", "x\t0\no\t999999999\n")
    fields = {"id": "999999999", "submitted": "2020-01-01T00:00:00+00:00"}
    job = site.job(NAME, marker="SUBMITTED", fields=fields)
    first = site.run_hook("poll", [job])
    assert first.outcome(NAME) == "retry" and "999999999" in first.reason(NAME)
    job |= {"fields": fields | {"missing": first.fields(NAME)["missing"] - 100}}
    assert not (attempt / "begun").exists()
    assert site.run_hook("poll", [job]).fields(NAME)["seen"] == "lost"
    assert (attempt / "begun").read_text().startswith("state=cancelled\nwhy=lost\n"), "it will never begin"
    again = site.run_hook("poll", [job]).fields(NAME)  # as if the first had died before it could say so
    assert (again["seen"], again["cause"]) == ("lost", "")
    put(site.mirror / NAME / "command", "")
    ended = site.run_hook("fetch", [job | {"marker": "lost", "place": "compute"}])
    assert (ended.fields(NAME)["state"], ended.fields(NAME)["cause"]) == ("FAILED", "lost")


def test_a_query_that_failed_changes_nothing(site):
    site.config["host"]["b01"]["setup"] = "cut() { return 1; }\ngrep() { exit 1; }"
    site.config["daemon"]["grace"] = 0.001
    put(site.compute / NAME / f".watchties/1.{site.token}/reply", "x\t0\no\t999999999\n")
    job = site.job(NAME, marker="SUBMITTED", fields={"id": "999999999", "submitted": "2020-01-01", "missing": 1})
    ended = site.run_hook("poll", [job])
    assert ended.fields(NAME)["seen"] == "" and "ended with 1" in ended.fields(NAME)["note"]


def test_an_attempt_of_which_nothing_is_there_is_not_lost(site):
    """An unmounted disk looks just so."""
    site.config["daemon"]["grace"] = 0.001
    job = site.job(NAME, marker="SUBMITTED", fields={"id": "999999999", "submitted": "2020-01-01", "missing": 1})
    assert site.run_hook("poll", [job]).fields(NAME) == {"seen": "", "note": "none"}


def test_cancel_stops_a_running_job_with_all_its_children(site):
    request(site, command="sleep 60 & echo $! >child; wait")
    pull(site)
    fields = submit(site).fields(NAME)
    child = int(wait_for(lambda: (site.compute / NAME / "child").exists() and (site.compute / NAME / "child").read_text()))
    ended = site.run_hook("cancel", [site.job(NAME, fields=fields)])
    assert ended.fields(NAME) == {"how": "ended"} and not runs(child)
    assert site.run_hook("poll", [site.job(NAME, marker="SUBMITTED", fields=fields)]).fields(NAME)["seen"] == "FAILED"
    fields = fetch(site, marker="FAILED", fields=fields).fields(NAME)
    assert (fields["state"], fields["cause"]) == ("FAILED", "cancelled")


# ---- trouble ----


def test_a_host_without_its_directory_costs_the_jobs_nothing(site):
    site.config["host"]["b01"]["root"] = str(site.base / "not-there")
    ended = submit(site)
    assert ended.code == 75 and ended.fields(NAME) == {"host_down": True} and "b01" in ended.err.splitlines()[-1]


def test_an_agent_that_is_missing_is_told_in_one_line(site):
    (site.roots["b01"] / "scripts/agent.sh").unlink()
    ended = submit(site)
    assert ended.code == 75 and ended.fields(NAME) == {"host_down": True}
    assert ended.err.splitlines()[-1] == "host b01 has no scripts/agent.sh: run `watchties deploy b01`"


def test_a_tree_that_is_not_mounted_on_a_host_is_no_jobs_fault(site):
    site.compute.rmdir()
    ended = submit(site)
    assert ended.code == 75 and ended.fields(NAME) == {"host_down": True} and "is its disk mounted?" in ended.err.splitlines()[-1]
    assert not site.compute.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_mirror_is_tried_again_later_and_called_so(site):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(site.mirror)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        for name in "ann/e1", "ann/e3":
            request(site, name)
        request(site, "ann/e2", blob=b"x" * 3_000_000)
        jobs = [site.job(f"ann/e{n}") for n in (1, 2, 3)]
        ended = site.run_hook("pull", jobs)
        assert [ended.outcome(f"ann/e{n}") for n in (1, 2, 3)] == ["done", "retry", "done"]
        assert "a disk is full" in ended.reason("ann/e2")
    finally:
        subprocess.run(["umount", "-l", str(site.mirror)], check=True)


def test_sigterm_ends_a_hook_and_its_children_soon(site):
    put(site.base / "bin/rsync", f"#!/bin/sh\necho $$ >{site.base}/rsync.pid\nexec sleep 60\n").chmod(0o755)
    env, result = site.prepare("pull", [site.job(NAME)])
    env["PATH"] = f"{site.base / 'bin'}:{env['PATH']}"
    words, streams = [sys.executable, str(HOOKS / "pull")], {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    hook = subprocess.Popen(words, env=env, start_new_session=True, **streams)
    child = int(wait_for(lambda: (site.base / "rsync.pid").exists() and (site.base / "rsync.pid").read_text()))
    hook.terminate()
    _, err = hook.communicate(timeout=10)
    assert (hook.returncode, err.decode(), read_rows(result)) == (75, "told to stop\n", [])
    wait_for(lambda: not runs(child), 5)


def test_the_slots_lock_is_handed_on_to_rsync_but_not_to_the_job(site):
    import fcntl

    request(site, command="ls -l /proc/self/fd >fds; sleep 60")
    pull(site)
    lock = os.open(site.base / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    tells = f'#!/bin/sh\nls -l /proc/self/fd >{site.base}/fds\nPATH="{os.environ["PATH"]}" exec rsync "$@"\n'
    put(site.base / "bin/rsync", tells).chmod(0o755)
    env, result = site.prepare("submit", [site.job(NAME)], WATCHTIES_LOCK_FD=str(lock))
    env["PATH"] = f"{site.base / 'bin'}:{env['PATH']}"
    subprocess.run([sys.executable, str(HOOKS / "submit")], env=env, pass_fds=[lock], check=True, capture_output=True)
    fds = wait_for(lambda: (site.compute / NAME / "fds").exists() and (site.compute / NAME / "fds").read_text())
    assert str(site.base / "lock") in (site.base / "fds").read_text() and str(site.base / "lock") not in fds
    os.close(lock)
    other = os.open(site.base / "lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it, though the job runs
    os.close(other)
    os.killpg(int(read_rows(result)[-1]["fields"]["id"]), signal.SIGKILL)


def test_a_job_that_runs_here_inherits_nothing_of_the_hook(site):
    request(site, command="env >environment")
    run_to_exit(site)
    assert "WATCHTIES_" not in (site.compute / NAME / "environment").read_text()
