"""watchties transfer as a real process: what one pass does, when it ends, and who else may be at work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import wait_for
from site_kit import Site

pytestmark = pytest.mark.slow

# A hook of a site's own that shows that it has begun, ends when it is let, and says then that it has done its work: who has not
# started it learns that from its results.
HOLD = """cd "$(dirname "$WATCHTIES_CONFIG")/.." && echo "$WATCHTIES_JOB" >>began && cat go >/dev/null && echo over >>over.log
printf '{"tree": "%s", "job": "%s", "outcome": "done"}\\n' "$WATCHTIES_TREE" "$WATCHTIES_JOB" >>"$WATCHTIES_RESULT"
"""
RULE = '\n[[rule]]\nname = "hold"\non = ["mirror:DONE"]\nafter = ["push"]\n'
HELD_JOB = "echo run >>runs.log\nwhile [ ! -e go ]; do sleep 0.05; done\ncat in.txt >out.txt\n"
PROGRAM = os.path.join(os.path.dirname(sys.executable), "watchties")


@pytest.fixture
def site(tmp_path):
    """A site whose daemon is started by nobody."""
    site = Site(tmp_path)
    yield site
    assert not site.process, "the test ends its daemon itself"


@pytest.fixture
def held(tmp_path):
    """A site whose hook `hold` is at work for a job, within a pass. Give (site, the pass)."""
    site = Site(tmp_path, rules=RULE, hooks={"hold": HOLD}, daemon='grace = "2s"\nstop_timeout = "1s"')
    os.mkfifo(tmp_path / "go")
    site.drop("ann/one", HELD_JOB)
    one(site)
    has_ended(site, "ann/one")
    process = subprocess.Popen([PROGRAM, "transfer"], env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for((tmp_path / "began").exists, 30)
        yield site, process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        site.stop()
        for pid in orphans(site):
            os.kill(pid, signal.SIGKILL)


def orphans(site):
    """Return the processes that read the FIFO of a hook still."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == str(site.base):
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    found += [int(entry)] if file.read().startswith(b"cat\0go") else []
        except OSError:
            continue
    return found


def one(site, *words):
    """Make a pass; return what it printed. It must succeed and say nothing on standard error."""
    done = site.watchties("transfer", *words)
    assert not done.stderr or words, done.stderr
    return done.stdout


def has_ended(site, job):
    """Let a HELD_JOB end, and wait until it has."""
    (site.compute / job / "go").touch()
    wait_for(lambda: (site.compute / job / "DONE").exists())


def let_go(site):
    with open(site.base / "go", "w"):
        pass


def test_passes_carry_a_job_and_leave_what_runs_to_the_next(site):
    site.drop("ann/one", HELD_JOB)
    site.drop("bob/none", command=None)
    said = one(site)
    assert "1 FAILED, 1 PENDING, 1 SUBMITTED" in said and "0 jobs waiting, 1 running, 0 coming back; 0 runs at work" in said
    assert (site.marker("ann/one")[0], site.marker("bob/none")[0]) == ("SUBMITTED", "FAILED")
    assert site.letter("bob/none"), "mail is sent in the same pass"
    wait_for(lambda: site.runs("ann/one"))
    began = time.monotonic()
    assert one(site).startswith("nothing new; 0 jobs waiting, 1 running")
    print(f"a pass with nothing to do: {time.monotonic() - began:.2f} s")
    has_ended(site, "ann/one")
    assert "1 DONE" in one(site)
    assert site.marker("ann/one")[0] == "DONE" and (site.web / "ann/one/out.txt").read_text() == "input of ann/one\n"
    assert site.letter("ann/one") and site.runs("ann/one") == 1 and site.quiet()
    assert one(site).startswith("nothing new; 0 jobs waiting, 0 running, 0 coming back")
    assert not [name for name in os.listdir(site.mail) if name.startswith("notice")], "nobody is told of each start"
    site.touch("ann/one")
    assert "1 PENDING, 1 SUBMITTED" in one(site)
    wait_for(lambda: site.runs("ann/one") == 2)
    one(site)
    assert site.watchties("status").stdout.startswith("no daemon is at work")


def test_a_host_that_is_down_ends_no_pass_in_failure_and_holds_up_nobody(site):
    os.rename(site.compute.parent, site.base / "away")
    site.drop("ann/one", HELD_JOB)
    said = one(site)
    assert "1 jobs waiting" in said and "hosts down: b01" in said and site.marker("ann/one")[0] == "PENDING"
    os.rename(site.base / "away", site.compute.parent)
    assert "1 SUBMITTED" in one(site)
    has_ended(site, "ann/one")
    assert "1 DONE" in one(site) and site.runs("ann/one") == 1


