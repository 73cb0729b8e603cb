"""A daemon with a large tree of jobs that ended long ago: how long it takes to watch and look, its memory, its rest.

Knows: how such a tree is made fast, how to see that a daemon has looked at all of it.
Must not know: how the daemon looks.
"""

import os
import statistics
import subprocess
import time
from pathlib import Path

import figures
import procs
from site_kit import Site
from watchties import record, recordfile
from watchties.model import marker_text

A_USER = 500  # jobs
ROUNDS = 3
LIMIT = Path("/proc/sys/fs/inotify/max_user_watches")


def measure(folder, size):
    """Return the Figures: time beside `find`, memory, processor at rest."""
    if int(LIMIT.read_text()) < size.finished * 1.1:
        print(f"left out: {size.finished} jobs need more than fs.inotify.max_user_watches = {LIMIT.read_text().strip()}")
        return []
    site = Site(folder)
    began = time.monotonic()
    make_tree(site.mirror, size.finished)
    os.sync()
    print(f"{size.finished} finished jobs made in {time.monotonic() - began:.0f} s")
    try:
        first = first_start(site, size)
        ours, bare, shallow = [], [], []
        for _ in range(ROUNDS):
            site.stop()
            bare.append(find(site.mirror))
            shallow.append(find(site.mirror, "-maxdepth", "3"))
            ours.append(start_to_rest(site, size.finished))
        scan, memory_then, rest = told(site, size, ours, bare, shallow)
        return [scan, memory_then, first, rest]
    finally:
        site.stop()


def first_start(site, size):
    """Start the daemon where there is no journal yet; return the Figure of its memory when it has made one from the disk."""
    seconds = start_to_rest(site, size.finished)
    print(f"first start, which also makes the journal from the disk: {seconds:.2f} s, {memory(site)}")
    return figures.Figure("  the same where the journal had to be made first", procs.memory_mb(site.process.pid), "MB", None, 80.0)


def told(site, size, ours, bare, shallow):
    """Print what was measured and return the Figures; the daemon is at rest."""
    rss, rest = procs.memory_mb(site.process.pid), at_rest(site.process.pid, size.rest)
    print(f"start to rest: {figures.spread(ours)} s; find: {figures.spread(bare)} s; find -maxdepth 3: {figures.spread(shallow)} s")
    print(f"memory: {memory(site)}")
    return [
        figures.Figure(f"{size.finished} finished jobs: watched and scanned", statistics.median(ours), "s", statistics.median(bare), 2.0, "ratio"),
        figures.Figure("  memory of the daemon", rss, "MB", None, 80.0),
        figures.Figure(f"  processor at rest, over {size.rest} s", rest, "%", None, 0.5),
    ]


def make_tree(root, count):
    """Write jobs that are DONE, each with its marker and record as the daemon leaves them."""
    for number in range(count):
        user = root / f"user{number // A_USER}"
        if number % A_USER == 0:
            user.mkdir()
        job, token = f"{user}/Exp_{number}", f"{number:012x}"
        rec = record.Record(
            accepted=(f"web:PENDING:{number}",), own=number, attempt=1, token=token, host="b01", contacted=True, phase="DONE",
            served=(f"web:PENDING:{number}",), ended={"report@SUBMITTED": "done", "push@DONE": "done", "mail@DONE": "done"},
            fields={"id": str(number), "exit": "0"},
        )  # fmt: skip
        os.mkdir(job)
        os.mkdir(f"{job}/.watchties")
        write(f"{job}/.watchties/record.json", recordfile.dumps(rec))
        write(f"{job}/DONE", marker_text({"state": "DONE", "attempt": 1, "token": token, "host": "b01"}).encode())


def write(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, data)
    os.close(fd)


def start_to_rest(site, count):
    """Start the daemon; return the seconds until it has watched and scanned all and rests. Fails if a job is not watched."""
    began = time.monotonic()
    site.start()
    ended = procs.until_idle(site.process.pid, quiet=1.5)
    watched = procs.watches(site.process.pid)
    assert watched > count, f"only {watched} directories are watched\n{site.said()}"
    return ended - began


def find(root, *words):
    """Return the seconds that `find` takes to list a tree, as warm as the daemon finds it."""
    began = time.monotonic()
    subprocess.run(["find", str(root), *words], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def memory(site):
    """Return the memory of the daemon, and of what it keeps beside it, as text."""
    pid = site.process.pid
    others = sum(procs.memory_mb(child, "RssAnon") for child in procs.descendants(pid))
    return f"{procs.memory_mb(pid):.0f} MB (most {procs.memory_mb(pid, 'VmHWM'):.0f} MB; forkserver and relays {others:.0f} MB of their own)"


def at_rest(pid, seconds):
    """Return the share of one processor, in percent, that a daemon at rest uses."""
    before = procs.cpu(pid)
    time.sleep(seconds)
    return 100 * (procs.cpu(pid) - before) / seconds
