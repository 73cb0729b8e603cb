"""What is wrong at present, for `watchties status`: put up by the daemon, one line for each trouble, in a file of the state directory.

Knows: that file; that where the state directory itself is full nothing can be put up, so that whoever reads looks there first.
Must not know: what any trouble is.
"""

import contextlib
import os

from watchties import disks
from watchties.model import one_line

FILE = "troubles"


class Board:
    """Where the daemon puts up what is wrong. Nothing waits for the disk: it is written again when it changes."""

    def __init__(self, state):
        self.path, self._up = os.path.join(state, FILE), None

    def now(self, lines):
        """Put up these lines, instead of those before."""
        text = "".join(f"{one_line(line)}\n" for line in dict.fromkeys(lines))
        if text != self._up:
            with contextlib.suppress(OSError):
                with open(f"{self.path}.new", "w", encoding="utf-8", errors="replace") as file:
                    file.write(text)
                os.replace(f"{self.path}.new", self.path)
                self._up = text


def standing(state, at_work):
    """Return what is wrong, one line each. at_work: whether a daemon is: what one that was killed has put up may be over."""
    why, _ = disks.trouble(state, disks.STATE_FLOOR)
    found = [f"{why}; until then nothing is begun, and what is shown here may be out of date"] if why else []
    with contextlib.suppress(OSError):
        if at_work:
            with open(os.path.join(state, FILE), encoding="utf-8", errors="replace") as file:
                found += file.read().splitlines()
    return found
