"""Hooks that misbehave, with the real daemon: they crash, hang, are killed in mid transfer; and what a site's own may rely on."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import HOOKS, put
from site_kit import Site
from trouble_kit import quick, times

HOLD = "echo run >> runs.log; for _ in $(seq 2000); do [ -e go ] && break; sleep 0.05; done; cat in.txt > out.txt\n"
RULE = """
[[rule]]
name = "{name}"
on = ["mirror:DONE"]
{more}
retry = {{ first = "0.5s", maximum = "1s", give_up_after = "{give_up}" }}
"""


def rule(name, more="", give_up="1d"):
    return RULE.format(name=name, more=more, give_up=give_up)


def log_of(site, name):
    path = site.state / "log" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def end(site, job, state="DONE", seconds=40):
    fields = site.wait_state(job, state, seconds)
    site.wait(site.quiet, 30, "quiet")
    return fields


def working_on(path):
    """Return pid -> parent of the rsync processes whose arguments have to do with a directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else [b""]
            if words[0].endswith(b"rsync") and any(str(path).encode() in word for word in words):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
    return found


# ---- a site's own hooks ----

OWN = """set -eu
env | grep ^WATCHTIES_ | sort > "$WATCHTIES_JOB_DIR/env.txt"
pwd > "$WATCHTIES_JOB_DIR/pwd.txt"
cat > "$WATCHTIES_JOB_DIR/stdin.txt"
ls "$WATCHTIES_JOB_DIR" > "$WATCHTIES_JOB_DIR/ls.txt"
cp "$WATCHTIES_JOBS" "$WATCHTIES_JOB_DIR/jobs.txt"
ls -l "$WATCHTIES_CONFIG" > "$WATCHTIES_JOB_DIR/config.txt"
echo "plotted $WATCHTIES_JOB"
"""


def test_ten_lines_of_shell_are_a_hook(tmp_path):
    with Site(tmp_path, rules=rule("plots", 'after = ["push"]\nhook = "own plots"'), hooks={"own plots": OWN}) as site:
        job = "ann b/it's $(1)"
        site.drop(job)
        token = end(site, job)["token"]
        where = site.mirror / job
        env = dict(line.split("=", 1) for line in (where / "env.txt").read_text().splitlines())
        assert env.pop("WATCHTIES_RUN").startswith("plots-") and int(env.pop("WATCHTIES_LOCK_FD")) > 2
        for name in "CONFIG", "JOBS", "RESULT":
            assert env.pop(f"WATCHTIES_{name}").startswith(str(site.state))
        assert {key.removeprefix("WATCHTIES_"): value for key, value in env.items() if not key.endswith("_DIR") or "JOB" in key} == {
            "RULE": "plots", "HOST": "", "TREE": "main", "JOB": job, "JOB_DIR": str(where), "MARKER": "DONE", "ATTEMPT": "1",
        }  # fmt: skip
        assert (where / "stdin.txt").read_bytes() == b"" and (where / "config.txt").read_text().startswith("-rw-------")
        assert f'"token": "{token}"' in (where / "jobs.txt").read_text() and '"push": "done"' in (where / "jobs.txt").read_text()
        assert f"plotted {job}" in log_of(site, "plots")
        assert site.runs(job) == 1 and not (site.web / job / "env.txt").exists()


LATER = """
[ -e "$WATCHTIES_JOB_DIR/again" ] && exit 0
touch "$WATCHTIES_JOB_DIR/again"
echo not yet >&2
exit 75
"""
BATCH = """
grep -o '"job": "[^"]*"' "$WATCHTIES_JOBS" | while read -r key job; do
    case $job in
    *bad*) echo "{\\"job\\": $job, \\"outcome\\": \\"failed\\", \\"reason\\": \\"no plot for this one\\"}" ;;
    *) echo "{\\"job\\": $job, \\"outcome\\": \\"done\\"}" ;;
    esac
done >> "$WATCHTIES_RESULT"
echo junk >> "$WATCHTIES_RESULT"
exit 1
"""


