"""From a marker that is touched to the hook that runs because of it.

Knows: hooks that tell at once that they run; the same hook started by the barest watcher there is.
Must not know: why any rule does what it does.

The marker is PENDING in the mirror, the rule a site's own, on mirror:PENDING. A hook tells that it runs by a line into
a FIFO, which costs it no program of its own. The compute host is not there, so that no other hook is started for the
job. The time includes what must be durable first: the request in the record.
"""

import os
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

import figures
import procs
from site_kit import Site

WAIT = 10.0  # seconds for one hook
BARE = Path(__file__).with_name("barewatch.py")
RULE = '\n[[rule]]\nname = "{name}"\non = ["mirror:PENDING"]\nhook = "{name}"\n'
KINDS = {
    "python": ("#!/usr/bin/env python3\nimport os, sh, tenacity  # as every hook that does something has\n"
               "fd = os.open({fifo!r}, os.O_WRONLY)\nos.write(fd, b'x')\n"),
    "shell": "#!/bin/sh\nprintf x >'{fifo}'\n",
}  # fmt: skip
NAMES = {"python": "marker to hook, forkserver", "shell": "marker to hook, executable"}
TARGETS = {"python": 10.0, "shell": 3.0}  # ms


def measure(folder, size):
    """Return a Figure for each kind of hook."""
    return [one_kind(folder / kind, kind, size.touches) for kind in KINDS]


def one_kind(folder, kind, touches):
    """Measure one kind of hook, under watchties and under the bare watcher."""
    folder.mkdir()
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    ear = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        ours = [1000 * s for s in under_watchties(folder, kind, KINDS[kind].format(fifo=str(fifo)), ear, touches)]
        bare = [1000 * s for s in under_bare_watcher(folder, kind, ear, touches)]
    finally:
        os.close(ear)
    print(f"{kind}: {figures.spread(ours)} ms over {touches} touches; bare inotify and posix_spawn: {figures.spread(bare)} ms")
    return figures.Figure(NAMES[kind], statistics.median(ours), "ms", statistics.median(bare), TARGETS[kind])


def under_watchties(folder, kind, text, ear, touches):
    """Return the seconds of each touch with a real daemon."""
    site = Site(folder / "site", rules=RULE.format(name=kind))
    hook = site.conf.parent / "hooks" / kind
    hook.write_text(text)
    hook.chmod(0o755)
    (site.compute.parent / "scripts/agent.sh").unlink()  # the compute host does not answer: no submit
    jobs = [site.mirror / f"user{n % 5}" / f"E{n}" for n in range(touches + 3)]
    for job in jobs:
        job.mkdir(parents=True)
        (job / "command").write_text("true\n")
    with site:
        site.wait(lambda: (site.state / "log" / "notice.log").exists(), 30, "the daemon is at work")
        procs.until_idle(site.process.pid)
        return timed(jobs, ear)[3:]  # the first ones find caches cold


def under_bare_watcher(folder, kind, ear, touches):
    """Return the seconds of each touch with inotify and posix_spawn alone."""
    watched = folder / "bare"
    watched.mkdir()
    hook = folder / "site/etc/hooks" / kind
    watcher = subprocess.Popen([sys.executable, str(BARE), str(watched), str(hook)], stdout=subprocess.PIPE)
    try:
        watcher.stdout.readline()
        return timed([watched] * (touches + 3), ear)[3:]
    finally:
        watcher.kill()
        watcher.wait()
        watcher.stdout.close()


def timed(folders, ear):
    """Touch PENDING in one directory after another; return the seconds until each hook told that it runs."""
    found = []
    for folder in folders:
        began = time.perf_counter()
        os.close(os.open(folder / "PENDING", os.O_WRONLY | os.O_CREAT, 0o644))
        if not select.select([ear], [], [], WAIT)[0]:
            raise TimeoutError(f"no hook has run for {folder} within {WAIT:g} s")
        found.append(time.perf_counter() - began)
        time.sleep(0.1)  # let what follows end: the next touch is to find the machine idle
        os.read(ear, 4096)
    return found
