"""Descriptors, processes, memory and inotify watches are short, or events too many: said, lived through, and it goes on by itself."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from resources_kit import Place, children_of, job_names, mount, own_mounts  # noqa: F401
from trouble_kit import quick

RULES = ("pull", "submit", "report", "fetch", "push", "mail")
USER = 21_217  # nobody else's uid
QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


def limit(pid, kind, value):
    """Set the soft limit of a process."""
    _, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, hard))


def as_user(*words, **more):
    """Run a command as the user whose processes are limited."""
    argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *words]
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)


def limit_processes(site, value):
    """Set the limit of all processes of the daemon, as their own user: root may not, where it is not all-powerful."""
    for pid in [site.process.pid, *children_of(site.process.pid)]:
        as_user("prlimit", f"--pid={pid}", f"--nproc={value}:")


@pytest.mark.slow
def test_without_descriptors_nothing_is_lost(tmp_path, seed, long, figure):
    draw, count = random.Random(seed), 200 if long else 12
    with Place(tmp_path, edit=quick(*RULES), daemon='grace = "2s"\nreconcile = "10s"') as site:
        site.wait_ready()
        jobs, rest = job_names(count), max(int(fd) for fd in os.listdir(f"/proc/{site.process.pid}/fd")) + 1
        for n, job in enumerate(jobs):
            site.drop(job)
            if n % max(1, count // 6) == 0:
                limit(site.process.pid, resource.RLIMIT_NOFILE, rest + draw.randint(-3, 6))
                time.sleep(draw.uniform(0, 0.5))
        low = rest - draw.randint(0, 3)
        limit(site.process.pid, resource.RLIMIT_NOFILE, low)
        last = [*job_names(5, "last")]
        for job in last:
            site.drop(job)
        site.wait(lambda: "Too many open files" in site.said(), 60, "it is said")
        print(site.status())
        limit(site.process.pid, resource.RLIMIT_NOFILE, 1024)
        site.all_end([*jobs, *last])
        site.told_once()
        assert site.stop() == 0
    figure(f"down to {low} descriptors: {count + 5} jobs, 0 lost, 0 twice")


@pytest.mark.slow
def test_with_little_memory_the_daemon_carries_many_jobs(tmp_path, long, figure):
    count, room = (2000, 96 << 20) if long else (100, 96 << 20)
    with Place(tmp_path, max_running=5000) as site:
        site.wait_ready()
        used = int(Path(f"/proc/{site.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        limit(site.process.pid, resource.RLIMIT_AS, used + room)
        jobs = job_names(count)
        for job in jobs:
            site.drop(job)
        site.all_end(jobs, 600)
        assert site.stop() == 0
    figure(f"RLIMIT_AS {room >> 20} MB above what it has at rest: {count} jobs, 0 lost, 0 twice")


def open_the_way_to(path):
    """Have others reach a path, in this mount namespace only: what nobody else may enter is covered by a directory that holds just that."""
    closed = next((above for above in list(Path(path).parents)[::-1] if not above.stat().st_mode & 0o001), None)
    if closed:
        keep = Path("/mnt/keep") / Path(path).name
        keep.mkdir(parents=True)
        mount("--bind", path, keep)
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", closed)
        Path(path).mkdir(parents=True)
        mount("--bind", keep, path)


@pytest.mark.slow
def test_without_processes_nothing_is_lost(own_mounts, seed, long, figure):  # noqa: F811
    """As a user that may have few processes; the limit counts all of theirs, so that of every process is set."""
    draw, count, base = random.Random(seed), 60 if long else 8, Path("/mnt/site")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt")
    base.mkdir()
    for path in dict.fromkeys([sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])]):
        open_the_way_to(path)
    if as_user("test", "-x", sys.executable).returncode:
        pytest.skip(f"another user may not run {sys.executable}")
    site = Place(base, edit=quick(*RULES), prefix=["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"])
    give = lambda: subprocess.run(["chown", "-R", f"{USER}:{USER}", base], check=True)  # noqa: E731
    give()
    with site:
        site.wait_ready()
        pids = [site.process.pid, *children_of(site.process.pid)]
        jobs, least = job_names(count), 0
        for n, job in enumerate(jobs):
            hidden = base / "hidden" / job
            site.web, web = base / "hidden", site.web
            site.drop(job)
            site.web = web
            give()
            (web / job).parent.mkdir(exist_ok=True)
            os.chown((web / job).parent, USER, USER)
            hidden.rename(web / job)
            if n == 1:
                least = len(pids) + draw.randint(0, 4)
                limit_processes(site, least)
        site.wait(lambda: "temporarily unavailable" in site.said(), 60, "it is said")
        print(site.status())
        limit_processes(site, 1000)
        site.all_end(jobs)
        site.told_once()
        assert site.stop() == 0
    figure(f"down to {least} processes, as another user: {count} jobs, 0 lost, 0 twice")


@pytest.mark.slow
def test_without_watches_it_lives_on_reconcile_and_status_names_the_sysctl(tmp_path, long, figure):
    count, watches = (300, 40) if long else (30, 12)
    prefix = ["unshare", "-U", "-r", "sh", "-c", f'echo {watches} >/proc/sys/user/max_inotify_watches && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace with a limit of its own is to be had here (unshare -U -r)")
    with Place(tmp_path, prefix=prefix, daemon='grace = "2s"\nreconcile = "5s"') as site:
        site.wait_ready()
        jobs = job_names(count)
        for job in jobs:
            site.drop(job)
        print(site.says("fs.inotify.max_user_watches", str(site.mirror), "reconcile"))
        site.all_end(jobs, 240)
        for job in jobs[:5]:
            site.touch(job, tree=site.mirror)
        site.all_end(jobs[:5], 120, runs=2)
        assert "trouble" in site.status() and site.stop() == 0
    figure(f"{watches} watches: {count} jobs, 0 lost, 0 twice")


@pytest.mark.slow
def test_events_that_overflow_the_queue_lose_no_request(tmp_path, seed, long, figure):
    """All at once, in the mirror and on the web host, while the daemon and its relays are stopped, so that none is read."""
    markers, count = (100_000, 400) if long else (20_000, 40)
    if int(QUEUE.read_text()) >= markers:
        pytest.skip(f"{QUEUE} holds more events than this test makes; and it cannot be set for one test alone")
    draw = random.Random(seed)
    with Place(tmp_path, max_running=1000) as site:
        site.wait_ready()
        old, new = job_names(count, "old"), job_names(count, "new")
        for job in old:
            site.drop(job)
        site.all_end(old, 300)
        for job in new:
            (site.web / job).mkdir(parents=True)
            for name, text in ("command", "echo run >> runs.log\ncat in.txt > out.txt\n"), ("in.txt", f"input of {job}\n"):
                (site.web / job / name).write_text(text)
        pids = [site.process.pid, *[pid for pid in children_of(site.process.pid) if b"relay.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for _ in range(markers // 2):
            site.touch(draw.choice(old), tree=site.mirror)
            site.touch(draw.choice(new))
        for job in old:
            site.touch(job, tree=site.mirror)
        for job in new:
            site.touch(job)
        for pid in pids[::-1]:
            os.kill(pid, signal.SIGCONT)
        site.all_end(old, 400, runs=2)
        site.all_end(new, 400)
        assert site.stop() == 0
    figure(f"{markers + 2 * count} markers at once, a queue of {QUEUE.read_text().strip()} events: {2 * count} jobs, 0 lost, 0 twice")
