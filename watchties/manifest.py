"""What is in a job's directory: lists of files, how two of them differ, links that lead outside, durable lists.

Knows: the three lists of an attempt in the mirror's record directory (manifest, spared, made) and their lines; which
names of a job never travel.
Must not know: how anything travels (transfer.py), or what a list is used for.

Nothing here follows a symbolic link. Paths are relative to the job, bytes that are no UTF-8 escaped as
`surrogateescape` does.
"""

import json
import os
from typing import NamedTuple

from watchties import durable
from watchties.errors import Unsafe
from watchties.model import MARKERS, RECORD_DIR, printable

PARTIAL = RECORD_DIR + ".partial"  # where rsync keeps what it has of an unfinished file
DIRECTORY, LINK = -1, -2  # instead of a size


class Entry(NamedTuple):
    """One path: size in bytes (or DIRECTORY, LINK), mtime in nanoseconds, a link's target."""

    s: int
    m: int = 0
    t: str = ""


def travels(name, top):
    """Return whether a name is carried; `top`: it stands directly in the job's directory."""
    return name != PARTIAL and not (top and (name in MARKERS or name.startswith(RECORD_DIR)))


def walk(job_dir):
    """Return path -> Entry of all that travels in a job's directory; {} if it is not there.

    Devices, sockets and pipes are passed over, as rsync does. Raises Unsafe if the directory itself is a link.
    """
    if os.path.islink(job_dir):
        raise Unsafe(f"{printable(job_dir)} is a symbolic link, not a directory: remove it")
    found, todo = {}, [""]
    while todo:
        below = todo.pop()
        try:
            entries = list(os.scandir(os.path.join(job_dir, below)))
        except FileNotFoundError:
            continue
        for entry in entries:
            path = below + entry.name
            kind = _entry(entry) if travels(entry.name, not below) else None
            if kind:
                found[path] = kind
                if kind.s == DIRECTORY:
                    todo.append(path + "/")
    return found


def _entry(entry):
    try:
        if entry.is_symlink():
            return Entry(LINK, 0, os.readlink(entry.path))
        if entry.is_dir(follow_symlinks=False):
            return Entry(DIRECTORY)
        if entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            return Entry(status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        pass
    return None


def totals(entries):
    """Return (number, bytes) of the regular files."""
    sizes = [entry.s for entry in entries.values() if entry.s >= 0]
    return len(sizes), sum(sizes)


def without_directories(entries):
    """Return the paths of files and links: who spares a directory would spare all that is in it."""
    return [path for path, entry in (entries or {}).items() if entry.s != DIRECTORY]


def changed(before, now):
    """Return the files and links of the list `before` that are not the same in `now`; a directory that is gone is no change."""
    return {path for path, entry in before.items() if now.get(path, Entry(DIRECTORY) if entry.s == DIRECTORY else None) != entry}


def made(before, now, listed):
    """Return path -> Entry of what stands in `now`, is `listed` by the compute host and is not as `before`."""
    return {path: now[path] for path in sorted(listed) if path in now and now[path] != before.get(path)}


# ---- links ----


def leading_outside(job_dir, entries):
    """Return the links that are absolute or lead outside the job, sorted.

    Both as written and as the disk resolves it: `up -> ../..` below two directories is inside, and makes
    `up/../x` outside, though not as written.
    """
    home = os.path.realpath(job_dir)
    return sorted(path for path, entry in entries.items() if entry.s == LINK and not _inside(home, path, entry.t))


def _inside(home, path, target):
    if os.path.isabs(target):
        return False
    written = os.path.normpath(os.path.join(os.path.dirname(path), target))
    resolved = os.path.realpath(os.path.join(home, os.path.dirname(path), target))
    return written.split("/")[0] != ".." and (resolved == home or resolved.startswith(home + "/"))


def leave_links(job, entries):
    """Remove links that lead outside from the mirror, and from `entries`; name them in the log; return them."""
    outside = leading_outside(job.dir, entries)
    for path in outside:
        target = entries.pop(path).t
        os.unlink(os.path.join(job.dir, path))
        print(f"{job.id}: {printable(path)} left behind: a link that leads outside the job, to {printable(target)}")
    return outside


# ---- the lists of an attempt ----


def place(job, kind):
    """Return the path of one of the attempt's lists: manifest, spared or made."""
    return os.path.join(job.dir, RECORD_DIR, f"{kind}.{job.attempt}")


def read(path):
    """Return path -> Entry of a list, or None if it is not there; raise Unsafe for one that is damaged."""
    try:
        rows = [json.loads(line) for line in durable.read_plain(path).splitlines()]
        return {row["p"]: Entry(row.get("s", 0), row.get("m", 0), row.get("t", "")) for row in rows}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unsafe(f"{printable(path)} is damaged ({error}); look at it, and move it away") from None


def write(kind, lists):
    """Make lists durable, a dict job -> entries; return job -> the OSError it met, for those that met one.

    Many share one barrier: 1,000 jobs do not wait for 1,000 fsyncs.
    """
    results = durable.carry_out({job: _plan(place(job, kind), entries) for job, entries in lists.items()})
    return {job: error for job, error in results.items() if isinstance(error, OSError)}


def _plan(path, entries):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    yield from durable.replace(path, "".join(_line(*item) for item in entries.items()).encode())


def _line(path, entry):
    row = {"p": path, "s": entry.s, "m": entry.m} | ({"t": entry.t} if entry.t else {})
    return json.dumps(row, separators=(",", ":")) + "\n"
