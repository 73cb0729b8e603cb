"""A daemon or a pass as a process: signals, reading the configuration again.

Knows: which signal means what.
Must not know: what a daemon does.
"""

import asyncio
import logging
import signal

from watchties import statelock
from watchties.daemon import Daemon
from watchties.errors import UserError
from watchties.model import one_line
from watchties.systemd import Manager
from watchties.treelock import TreeLocks

log = logging.getLogger("watchties")


def serve(load, state):
    """Run a daemon until SIGTERM or SIGINT; on SIGHUP another one with the configuration read again takes over.

    load() returns (config, hooks) or raises UserError: then the former configuration stays.
    """
    lock, trees = statelock.take_from_pass(state, log.info), TreeLocks()
    try:
        config, hooks = load()
        trees.take(config.tree)
        asyncio.run(_serve(load, state, config, hooks, trees))
    finally:
        trees.close()
        lock.close()


def serve_once(one):
    """Run a OnePass, made by one() in its loop, until it ends by itself; return (it, does a daemon take over, was it told to end).

    SIGTERM and SIGINT end it before, as they end a daemon; SIGHUP leaves the hooks at work to whoever sends it. The caller
    holds the lock.
    """
    return asyncio.run(_serve_once(one))


async def _serve_once(one):
    asked, work = _Asked(), one()
    asked.stop = work.stop
    asked.listen(asyncio.get_running_loop())
    await work.run(lambda: asked.reload and not asked.end)
    return work, asked.reload, asked.end


async def _serve(load, state, config, hooks, trees):
    asked, manager = _Asked(), Manager()
    asked.listen(asyncio.get_running_loop())
    beat = asyncio.ensure_future(manager.beat_for_ever())  # also between two daemons, and while one stops
    while True:
        daemon = Daemon(config, state, hooks, manager)
        asked.stop = daemon.stop
        if asked.end:
            daemon.stop.set()
        await daemon.run(lambda: asked.reload and not asked.end)
        if asked.end or not asked.reload:
            break
        asked.reload, manager.note = False, ""
        manager.reloading()
        try:
            read = load()
            trees.take(read[0].tree)
            config, hooks = read
            log.info("the configuration was read again")
        except UserError as error:
            log.error("the configuration was not taken, the former one stays: %s", error)
            manager.note = f"the configuration was not taken, the former one stays ({one_line(error)})"
    beat.cancel()


class _Asked:
    """What signals have asked for."""

    def __init__(self):
        self.end = self.reload = False
        self.stop = asyncio.Event()

    def listen(self, loop):
        """Take signals from now on."""
        for number in signal.SIGTERM, signal.SIGINT:
            loop.add_signal_handler(number, self.to_stop)
        loop.add_signal_handler(signal.SIGHUP, self.to_reload)

    def to_stop(self):
        self.end = True
        self.stop.set()

    def to_reload(self):
        self.reload = True
        self.stop.set()