def test_exit_codes_and_result_lines_decide_job_by_job(tmp_path):
    rules = rule("later") + rule("plots", "batch = 50", give_up="1s")
    with Site(tmp_path, rules=rules, hooks={"later": LATER, "plots": BATCH}) as site:
        for job in "ann/good", "ann/bad":
            site.drop(job)
        for job in "ann/good", "ann/bad":
            site.wait_state(job, "DONE")
        site.wait(lambda: "ann/bad: plots gave up: no plot for this one" in log_of(site, "daemon"), 20, "the administrator is told")
        site.wait(lambda: site.record("ann/good").ended.get("later@DONE") == "done", 20, "later")
        assert site.record("ann/good").ended["plots@DONE"] == "done"
        assert site.record("ann/bad").ended["plots@DONE"] == "gave up"
        assert "later" not in site.record("ann/good").tries and site.marker("ann/bad")[0] == "DONE"
        assert "no plot for this one" in site.watchties("status", "ann/bad").stdout
        assert log_of(site, "later").count("start ") == 4


CRASH = 'echo "it broke here" >&2; kill -SEGV $$\n'
HANG = 'echo $$ >> "$WATCHTIES_JOB_DIR/pids"; sleep 1000 & echo $! >> "$WATCHTIES_JOB_DIR/pids"; wait\n'


def test_a_hook_that_crashes_or_hangs_is_given_up_and_holds_up_nothing_else(tmp_path):
    rules = rule("crash", give_up="1s") + rule("hang", 'timeout = "1s"', give_up="1s")
    with Site(tmp_path, rules=rules, hooks={"crash": CRASH, "hang": HANG}, daemon='grace = "2s"\nreconcile = "1s"') as site:
        site.drop("ann/e1")
        site.wait_state("ann/e1", "DONE", 20)
        site.wait(lambda: len(site.letters()) == 1, 5, "the mail waits for neither")
        how = lambda rule: site.record("ann/e1").ended.get(f"{rule}@DONE")  # noqa: E731
        site.wait(lambda: how("crash") == how("hang") == "gave up", 30, "given up")
        assert "it broke here" in log_of(site, "crash") and "took longer than 1 s" in log_of(site, "hang")
        for pid in (site.mirror / "ann/e1/pids").read_text().split():
            assert not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text()
        site.drop("bob/e2")
        site.wait_state("bob/e2", "DONE", 20)
        for name in "crash", "hang":
            site.wait(lambda name=name: f"ann/e1: {name} gave up" in log_of(site, "daemon"), 10, "it is told")
        assert site.stop() == 0
        before = site.record("ann/e1").tries["crash"]["count"]
        site.start()  # another daemon, which tries it again and again
        site.wait(lambda: site.record("ann/e1").tries["crash"]["count"] > before, 30, "it is tried again")
        site.wait(lambda: times(site, "main:ann/e1: crash gave up") == 1, 10, "told once, and not for each try")


# ---- hooks that are killed ----


def test_a_hook_killed_in_mid_rsync_leaves_its_jobs_busy_until_the_rsync_ends(tmp_path):
    def change(text):
        return text.replace("[host.b01]", 'bwlimit = "1M"\n[host.b01]')

    with Site(tmp_path, change=change) as site:
        site.drop("ann/e1", files={"data.bin": os.urandom(8_000_000)})
        found = site.wait(lambda: working_on(site.web), 20, "rsync is at work")
        hooks = set(found.values()) - set(found)
        assert len(hooks) == 1
        os.kill(hooks.pop(), signal.SIGKILL)
        time.sleep(1)
        orphans = working_on(site.web)
        assert orphans and log_of(site, "pull").count("start ") == 1, "the orphan keeps the job busy"
        site.kill()  # and keeps it busy for the next daemon
        site.start()
        site.wait_ready()
        time.sleep(0.5)
        assert set(working_on(site.web)) <= set(orphans) and log_of(site, "pull").count("start ") == 1
        end(site, "ann/e1")
        assert site.runs("ann/e1") == 1 and log_of(site, "pull").count("start ") == 2
        assert (site.compute / "ann/e1/data.bin").read_bytes() == (site.web / "ann/e1/data.bin").read_bytes()


