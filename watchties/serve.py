"""One daemon at a time in a state directory: signals, reading the configuration again.

Knows: the lock of a state directory, which signal means what.
Must not know: what a daemon does.
"""

import asyncio
import fcntl
import logging
import os
import signal

from watchties.daemon import Daemon
from watchties.errors import UserError

log = logging.getLogger("watchties")


def lock_state(state):
    """Return the open lock file of a state directory; raise UserError if a daemon is at work there."""
    os.makedirs(state, mode=0o700, exist_ok=True)
    file = open(os.path.join(state, "daemon.lock"), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read().strip() or "unknown"
        file.close()
        raise UserError(f"a watchties daemon is at work already in {state} (pid {pid})") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def serve(load, state):
    """Run a daemon until SIGTERM or SIGINT; on SIGHUP another one with the configuration read again takes over.

    load() returns (config, hooks) or raises UserError: then the former configuration stays.
    """
    lock = lock_state(state)
    try:
        asyncio.run(_serve(load, state, *load()))
    finally:
        lock.close()


async def _serve(load, state, config, hooks):
    asked = _Asked()
    loop = asyncio.get_running_loop()
    for number in signal.SIGTERM, signal.SIGINT:
        loop.add_signal_handler(number, asked.to_stop)
    loop.add_signal_handler(signal.SIGHUP, asked.to_reload)
    while True:
        daemon = Daemon(config, state, hooks)
        asked.stop = daemon.stop
        if asked.end:
            daemon.stop.set()
        await daemon.run(lambda: asked.reload and not asked.end)
        if asked.end or not asked.reload:
            return
        asked.reload = False
        try:
            config, hooks = load()
            log.info("the configuration was read again")
        except UserError as error:
            log.error("the configuration was not taken, the former one stays: %s", error)


class _Asked:
    """What signals have asked for."""

    def __init__(self):
        self.end = self.reload = False
        self.stop = asyncio.Event()

    def to_stop(self):
        self.end = True
        self.stop.set()

    def to_reload(self):
        self.reload = True
        self.stop.set()
