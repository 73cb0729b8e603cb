"""The names of jobs with a PENDING on a web host, as they appear there: its relay's announcements, for people and programs.

Knows: when a name is told again, when there is nobody left to tell.
Must not know: the command line, what is done about a name. The link and its relay are the daemon's (relays.py).
"""

import asyncio
import contextlib
import os
import select
import stat

from watchties import relays, ssh
from watchties.config import plain
from watchties.errors import UserError, Unreachable
from watchties.model import PENDING, WEB


class Follower:
    """Tells the names of one web host. tell(name) may raise BrokenPipeError; complain(text) is for what is wrong."""

    def __init__(self, config, host, tell, complain):
        if host not in config.host or config.host[host].role != WEB:
            webs = ", ".join(name for name, its in config.host.items() if its.role == WEB)
            raise UserError(f"{host} is no web host; there are: {webs}")
        self.tell, self.complain, self._told, self._was_up = tell, complain, {}, False
        trees, its = relays.trees_of(config, host), config.host[host]
        self._many, self._end = len(trees) > 1, None
        listener = relays.Listener(self._announced, lambda _: None, self._up, self._down, self._bad, lambda _, text: complain(text))
        far = ssh.from_config(plain(config), host)  # a connection of our own: one that a daemon owns would end with it
        self._link = relays.Link(far, WEB, trees, its.trigger, its.poll, config.daemon.heartbeat, listener)

    async def run(self, reader=1):
        """Tell names until nobody reads them from that descriptor any more. Raises Unreachable if the host does not answer at first."""
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        link = asyncio.ensure_future(self._link.run())
        link.add_done_callback(lambda task: self._finish(None if task.cancelled() else task.exception()))
        try:
            with _closing(loop, reader, self._finish):
                await self._end
        finally:
            link.cancel()
            await asyncio.wait([link])  # the relay there has been told to end

    def _finish(self, error=None):
        if not self._end.done():
            self._end.set_exception(error) if error else self._end.set_result(None)

    def _announced(self, said):
        """Tell a name, once for each PENDING: a listing tells again what an event has told."""
        if said.marker != PENDING or self._told.get((said.tree, said.job)) == said.ns or self._end.done():
            return
        try:
            self.tell(f"{said.tree}:{said.job}" if self._many else said.job)
        except BrokenPipeError:
            self._finish()
        self._told[said.tree, said.job] = said.ns

    def _up(self, host, news):
        if news:
            self.complain(f"host {host} is up again")
        self._was_up = True

    def _down(self, host, reason):
        if not self._was_up:
            self._finish(Unreachable(reason))
        elif self._link.breaker.probes == 1:
            self.complain(f"{reason}; it is tried again")

    def _bad(self, tree, name, reason):
        self.complain(f"refused: {name}: {reason}" if name not in reason else f"refused: {reason}")


@contextlib.contextmanager
def _closing(loop, fd, then):
    """Have then() called when nobody reads from a pipe any more, also while nothing is written."""
    mode = os.fstat(fd).st_mode
    watched = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def look():
        poll = select.poll()
        poll.register(fd, 0)  # errors are told without being asked for
        if poll.poll(0):
            then()

    if watched:
        loop.add_reader(fd, look)
    try:
        yield
    finally:
        if watched:
            loop.remove_reader(fd)
