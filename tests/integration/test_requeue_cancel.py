"""Requeue and cancel with the real daemon: exactly once more, with what the user edited last; stopped within seconds, and proven."""

import os
import random
import time
from pathlib import Path

import pytest
from site_kit import Site

HOLD = "echo run >> runs.log; for _ in $(seq 2000); do [ -e go ] && break; sleep 0.05; done; cat in.txt > out.txt\n"
CHILDREN = "echo run >> runs.log; sleep 1000 & setsid -f sleep 1001; (trap '' TERM; sleep 1002; sleep 1003)\n"


@pytest.fixture
def site(tmp_path):
    with Site(tmp_path) as site:
        yield site


def alive(site, job):
    """Return the processes at work in a job's directory on the compute host, by working directory."""
    where, found = str(site.compute / job), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == where:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def running(site, job, times=1):
    site.wait(lambda: site.runs(job) == times and site.marker(job)[0] == "SUBMITTED", 20, f"run {times} of {job} is at work")


def end(site, job, state="DONE", attempt=1):
    """Wait for the end of an attempt, on the web host and altogether; return the marker's fields."""
    wanted = state, str(attempt)
    site.wait(lambda: (site.marker(job)[0], site.marker(job)[1].get("attempt")) == wanted, 30, f"{job} {state}, attempt {attempt}")
    site.wait(site.quiet, 20, "quiet")
    return site.marker(job)[1]


# ---- requeue ----


def test_a_touch_at_either_place_runs_a_job_exactly_once_more(site):
    for job in "ann/web", "ann/mirror", "ann/command":
        site.drop(job)
    tokens = {end(site, job)["token"] for job in ("ann/web", "ann/mirror", "ann/command")}
    site.touch("ann/web")
    site.touch("ann/mirror", tree=site.mirror)
    site.watchties("requeue", "ann/command")
    for job in "ann/web", "ann/mirror", "ann/command":
        tokens.add(end(site, job, attempt=2)["token"])
        assert site.runs(job) == 2
        for tree in site.web, site.mirror:
            assert {name for name in ("PENDING", "SUBMITTED", "DONE", "FAILED") if (tree / job / name).exists()} == {"DONE"}
    assert len(tokens) == 6 and len(site.letters()) == 6
    time.sleep(1)
    assert site.quiet() and site.runs("ann/web") == 2


def test_a_requeue_runs_once_more_also_when_the_journal_was_deleted(tmp_path):
    site = Site(tmp_path)
    with site:
        for job in "ann/web", "ann/mirror", "ann/rest":
            site.drop(job)
        for job in "ann/web", "ann/mirror", "ann/rest":
            end(site, job)
    for path in site.state.glob("journal.sqlite*"):
        path.unlink()
    site.touch("ann/web")
    site.touch("ann/mirror", tree=site.mirror)
    with site:
        end(site, "ann/web", attempt=2)
        end(site, "ann/mirror", attempt=2)
        assert [site.runs(job) for job in ("ann/web", "ann/mirror", "ann/rest")] == [2, 2, 1]
        assert "ann/rest" in site.watchties("status", "ann/rest").stdout


def test_a_backup_that_brings_back_an_old_marker_runs_nothing(site):
    site.drop("ann/e1")
    ns = os.stat(site.web / "ann/e1/PENDING").st_mtime_ns
    end(site, "ann/e1")
    for tree in site.web, site.mirror:
        (tree / "ann/e1/.old").write_text("")
        os.utime(tree / "ann/e1/.old", ns=(ns, ns))
    os.rename(site.web / "ann/e1/.old", site.web / "ann/e1/PENDING")
    site.wait(lambda: not (site.web / "ann/e1/PENDING").exists(), 20, "the old PENDING taken off")
    end(site, "ann/e1")
    assert site.runs("ann/e1") == 1


def test_a_requeue_takes_the_inputs_as_last_edited_and_keeps_earlier_results(site):
    job = "ann/e1"
    site.drop(job, command="echo run >> runs.log; cp in.txt out.txt; cp in.txt result.$(wc -l < runs.log)\n")
    end(site, job)
    (site.web / job / "in.txt").write_text("edited on the web host\n")
    (site.web / job / "new.txt").write_text("new\n")
    (site.web / job / "result.1").write_text("kept as the user wants it\n")
    site.touch(job)
    end(site, job, attempt=2)
    assert (site.web / job / "out.txt").read_text() == "edited on the web host\n" == (site.web / job / "result.2").read_text()
    assert (site.compute / job / "new.txt").read_text() == "new\n"
    assert (site.web / job / "result.1").read_text() == (site.mirror / job / "result.1").read_text() == "kept as the user wants it\n"
    before = list((site.compute / job / ".watchties").glob("before.2/*"))
    assert {path.name for path in before} >= {"DONE", "remote_ties_run.res", "remote_ties_run.err"}


def test_what_a_user_edits_while_a_job_runs_is_never_overwritten(site):
    job = "ann/e1"
    site.drop(job, command=HOLD + "echo by the job > in.txt; echo by the job > made.txt\n", files={"other.txt": "first\n"})
    running(site, job)
    (site.mirror / job / "in.txt").write_text("edited in the mirror\n")
    (site.web / job / "other.txt").write_text("edited on the web host\n")
    (site.compute / job / "go").touch()
    end(site, job)
    assert (site.mirror / job / "in.txt").read_text() == "edited in the mirror\n"
    assert (site.web / job / "other.txt").read_text() == "edited on the web host\n"
    assert (site.web / job / "made.txt").read_text() == "by the job\n"


