"""Twenty jobs through vision, v11 and b01 while the daemon is killed again and again; run once more, and stopped, from both ends."""

import contextlib
import email
import email.policy
import os
import random
import sys
import time

import pytest
from helpers import wait_for
from lab_kit import USERS, LabSite
from watchties.model import one_line

pytestmark = pytest.mark.slow

KILLS, JOBS = 20, 20
NAMES = ["Exp {} of 3", "it's \"quoted\" {}", "$(touch pwned) {}", "实验 é {}", "a;rm -rf * {}", "back\\slash {}", "#{}"]
NAMES += ["  blanks  {} ", "%s&{}~", "[a]?{}"]
FOLDERS = ("ann", "bob b", "o'neil", "李雷")
COMMAND = """#!/bin/sh
echo run >>runs.log
mkdir -p "plots/x y"
tr a-y b-z <in.bin >"plots/x y/out 'é'.bin"
ln -s "x y/out 'é'.bin" plots/link
touch plots/DONE
sleep 0.3
"""
HOLD = "echo run >>runs.log\nfor _ in $(seq 600); do [ -e go ] && exit 0; sleep 0.1; done\nexit 1\n"
BY_SMTP = lambda text: text.replace('folder = "~/mail"', 'server = "localhost"\nport = 2525')  # noqa: E731


@contextlib.contextmanager
def mail_server(lab):
    """Run an SMTP server on v11; give a function that returns the mails it has taken."""
    inbox = lab.home("v11", "webapp") / "inbox"
    argv = [sys.executable, "-m", "aiosmtpd", "-n", "-u", "-l", "localhost:2525", "-c", "aiosmtpd.handlers.Mailbox", "/home/webapp/inbox"]
    server = lab.start_on("v11", argv, user="webapp")
    try:
        wait_for(lambda: lab.on("v11", ["bash", "-c", ": >/dev/tcp/localhost/2525"], check=False).returncode == 0, 20, 0.2)
        yield lambda: [email.message_from_bytes(p.read_bytes(), policy=email.policy.default) for p in (inbox / "new").glob("*")]
    finally:
        lab.on("v11", ["pkill", "-f", "aiosmtpd.handlers"], check=False)
        server.wait(10)


def processes(lab, host):
    """Return the command lines on a host that are not its first process, its sshd or ours that asks."""
    lines = lab.on(host, ["ps", "-e", "-ww", "-o", "pid=,ppid=,user:20=,args="]).stdout.splitlines()
    rows = [line.split(None, 3) for line in lines]
    ours = "sshd: /usr/sbin/sshd", "ps -e", "[", "sleep 1"
    return [f"{row[2]}: {row[3]}" for row in rows if row[0] != "1" and not row[3].startswith(ours)]


def owners(path):
    return {found.lstat().st_uid for found in [path, *path.rglob("*")]}


@pytest.fixture(scope="module")
def names():
    return [f"{FOLDERS[n % 4]}/{NAMES[n % len(NAMES)].format(n)}" for n in range(JOBS)]


def test_twenty_jobs_run_once_and_come_back_though_the_daemon_is_killed_twenty_times(lab, names):
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    draw, data = random.Random(seed), {job: os.urandom(50_000) for job in names}
    with mail_server(lab) as mails, LabSite(lab, max_running=6, change=BY_SMTP) as site:
        for job in names:
            site.drop(job, COMMAND, files={"in.bin": data[job]})
            time.sleep(draw.uniform(0.02, 1.6))
            site.kill()
            site.start()
        began = time.monotonic()
        site.wait(lambda: all(site.marker(job)[0] == "DONE" for job in names), 120, "all DONE")
        site.wait(site.quiet, 60, "quiet")
        print(f"all at rest {time.monotonic() - began:.1f} s after the last kill")
        shift = bytes.maketrans(bytes(range(97, 122)), bytes(range(98, 123)))
        for job in names:
            where = site.web / job
            assert (site.runs(job), (where / "runs.log").read_text()) == (1, "run\n")
            assert (where / "plots/x y/out 'é'.bin").read_bytes() == data[job].translate(shift)
            assert os.readlink(where / "plots/link") == "x y/out 'é'.bin"
            assert (where / "plots/DONE").exists()
            assert sorted(p.name for p in where.iterdir() if p.name.isupper()) == ["DONE"]
            for tree, user in (site.web, "www-data"), (site.mirror, "webapp"), (site.compute, "runcompties"):
                assert owners(tree / job) == {USERS[user]}
        told = {mail["Message-ID"]: mail for mail in mails() if "Experiment:" in mail.get_body(("plain",)).get_content()}
        assert len(told) == JOBS  # after a kill in the very moment of sending one may come twice, with the same Message-ID
        for job in names:
            assert [m for m in told.values() if f"Experiment:  {one_line(job.partition('/')[2])}\n" in m.get_body(("plain",)).get_content()], job
        site.wait_ready()
        masters = [line for line in processes(lab, "v11") if "ssh -T -M" in line]
        assert len(masters) == 6, masters  # two for each of three hosts: those of the twenty before are gone
        assert site.stop() == 0, site.said()
        site.process = None
    for host, user in ("v11", "webapp"), ("b01", "runcompties"), ("elgato", "runcompties"), ("vision", "www-data"):
        wait_for(lambda: not [p for p in processes(lab, host) if p.startswith((user, "root: sshd"))], 20), (host, processes(lab, host))
    assert not [found for host in ("vision", "v11", "b01") for found in (lab.folder / host).rglob("pwned")]


def test_a_job_runs_once_more_from_the_web_host_and_from_the_mirror_and_is_stopped_from_both(lab):
    job, other = "ann/it's again", "bob/ stop \"it\""
    with LabSite(lab) as site:
        site.drop(job)
        site.drop(other, HOLD)
        site.wait_state(job, "DONE")
        site.drop(job, files={"in.txt": "second\n"})
        site.wait(lambda: site.marker(job)[1].get("attempt") == "2" and site.marker(job)[0] == "DONE", 60, "the second attempt")
        assert (site.web / job / "out.txt").read_text() == "second\n"
        (site.mirror / job / "in.txt").write_text("third\n")
        site.watchties("requeue", job)
        site.wait(lambda: site.marker(job)[1].get("attempt") == "3" and site.marker(job)[0] == "DONE", 60, "the third attempt")
        assert (site.web / job / "out.txt").read_text() == "third\n"
        assert (site.web / job / "runs.log").read_text() == "run\n" * 3
        seconds = []
        for stop in lambda: site.touch(other, "CANCEL"), lambda: site.watchties("cancel", other):
            runs = len(seconds) + 1
            site.wait(lambda: site.runs(other) == runs, 60, "it runs")
            site.wait_state(other, "SUBMITTED")
            began = time.monotonic()
            stop()
            fields = site.wait_state(other, "FAILED", 30)
            seconds.append(time.monotonic() - began)
            assert (fields["cause"], fields["attempt"]) == ("cancelled", str(runs))
            assert not [p for p in processes(lab, "b01") if p.startswith("runcompties") and "seq 600" in p or "sleep 0.1" in p]
            site.wait(lambda: sorted(p.name for p in (site.web / other).iterdir() if p.name.isupper()) == ["FAILED"], 20, "CANCEL is gone")
            if len(seconds) == 1:
                site.touch(other)
        print("cancelled within", [f"{s:.1f} s" for s in seconds])
        assert max(seconds) < 15
        site.wait(site.quiet, 30, "quiet")
        assert (site.runs(job), site.runs(other)) == (3, 2)
