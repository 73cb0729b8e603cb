"""A daemon that begins where another has left off: with another configuration, hooks still at work, results that nobody can read."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from site_kit import Site
from watchties import runs
from watchties.journal import Reader

RULE = """
[[rule]]
name = "{name}"
on = ["mirror:{on}"]
timeout = "{timeout}"
"""
HANG = 'echo $$ > "$WATCHTIES_JOB_DIR/pid.new"; mv "$WATCHTIES_JOB_DIR/pid.new" "$WATCHTIES_JOB_DIR/pid"; exec sleep 1000\n'
HOLD = "echo run >> runs.log; for _ in $(seq 2000); do [ -e go ] && break; sleep 0.05; done\n"
SMALL_STEPS = """
import sys
from watchties import daemon, engine, watch
from watchties.cli import main
engine.AT_ONCE, daemon.SLICE, scan = 1, -1, watch.MirrorWatch.scan
watch.MirrorWatch.scan = lambda mirror: iter(sorted(list(scan(mirror)) * 1000, key=lambda job: job[0]))  # slow; what runs comes last
sys.argv = ["watchties", "run"]
main()
"""


def is_there(pid):
    return Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_a_run_of_a_tree_that_is_gone_stops_no_daemon(tmp_path):
    """Nor one of a tree whose hook has ended meanwhile."""
    with Site(tmp_path, rules=RULE.format(name="plots", on="DONE", timeout="1h"), hooks={"plots": HANG}) as site:
        site.drop("ann/e1")
        pid = int(site.wait((site.mirror / "ann/e1/pid").exists, 40, "the hook is at work") and (site.mirror / "ann/e1/pid").read_text())
        site.kill()
        text = (site.conf / "10-site.toml").read_text()
        (site.conf / "10-site.toml").write_text(text.replace("[tree.main]", "[tree.other]"))
        site.start().wait_ready()
        assert is_there(pid) and [run for run in (site.state / "runs").iterdir() if run.name.startswith("plots")]
        site.kill()
        os.kill(pid, signal.SIGKILL)
        (site.conf.parent / "hooks/plots").write_text("#!/bin/sh\n")
        site.start().wait_ready()
        site.wait(site.quiet, 30, "nothing is left")
        assert site.record("ann/e1").ended["plots@DONE"] == "done"


def test_a_hook_that_hangs_is_ended_in_time_also_by_the_next_daemon(tmp_path):
    with Site(tmp_path, rules=RULE.format(name="plots", on="DONE", timeout="4s"), hooks={"plots": HANG}) as site:
        site.drop("ann/e1")
        pid = int(site.wait((site.mirror / "ann/e1/pid").exists, 40, "the hook is at work") and (site.mirror / "ann/e1/pid").read_text())
        (site.conf.parent / "hooks/plots").write_text("#!/bin/sh\n")
        site.process.send_signal(signal.SIGHUP)
        site.wait(lambda: (site.base / "daemon.out").read_text().count("is at work") == 2, 30, "the next daemon")
        site.wait(lambda: not is_there(pid), 30, "it is ended")
        site.wait(site.quiet, 30, "the rule is done")
        assert "begun by an earlier daemon" in (site.base / "daemon.out").read_text()


def test_results_that_cannot_be_read_stay_and_are_read_again(tmp_path):
    hook = 'rm -f "$WATCHTIES_RESULT" && mkdir "$WATCHTIES_RESULT"\n'
    with Site(tmp_path, rules=RULE.format(name="plots", on="DONE", timeout="1h"), hooks={"plots": hook}) as site:
        site.drop("ann/e1")
        (bad,) = site.wait(lambda: list((site.state / "runs").glob("plots*/result")), 40, "there is a directory")
        site.wait(lambda: "Is a directory" in (site.base / "daemon.out").read_text(), 20, "it is told")
        site.stop()
        (site.conf.parent / "hooks/plots").write_text("#!/bin/sh\n")
        site.start().wait_ready()  # it stops no daemon
        assert bad.is_dir()
        bad.rmdir()
        site.wait(site.quiet, 30, "they were read, and the hook was started again")
        assert site.record("ann/e1").ended["plots@DONE"] == "done"


def test_what_a_site_s_hook_says_does_not_decide_where_the_job_goes(tmp_path):
    fields = '{"since": "yesterday", "lost": "by me", "id": "1", "exit": "9", "cpu_server": "nowhere", "plots": "3"}'
    hook = f"""printf '{{"job": "%s", "outcome": "done", "fields": {fields}}}\\n' "$WATCHTIES_JOB" >> "$WATCHTIES_RESULT"\n"""
    with Site(tmp_path, rules=RULE.format(name="look", on="SUBMITTED", timeout="1h"), hooks={"look": hook}) as site:
        site.drop("ann/e1", command=HOLD)
        rec = site.wait(lambda: (rec := site.record("ann/e1")).ended_as("look") and rec, 40, "the hook has spoken")
        assert rec.fields["plots"] == "3" and isinstance(rec.fields["since"], float)
        (site.compute / "ann/e1/go").touch()
        site.wait_state("ann/e1", "DONE", 40)
        assert site.runs("ann/e1") == 1


def test_a_host_is_given_no_more_than_it_may_hold_while_the_mirror_is_read(tmp_path):
    jobs = [f"user{n}/e{n}" for n in range(8)]
    with Site(tmp_path, max_running=1) as site:
        site.drop("zoe/runs", command=HOLD)
        site.wait_state("zoe/runs", "SUBMITTED", 40)
        for job in jobs:
            site.drop(job, command=HOLD)
        site.wait(lambda: all(site.record(job).phase == "PENDING" for job in jobs), 40, "all are here")
        site.kill()
        for path in site.state.glob("journal.sqlite*"):
            path.unlink()
        with open(site.base / "daemon.out", "ab") as out:
            argv = [sys.executable, "-c", SMALL_STEPS]
            site.process = subprocess.Popen(argv, env=site.environment(), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        site.wait_ready()

        def waits(job):
            row = Reader(site.state / "journal.sqlite").job("main", job)
            return row and "max_running" in row.waiting_on

        site.wait(lambda: any(site.record(job).contacted for job in jobs) or all(map(waits, jobs)), 40, "all wait")
        assert not any(site.record(job).contacted for job in jobs)
        (site.compute / "zoe/runs/go").touch()
        site.wait(lambda: any(site.record(job).contacted for job in jobs), 40, "the next one goes")


def test_whoever_holds_a_file_open_is_found(tmp_path):
    with subprocess.Popen(["sh", "-c", "exec 3>lock; echo; exec sleep 100"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            assert runs.holders(str(tmp_path / "lock")) == [process.pid]
        finally:
            process.kill()


def test_a_hook_at_work_keeps_its_jobs_busy_though_its_rule_is_gone(tmp_path):
    """What it touches is left alone until it ends; then all goes on."""
    hook = 'echo $$ > "$WATCHTIES_JOB_DIR/pid.new"; mv "$WATCHTIES_JOB_DIR/pid.new" "$WATCHTIES_JOB_DIR/pid"; exec sleep 1000\n'
    with Site(tmp_path, rules=RULE.format(name="plots", on="DONE", timeout="1h"), hooks={"plots": hook}) as site:
        site.drop("ann/e1")
        pid = int(site.wait((site.mirror / "ann/e1/pid").exists, 40, "the hook is at work") and (site.mirror / "ann/e1/pid").read_text())
        rules = site.conf / "30-rules.toml"
        rules.write_text(rules.read_text().replace(RULE.format(name="plots", on="DONE", timeout="1h"), ""))
        site.process.send_signal(signal.SIGHUP)
        said = lambda: (site.base / "daemon.out").read_text()  # noqa: E731
        site.wait(lambda: said().count("is at work: main") == 2, 40, "the next daemon")
        assert "there is no rule plots any more; its hook is at work still, and is waited for" in said()
        site.touch("ann/e1")
        site.wait(lambda: "pull waits: a run is at work at mirror" in site.watchties("status", "ann/e1").stdout, 40, "the pull waits")
        site.drop("bob/e1")
        site.wait_state("bob/e1", "DONE", 60)
        assert is_there(pid) and site.runs("ann/e1") == 1
        os.kill(pid, signal.SIGKILL)
        site.wait(lambda: site.runs("ann/e1") == 2, 60, "it ran again")
        site.wait(site.quiet, 40, "nothing is left")
