"""How far a long transfer has come: the file `progress` in its run's directory, and how that is told.

Knows: what stands in that file, how long it counts, words for bytes and seconds.
Must not know: rsync (meter.py), who asks. Both halves import it; the standard library is enough.

A hook writes the file once a second, by rename and without a sync, and takes it away when the transfer ends. What a
hook that was killed leaves there counts no more after a few seconds, and goes with the run's directory.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass

from watchties.model import printable

FILE = "progress"
FRESH = 20.0  # seconds that a file counts; it is written anew every second, also where no byte moves
STILL = 5.0  # seconds without a byte before that is told instead of a rate
FEW = 3  # transfers that a line tells
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Progress:
    """One transfer. bytes: so far; percent: of all that rsync knows of, or None; rate: bytes a second; left: seconds at
    most, or None (files that are there already count as still to come); moved: when the last byte came."""

    bytes: int
    percent: int | None
    rate: float
    left: float | None
    moved: float
    when: float

    def told(self):
        """Return it for people: `1.2 GB, 30 %, 11 MB/s, at most 4m10s left`."""
        parts = [size(self.bytes)] + ([f"{self.percent} %"] if self.percent is not None else [])
        if self.when - self.moved >= STILL:
            return ", ".join([*parts, f"no byte for {seconds(self.when - self.moved)}"])
        return ", ".join([*parts, f"{size(self.rate)}/s"] + ([f"at most {seconds(self.left)} left"] if self.left is not None else []))


@dataclass(frozen=True)
class Transfer:
    """A Progress, and the run that it belongs to."""

    run: str
    rule: str
    host: str
    dir: str
    progress: Progress

    def told(self):
        return f"{self.rule} {self.host}: {self.progress.told()}"

    def jobs(self):
        """Return the (tree, job) pairs that travel; [] if the run has just ended."""
        try:
            with open(os.path.join(self.dir, "jobs"), encoding="utf-8", errors="surrogateescape") as file:
                rows = [json.loads(line) for line in file]
            return [(row["tree"], row["job"]) for row in rows]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def plain(self):
        """Return it for programs, without the jobs."""
        return {"run": self.run, "rule": self.rule, "host": self.host} | asdict(self.progress)


def write(folder, progress):
    """Put a Progress into a run's directory. A disk that takes nothing is no reason to stop a transfer."""
    path = os.path.join(folder, FILE)
    with contextlib.suppress(OSError):
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(asdict(progress), file)
        os.rename(path + ".new", path)


def remove(folder):
    """Take it away: the transfer has ended."""
    for name in FILE, FILE + ".new":
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, name))


def transfers(state, now=None):
    """Return the Transfers that go on in a state directory, by the name of their run."""
    now, folder, found = time.time() if now is None else now, os.path.join(state, "runs"), []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(folder)):
            if one := _transfer(os.path.join(folder, name), now):
                found.append(one)
    return found


def _transfer(where, now):
    try:
        with open(os.path.join(where, FILE), encoding="utf-8") as file:
            progress = Progress(**json.load(file))
        with open(os.path.join(where, "run.json"), encoding="utf-8") as file:
            run = json.load(file)
        return Transfer(run["id"], run["rule"], run["host"], where, progress) if abs(now - progress.when) < FRESH else None
    except (OSError, ValueError, TypeError, KeyError):
        return None  # a small transfer, or one that has just ended


def in_one_line(state):
    """Return what travels in a state directory as one short line, for systemd's status; "" if nothing long does."""
    found = transfers(state)
    more = [f"{len(found) - FEW} more"] if len(found) > FEW else []
    return "; ".join([printable(one.told()) for one in found[:FEW]] + more)


# ---- words ----


def size(count):
    """Return a number of bytes for people, in steps of a thousand: `640 B`, `1.2 GB`."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.1f} {UNITS[power]}" if power and count < 9.95 else f"{count:.0f} {UNITS[power]}"


def seconds(count):
    """Return a duration for people, its two highest units: `0.4s`, `12s`, `4m10s`, `3h05m`, `2d04h`."""
    if count < 9.95:
        return f"{count:.1f}s" if count != int(count) else f"{count:.0f}s"
    count = round(count)
    if count < 60:
        return f"{count}s"
    if count < 3600:
        return f"{count // 60}m{count % 60:02}s"
    if count < 86400:
        return f"{count // 3600}h{count % 3600 // 60:02}m"
    return f"{count // 86400}d{count % 86400 // 3600:02}h"
