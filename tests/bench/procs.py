"""Processes as /proc shows them: processor time, memory, children, watches.

Knows: proc(5).
Must not know: what a process is for.
"""

import os
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid):
    """Return the processor seconds a process has used, its threads included and children not, to the nanosecond."""
    try:
        threads = (Path(f"/proc/{pid}/task") / t / "schedstat" for t in os.listdir(f"/proc/{pid}/task"))
        return sum(int(path.read_text().split()[0]) for path in threads) / 1e9
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return 0.0


def cpu_with_children(pid):
    """Return the processor seconds of a process and of the children it has waited for, in ticks of the clock."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / TICK


def memory_mb(pid, key="VmRSS"):
    """Return a memory figure of /proc/PID/status in MB (a million bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(key)


def watches(pid):
    """Return how many inotify watches a process has."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            count += Path(f"/proc/{pid}/fdinfo/{fd}").read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    return count


def descendants(pid):
    """Return the pids of all processes below one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, look = [], [pid]
    while look:
        above = look.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found += below
        look += below
    return found


def until_idle(pid, quiet=1.0, limit=600.0):
    """Wait until a process does nothing, and return the moment (time.monotonic) at which it was last at work."""
    busy = time.monotonic()
    used, end = cpu(pid), busy + limit
    while (now := time.monotonic()) - busy < quiet:
        if now > end:
            raise TimeoutError(f"process {pid} is still at work after {limit:g} s")
        time.sleep(0.01)
        before, used = used, cpu(pid)
        if used - before > 0.002:
            busy = time.monotonic()
    return busy


def inner_pid(pid):
    """Return the pid, as it is here, of what the `nsenter` that is this process has started inside a host."""
    below = descendants(pid)
    return below[0] if below else pid
