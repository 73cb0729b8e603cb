"""What the daemon looks at now and then: the clock, trees, disks, hosts; and who is told how they stand.

Knows: what is trouble, and that the administrator is told of each once, and when it is over.
Must not know: what a job needs; how any trouble is mended.
"""

import asyncio
import logging
import time

from watchties import disks, systemd, troubles

EVERY = 2.0  # seconds between two looks
CLOCK_STEP = 1.0  # seconds by which the clock must have been set back to count

log = logging.getLogger("watchties")


class Glance:
    """The looks of one daemon. back(tree): a tree that was gone is there again."""

    def __init__(self, daemon, notices, back):
        self.config, self.state, self.engine, self.manager = daemon.config, daemon.state, daemon.engine, daemon.manager
        self.watches, self.links, self._notices, self._back = daemon.watches, daemon.links, notices, back
        self._board = troubles.Board(daemon.state)

    async def run(self):
        """Look again and again; tell systemd, and whoever asks for the status, how things stand."""
        offset = time.time() - time.monotonic()
        while True:
            await asyncio.sleep(EVERY)
            before, offset = offset, time.time() - time.monotonic()
            if offset < before - CLOCK_STEP:
                log.warning("the clock was set back by %.0f s; whatever waits for its time is looked at again", before - offset)
                self.engine.touch_all()
            self.at_trees()
            self.at_disks()
            self.at_hosts()
            self.manager.stands(systemd.how_it_stands(self.engine))
            self._board.now([*self.engine.blocked.values(), *self.engine.down.values(), *self._not_watched()])

    def end(self):
        """Nothing is trouble to one that ends."""
        self._board.now([])

    def at_trees(self):
        for name in self.watches:
            if self.engine.roots.look(name):
                self._back(name)

    def at_disks(self):
        before = dict(self.engine.blocked)
        for name, tree in self.config.tree.items():
            why, ample = disks.trouble(tree.root, self.config.daemon.disk_floor)
            why = self.engine.roots.gone.get(name) or why
            self.engine.blocked[name] = why
            if not why:
                del self.engine.blocked[name]
            self._tell(f"tree {name}", why, ample, f"tree {name} takes nothing more", f"tree {name} takes jobs again")
        if before.keys() != self.engine.blocked.keys():
            self.engine.touch_all()
        why, ample = disks.trouble(self.state, disks.STATE_FLOOR)
        self._tell("state", why, ample, "the state directory takes nothing more", "the state directory takes what is written again")

    def _tell(self, what, why, ample, trouble, over):
        if why:
            self._notices.trouble(what, trouble, f"{why}\n")
        elif ample:
            self._notices.over(what, over)

    def _not_watched(self):
        return [text for watch in self.watches.values() for kind, text in watch.troubles.items() if kind != "root"]

    def at_hosts(self):
        for name, link in self.links.items():
            since = link.breaker.since
            if link.breaker.down and time.time() - since > self.config.daemon.host_down_notice:
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
                text = f"{link.breaker.reason}\nIts jobs wait; the others go on.\n"
                self._notices.trouble(f"host {name}", f"host {name} is down since {when}", text)