def test_a_second_one_and_a_daemon_that_takes_over(held):
    site, first = held
    second = site.watchties("transfer")
    assert f"a pass is at work already in {site.state} (pid {first.pid})" in second.stdout and not second.stderr
    assert f"a pass is at work, pid {first.pid}" in site.watchties("status").stdout
    shown = json.loads(site.watchties("status", "--json").stdout)
    assert (shown["daemon"], shown["transfer"]) == (None, str(first.pid))
    site.start().wait_ready()
    out, err = first.communicate(timeout=30)
    assert (first.returncode, err) == (0, "") and "a daemon takes over" in out
    beside = site.watchties("transfer")
    assert f"a watchties daemon is at work already in {site.state} (pid {site.process.pid})" in beside.stdout and not beside.stderr
    assert len(orphans(site)) == 1, "the hook was left alone"
    let_go(site)
    site.wait(site.quiet, 30, "the daemon has taken in what the pass began")
    assert (site.base / "began").read_text() == "ann/one\n" and (site.base / "over.log").read_text() == "over\n"


def test_a_pass_that_is_killed_leaves_its_hook_to_the_next(held):
    site, first = held
    first.kill()
    first.wait()
    assert site.watchties("status").stdout.startswith("no daemon is at work"), "the lock has gone with it"
    following = subprocess.Popen([PROGRAM, "transfer"], env=site.environment(), stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: "a pass is at work" in site.watchties("status").stdout)
        let_go(site)
        out, _ = following.communicate(timeout=60)
    finally:
        if following.poll() is None:
            following.kill()
            following.communicate()
    assert following.returncode == 0 and site.quiet()
    assert (site.base / "over.log").read_text() == "over\n" and (site.base / "began").read_text() == "ann/one\n"
    assert site.runs("ann/one") == 1


def test_a_pass_that_is_told_to_end_stops_its_hooks_and_the_next_goes_on(held):
    site, first = held
    first.terminate()
    out, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (0, "") and "told to end: the next pass goes on" in out
    assert not orphans(site) and not (site.base / "over.log").exists()
    following = subprocess.Popen([PROGRAM, "transfer"], env=site.environment(), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (site.base / "began").read_text() == "ann/one\n" * 2, 60)
    let_go(site)
    assert following.communicate(timeout=60) and following.returncode == 0 and site.quiet()


def test_a_wrong_configuration_is_told(site):
    (site.conf / "50-more.toml").write_text("[host.b02]\nrole = 'comput'\n")
    done = site.watchties("transfer", check=False)
    assert done.returncode == 2 and "50-more.toml" in done.stderr and not site.state.exists()


def test_the_line_for_cron_is_silent_and_does_its_work(site, tmp_path):
    line = (Path(__file__).parents[2] / "contrib/cron/watchties").read_text().splitlines()[-1]
    minute, command = line.split(" ", 5)[:5], line.split(" ", 5)[5]
    assert minute == ["*"] * 5 and "%" not in command  # % ends a command in crontab(5)
    program = tmp_path / "watchties/.venv/bin/watchties"
    program.parent.mkdir(parents=True)
    program.symlink_to(PROGRAM)
    site.drop("ann/one", HELD_JOB)
    places = {name: value for name, value in site.environment().items() if name.startswith("WATCHTIES_")}
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", **places}
    done = subprocess.run(["/bin/sh", "-c", command], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and site.marker("ann/one")[0] == "SUBMITTED"
    (site.compute / "ann/one/go").touch()


def test_a_job_that_is_named_finds_a_host_that_holds_as_many_as_it_may(tmp_path):
    site = Site(tmp_path, max_running=1)
    site.drop("ann/held", HELD_JOB)
    one(site)
    assert site.marker("ann/held")[0] == "SUBMITTED"
    site.drop("bob/named")
    submit = [os.path.join(os.path.dirname(PROGRAM), "submit_ties_jobs")]
    done = subprocess.run(submit, input="bob/named\n", env=site.environment(), capture_output=True, text=True, timeout=60)
    assert site.marker("bob/named")[0] == "PENDING" and not site.runs("bob/named"), done
    has_ended(site, "ann/held")
    one(site)
    wait_for(lambda: one(site) and site.marker("bob/named")[0] == "DONE", 30)
    assert site.runs("ann/held") == site.runs("bob/named") == 1
