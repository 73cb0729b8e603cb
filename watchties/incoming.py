"""Names that arrive on a stream, one a line, while something else is going on.

Knows: lines, half lines, the end of a stream.
Must not know: what a name means.
"""

import os
import threading


class Incoming:
    """Reads names in a thread of its own, so that whoever writes them never waits."""

    def __init__(self, fd=0):
        self._names, self._change, self.ended = [], threading.Condition(), False
        threading.Thread(target=self._read, args=(fd,), daemon=True, name="names").start()

    def _read(self, fd):
        rest = b""
        while data := os.read(fd, 65536):
            *lines, rest = (rest + data).split(b"\n")
            self._put(lines)
        self._put([rest], ended=True)  # at its end a line without one is whole

    def _put(self, lines, ended=False):
        names = [line.rstrip(b"\r").decode("utf-8", "surrogateescape") for line in lines if line.strip()]
        with self._change:
            self._names += names
            self.ended = ended
            self._change.notify_all()

    def wait(self, seconds=None):
        """Wait until a name is there, or the end; return whether a name is there."""
        with self._change:
            self._change.wait_for(lambda: self._names or self.ended, seconds)
            return bool(self._names)

    def take(self):
        """Return the names that have come since the last call."""
        with self._change:
            names, self._names = self._names, []
            return names