def test_a_forkserver_that_is_killed_makes_no_hook_look_done(tmp_path):
    def change(text):
        return text.replace("[host.b01]", 'bwlimit = "1M"\n[host.b01]')

    with Site(tmp_path, change=change) as site:
        site.drop("ann/e1", command="echo run >> runs.log; head -c 2000000 /dev/urandom > big.out\n")
        site.wait(lambda: site.record("ann/e1").phase == "DONE", 20, "it is fetched")
        found = site.wait(lambda: working_on(site.web), 20, "the push is at work")
        servers = [p for p in Path("/proc").iterdir() if p.name.isdigit() and is_forkserver(p, site.process.pid)]
        assert len(servers) == 1
        for pid in int(servers[0].name), *(set(found.values()) - set(found)):
            os.kill(pid, signal.SIGKILL)
        end(site, "ann/e1")
        assert site.runs("ann/e1") == 1 and log_of(site, "push").count("start ") == 2
        assert (site.compute / "ann/e1/big.out").read_bytes() == (site.web / "ann/e1/big.out").read_bytes()
        assert len(list((site.state / "fork").iterdir())) == 1


def test_a_daemon_that_is_killed_leaves_no_directory_of_its_forkserver_s(tmp_path, monkeypatch):
    deep = tmp_path / ("a state directory so deep that a socket there has no short path " * 2)
    (deep / "tmp").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep / "tmp"))
    site = Site(deep)
    for job in "ann/e1", "ann/e2":
        with site:
            site.drop(job)
            end(site, job)
            assert len(list((site.state / "fork").iterdir())) == 1
            site.kill()
    with site:
        site.wait_ready()
    assert not list((site.state / "fork").iterdir()) and not list((deep / "tmp").glob("pymp-*"))


def is_forkserver(process, parent):
    try:
        words, ppid = (process / "cmdline").read_bytes(), (process / "stat").read_text().rpartition(") ")[2].split()[1]
    except OSError:
        return False
    return b"multiprocessing.forkserver" in words and int(ppid) == parent


def test_the_daemon_ends_with_its_hooks_when_they_take_too_long(tmp_path):
    def change(text):
        return text.replace("[host.b01]", 'bwlimit = "100K"\n[host.b01]')

    site = Site(tmp_path, change=change, daemon='stop_timeout = "1s"')
    with site:
        site.drop("ann/e1", files={"data.bin": os.urandom(3_000_000)})
        site.wait(lambda: working_on(site.web), 20, "rsync is at work")
        began = time.monotonic()
        assert site.stop() == 0 and time.monotonic() - began < 12
        assert not working_on(site.web)
        text = (site.conf / "10-site.toml").read_text()
        (site.conf / "10-site.toml").write_text(text.replace('bwlimit = "100K"\n', ""))
        site.start()
        end(site, "ann/e1")
        assert site.runs("ann/e1") == 1


