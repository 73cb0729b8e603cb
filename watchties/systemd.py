"""What the daemon tells systemd, if that has started it: ready, alive, reloading, stopping, and how things stand.

Knows: sd_notify(3), which states a service has.
Must not know: what the daemon does. Without systemd all of it says nothing.
"""

import asyncio
import socket
import time

import systemd_watchdog

from watchties import progress
from watchties.model import FINAL, SUBMITTED

BEAT = 1.0  # seconds between two signs of life at most
SHUTDOWN_TAKES = 60.0  # seconds, beside stop_timeout, that stopping may take at worst


class Manager(systemd_watchdog.WatchDog):
    """The service manager, as one process sees it. note: what stands in front of the status until further notice."""

    def __init__(self):
        super().__init__()
        self.note, self._unsent = "", {}

    async def beat_for_ever(self):
        """Tell that the loop goes round, from the loop itself: one that hangs tells nothing, and is restarted."""
        while True:
            self.notify()
            await asyncio.sleep(min(BEAT, self.timeout / 4e6))

    def _send(self, msg):
        """Send a message, or keep it for the next one: a manager that does not read must not stop the loop.

        Of each kind the last is kept: none is lost that still says what is true, and they stay in their order.
        """
        if not self.is_enabled:
            return
        kind = msg.partition("=")[0]
        self._unsent.pop(kind, None)
        self._unsent[kind] = msg
        for kind, text in list(self._unsent.items()):
            try:
                self._socket.sendto(text.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)
            except (BlockingIOError, ConnectionError, FileNotFoundError):  # it is busy, or being executed anew
                return
            del self._unsent[kind]

    def stands(self, text):
        """Say how things stand."""
        self.status(f"{self.note}; {text}" if self.note else text)

    def reloading(self):
        """Say that the configuration is being read again, until `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reading the configuration again")

    def stopping(self, stop_timeout):
        """Say that hooks at work are waited for, and how long that may take: systemd waits so long, whatever the unit says."""
        self.note = "waiting for hooks to end"
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((stop_timeout + SHUTDOWN_TAKES) * 1e6)}\nSTATUS={self.note}")


def how_it_stands(engine):
    """Return one line: how many jobs wait, run and come back, how many runs are at work, which hosts are down, what travels."""
    phases = [job.record.phase for job in engine.jobs]
    running, back = phases.count(SUBMITTED), sum(phase in FINAL for phase in phases)
    told = f"{len(phases) - running - back} jobs waiting, {running} running, {back} coming back; {len(engine.dispatch.tasks)} runs at work"
    told += f"; hosts down: {', '.join(sorted(engine.down))}" if engine.down else ""
    under_way = progress.in_one_line(engine.dirs.state)
    return told + (f"; {under_way}" if under_way else "")
