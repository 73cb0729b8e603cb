"""Processes below one, as proc(5) shows them, and what they have taken; orphans included.

Knows: proc(5), and that a subreaper inherits orphans (PR_SET_CHILD_SUBREAPER, prctl(2)).
Must not know: what a process is for.
"""

import ctypes
import os
import resource

TICK = os.sysconf("SC_CLK_TCK")
SUBREAPER = 36


def adopt_orphans():
    """From now on, what below us outlives its parent is our child: its processor time is counted, and it can be found."""
    if ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def reap(spare):
    """Take in all children of ours that have ended, but for one that somebody waits for."""
    for pid in children().get(os.getpid(), ()):
        if pid != spare:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def children():
    """Return {pid: [pids of its children]} of all processes."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (words := stat(name)):
            found.setdefault(int(words[1]), []).append(int(name))
    return found


def stat(pid):
    """Return the words of /proc/PID/stat after the name (state, parent, ...); [] if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def below(pid):
    """Return the pids of all processes below one."""
    of, found, look = children(), [], [pid]
    while look:
        more = of.get(look.pop(), [])
        found += more
        look += more
    return found


def words_of(pid):
    """Return the command line of a process as words; [] if it is gone, or a zombie."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read().decode("utf-8", "replace").rstrip("\0")
        return line.split("\0") if line else []
    except OSError:
        return []


def cpu_below(pid):
    """Return the processor seconds of all that was started below us: what lives, what it waited for, what we have waited for."""
    ticks = sum(sum(map(int, words[11:15])) for words in map(stat, below(pid)) if words)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ticks / TICK + ended.ru_utime + ended.ru_stime


def memory(pid):
    """Return (anonymous memory, RSS) of a process in kB: what is in no file, and all of it (proc(5), smaps_rollup)."""
    found = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("Anonymous", "Rss"):
                found[name] = int(rest.split()[0])
    return found["Anonymous"], found["Rss"]


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
