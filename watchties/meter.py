"""Watching one rsync from inside its hook: how far it has come, by what it says itself.

Knows: the form of rsync's --info=progress2 (rsync(1) 3.1 and newer), and the directory of this hook's run.
Must not know: what travels, and why; who reads it (progress.py).

rsync says it rather than the disk: a push grows its files on the far side, a file that is resumed grows from its
middle, and only rsync knows how much is still to come. It costs a small job an option and nothing else: nobody looks
before two seconds have passed (shell.py).
"""

import os
import re
import time
from collections import deque

from watchties import progress

# \r, bytes, percent, rate, then the time that is left; or, where a file has ended, the time since the beginning, and counts
SAID = re.compile(
    r"\r *(\d[\d.,]*) +(\d+)% +(\d+(?:\.\d+)?)([kMGT]?)B/s +(?:(\d+):(\d\d):(\d\d)|\?\?:\?\?:\?\?)(?: (\(xfr#\d+, (?:ir|to)-chk=\d+/\d+\)))? *"
)
OPTION = "--info=progress2"
WINDOW = 10.0  # seconds over which a rate is taken
UNIT = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def without_progress(out):
    """Return what an rsync has said besides its progress. Names hold no \\r: rsync escapes it."""
    return "".join(line for line in re.split("(?<=\n)", SAID.sub("", out)) if line != "\n") if "\r" in out else out


class Meter:
    """Takes in the last words of an rsync, and writes how far it is. folder: the run's directory."""

    def __init__(self, folder, clock=time.time):
        self.folder, self.clock = folder, clock
        self._samples, self._moved = deque(), 0.0

    @classmethod
    def of_this_run(cls, environ=os.environ):
        """Return a Meter for the hook that we are part of, None if we are in none."""
        folder = os.path.dirname(environ.get("WATCHTIES_RESULT", ""))
        return cls(folder) if folder else None

    def look(self, tail):
        """Take in the last bytes that rsync has written."""
        if said := list(SAID.finditer(tail.decode("utf-8", "replace"))):
            if (one := self._progress(said[-1])).bytes:
                progress.write(self.folder, one)

    def close(self):
        """The transfer has ended."""
        progress.remove(self.folder)

    def _progress(self, match):
        now, (count, percent) = self.clock(), (int(re.sub(r"\D", "", match[1])), int(match[2]))
        if not self._samples or count != self._samples[-1][1]:
            self._moved = now
        self._samples.append((now, count))
        while self._samples[0][0] < now - WINDOW:
            self._samples.popleft()
        rate = self._rate(match)
        total = _total(match, count, percent)
        left = max(0.0, total - count) / rate if rate and total else None
        return progress.Progress(count, percent if total else None, rate, left, self._moved, now)

    def _rate(self, match):
        """Return the bytes a second of the last few seconds; in the beginning, what rsync says."""
        (first, before), (last, count) = self._samples[0], self._samples[-1]
        return max(0.0, (count - before) / (last - first)) if last > first else float(match[3]) * UNIT[match[4]]


def _total(match, count, percent):
    """Return how many bytes there are in all, as far as rsync knows: exactly from the time that is left, else from the percents."""
    rate = float(match[3]) * UNIT[match[4]]
    if rate and match[5] and not match[8]:
        return count + rate * (int(match[5]) * 3600 + int(match[6]) * 60 + int(match[7]))
    return count * 100 / percent if percent else 0.0