def test_pending_while_it_runs_stops_the_attempt_and_runs_once_more(site):
    job = "ann/e1"
    site.drop(job, command=HOLD)
    running(site, job)
    first = alive(site, job)
    assert first
    (site.web / job / "in.txt").write_text("the second\n")
    site.touch(job)
    site.touch(job)
    running(site, job, times=2)
    assert not set(first) & set(alive(site, job))
    (site.compute / job / "go").touch()
    end(site, job, attempt=2)
    assert site.runs(job) == 2 and (site.web / job / "out.txt").read_text() == "the second\n"
    assert not alive(site, job) and len(site.letters()) == 1


def test_touches_at_any_moment_are_all_answered_with_the_last_edit(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    draw, jobs = random.Random(seed), [f"u{n % 3}/e{n}" for n in range(12)]

    def change(text):  # so that what no event tells is found by nobody
        return text.replace("[host.b01]", '[host.b01]\npoll = "1h"')

    def ended(job):
        return site.marker(job)[0] == "DONE" and (site.web / job / "out.txt").read_text() == f"last of {job}\n"

    with Site(tmp_path, daemon='reconcile = "1h"', change=change) as site:
        for job in jobs:
            site.drop(job, command="echo run >> runs.log; cat in.txt > out.txt\n")
        for n in range(200):
            job = draw.choice(jobs)
            (site.web / job / "in.txt").write_text(f"edit {n}\n")
            site.touch(job, "CANCEL" if draw.random() < 0.1 else "PENDING")
            if draw.random() < 0.1 and (site.mirror / job).exists():
                site.touch(job, tree=site.mirror)
            time.sleep(draw.uniform(0, 0.05))
        for job in jobs:
            (site.web / job / "in.txt").write_text(f"last of {job}\n")
            site.touch(job)
        site.wait(lambda: all(map(ended, jobs)) and site.quiet(), 60, f"all DONE, seed {seed}")
        assert all(site.runs(job) <= site.record(job).attempt for job in jobs)


# ---- cancel ----


def test_cancel_from_anywhere_stops_a_running_job_with_its_children_within_seconds(site):
    ways = {
        "ann/web": lambda job: site.touch(job, "CANCEL"),
        "ann/mirror": lambda job: site.touch(job, "CANCEL", tree=site.mirror),
        "ann/command": lambda job: site.watchties("cancel", job),
    }
    for job in ways:
        site.drop(job, command=CHILDREN)
    for job in ways:
        running(site, job)
        assert len(alive(site, job)) >= 4
    began = time.monotonic()
    for job, cancel in ways.items():
        cancel(job)
    for job in ways:
        fields = site.wait_state(job, "FAILED", 25)
        assert fields["cause"] == "cancelled" and "CANCEL" in fields["reason"]
    assert time.monotonic() - began < 25  # five of them, for each call of the agent, are the grace of SIGTERM
    site.wait(site.quiet, 20, "quiet")
    for job in ways:
        left = [pid for pid in alive(site, job) if b"1001" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert not left, "what did not leave the session is gone"
        assert site.runs(job) == 1
        assert not (site.web / job / "CANCEL").exists() and not (site.mirror / job / "CANCEL").exists()
        assert "cancelled" in site.letter(job)["Subject"]
        for pid in alive(site, job):
            os.kill(pid, 9)  # it began a session of its own, which nobody can know


def test_cancel_of_a_waiting_job_means_that_it_never_runs(tmp_path):
    with Site(tmp_path, max_running=1) as site:
        site.drop("ann/first", command=HOLD)
        running(site, "ann/first")
        site.drop("ann/second")
        site.wait(lambda: site.record("ann/second").phase == "PENDING", 10, "it waits for a place")
        site.touch("ann/second", "CANCEL")
        fields = end_of(site, "ann/second", "FAILED")
        assert fields["cause"] == "cancelled"
        (site.compute / "ann/first/go").touch()
        end(site, "ann/first")
        assert site.runs("ann/second") == 0 and "cancelled" in site.letter("ann/second")["Subject"]


def end_of(site, job, state):
    site.wait(lambda: site.marker(job)[0] == state, 15, f"{job} {state}")
    return site.marker(job)[1]


def test_a_cancel_older_than_pending_stops_nothing(site):
    job = "ann/e1"
    (site.web / job).mkdir(parents=True)
    site.touch(job, "CANCEL")
    time.sleep(0.02)
    site.drop(job)
    end(site, job)
    assert site.runs(job) == 1 and not (site.web / job / "CANCEL").exists()


def test_a_cancelled_job_can_be_requeued(site):
    job = "ann/e1"
    site.drop(job, command=HOLD)
    running(site, job)
    site.touch(job, "CANCEL")
    end(site, job, "FAILED")
    (site.web / job / "go").touch()
    site.touch(job)
    end(site, job, attempt=2)
    assert site.runs(job) == 2 and (site.web / job / "out.txt").read_text() == f"input of {job}\n"
