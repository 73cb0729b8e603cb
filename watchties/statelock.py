"""The lock of a state directory: one daemon or one pass at a time, and which of the two it is.

Knows: daemon.lock, how a pass is asked to make room for a daemon.
Must not know: what a daemon or a pass does.

The lock is flock(2), so that it ends with its holder; the file says who that is: a pid, and in a second line what it does
unless it is a daemon.
"""

import contextlib
import fcntl
import os
import signal
import time

from watchties.errors import UserError

DAEMON, TRANSFER = "daemon", "transfer"
NAME = "daemon.lock"
MAKES_ROOM = 30.0  # seconds for a pass to leave its runs to a daemon
SETTLES = 1.0  # seconds for whoever has taken the lock to write his pid
GLANCE = 0.05  # seconds between two looks


class AtWork(UserError):
    """Somebody holds the lock. what: DAEMON or TRANSFER; pid: as text."""

    def __init__(self, state, pid, what):
        self.pid, self.what = pid, what
        who = "a watchties daemon" if what == DAEMON else "a pass"
        super().__init__(f"{who} is at work already in {state} (pid {pid})")


def take(state, what=DAEMON):
    """Return the open lock file of a state directory; raise AtWork if somebody holds it."""
    os.makedirs(state, mode=0o700, exist_ok=True)
    file = open(os.path.join(state, NAME), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, held_for = _read_settled(file)
        file.close()
        raise AtWork(state, pid, held_for) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n" + ("" if what == DAEMON else f"{what}\n"))
    file.flush()
    return file


def take_from_pass(state, say=lambda text: None):
    """Return the lock for a daemon, to which a pass that is at work makes room. Raises AtWork if it does not, or if it is a daemon."""
    deadline, asked = time.monotonic() + MAKES_ROOM, ""
    while True:
        try:
            return take(state)
        except AtWork as held:
            if held.what != TRANSFER or time.monotonic() > deadline:
                raise
            if held.pid != asked:
                asked = held.pid
                say(f"a pass is at work (pid {held.pid}); what it has begun is taken over")
                _ask_for_room(state, held.pid)
        time.sleep(GLANCE)


def _ask_for_room(state, pid):
    """Send SIGHUP to the pass that holds the lock, and to nobody who has its pid after it."""
    with contextlib.suppress(OSError, ValueError):
        process = os.pidfd_open(int(pid))
        try:
            if holder(state) == (pid, TRANSFER):
                signal.pidfd_send_signal(process, signal.SIGHUP)
        finally:
            os.close(process)


def holder(state):
    """Return (pid, DAEMON or TRANSFER) of who holds the lock; ("", "") if nobody does."""
    try:
        with open(os.path.join(state, NAME)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at the end of the block
            except BlockingIOError:
                return _read(file)
    except FileNotFoundError:
        pass
    return "", ""


def _read_settled(file):
    """Return the same; who has taken the lock just now has not written yet who he is, and his predecessor's pid may stand there."""
    deadline = time.monotonic() + SETTLES
    while True:
        pid, what = _read(file)
        if os.path.exists(f"/proc/{pid}") or time.monotonic() > deadline:
            return pid, what
        time.sleep(GLANCE)


def _read(file):
    file.seek(0)
    pid, what, *_ = [*file.read().split(), "", ""]
    return pid or "unknown", what or DAEMON