def test_one_bad_job_spoils_no_batch(tmp_path):
    with Site(tmp_path) as site:
        jobs = [f"user{n}/e{n}" for n in range(6)]
        for job in jobs:
            site.drop(job, command=HOLD)
        for job in jobs:
            site.wait(lambda job=job: site.runs(job) == 1, 20, "it runs")
        site.kill()
        shutil.move(site.mirror / jobs[0], tmp_path / "moved")  # its directory in the mirror becomes a link
        (site.mirror / jobs[0]).symlink_to(tmp_path / "moved")
        shutil.rmtree(site.mirror / jobs[1])  # or goes
        put(site.mirror / jobs[2] / ".watchties/record.json", "{junk")
        shutil.rmtree(site.web / jobs[3])  # or the job goes on the web host
        put(site.mirror / jobs[4] / "out.txt/in the way")
        for job in jobs:
            put(site.compute / job / "go")
        site.start()
        site.wait_state(jobs[5], "DONE", 20)
        site.drop("bob/after")
        site.wait_state("bob/after", "DONE", 20)
        assert "record.json is damaged" in (site.base / "daemon.out").read_text()


# ---- success ----


def test_success_is_what_the_tree_says_and_old_evidence_does_not_count(tmp_path):
    tree = '[tree.main.success]\nstderr_empty = true\nrequire = ["out.txt"]\nforbid = ["FAILURE_REPORT.txt"]'
    with Site(tmp_path, tree=tree) as site:
        site.drop("ann/fine")
        site.drop("ann/noisy", command="cat in.txt > out.txt; echo hm >&2\n")
        site.drop("ann/lacks", command="true\n")
        site.drop("ann/reports", command="echo run >> runs.log; cat in.txt > out.txt; [ -e good ] || echo why > FAILURE_REPORT.txt\n")
        for job, words in ("noisy", "remote_ties_run.err is not empty"), ("lacks", "no out.txt"), ("reports", "FAILURE_REPORT.txt"):
            fields = site.wait_state(f"ann/{job}", "FAILED", 20)
            assert (fields["cause"], fields["exit"]) == ("success", "0") and words in fields["reason"]
        end(site, "ann/fine")
        assert (site.web / "ann/reports/FAILURE_REPORT.txt").exists()
        put(site.web / "ann/reports/good")
        site.touch("ann/reports")
        end(site, "ann/reports")
        assert site.runs("ann/reports") == 2


def test_a_submit_command_that_is_killed_has_refused_nothing(tmp_path):
    setup = """echo() { if [ -e '%s' ]; then rm '%s'; sh -c 'kill -9 $PPID'; fi; command echo "$@"; }""" % ((tmp_path / "strike",) * 2)
    more = f'[host.b01]\nsetup = """{setup}"""\npoll = "1s"'
    with Site(tmp_path, daemon='grace = "1s"', edit=quick("submit"), change=lambda text: text.replace("[host.b01]", more)) as site:
        put(tmp_path / "strike", "")
        site.drop("ann/e1")
        assert end(site, "ann/e1")["attempt"] == "1" and site.runs("ann/e1") == 1
        assert not (tmp_path / "strike").exists()
        assert "it is asked once more" in log_of(site, "submit")


# ---- what goes between its end and its fetch ----

GOES = """if mkdir '{once}' 2>/dev/null; then rm -rf '{there}'; fi
exec '{python}' '{hook}'
"""


@pytest.mark.parametrize("resubmit, state, attempt", [(0, "FAILED", 1), (1, "DONE", 2)])
def test_a_job_removed_before_its_fetch_is_lost_or_tried_again_as_its_tree_says(tmp_path, resubmit, state, attempt):
    there = tmp_path / "b01/compties/user_data/ann/gone"
    own = GOES.format(once=tmp_path / "gone", there=there, python=sys.executable, hook=HOOKS / "fetch")
    with Site(tmp_path, tree=f"resubmit_lost = {resubmit}", hooks={"fetch": own}, edit=quick("fetch", "cancel", "submit")) as site:
        site.drop("ann/gone")
        fields = end(site, "ann/gone", state)
        assert (tmp_path / "gone").is_dir(), "the directory was removed by the hook"
        assert site.record("ann/gone").attempt == attempt
        assert state == "DONE" or (fields["cause"], "removed" in fields["reason"]) == ("lost", True), fields
        assert site.runs("ann/gone") == (1 if state == "DONE" else 0), "in the directory that is there now"
