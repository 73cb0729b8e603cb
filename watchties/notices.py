"""Notices for the administrator: gathered, and sent by the notice hook until it succeeds.

Knows: how often the administrator may be written to, and that a notice is tried again while the mail server is down.
Must not know: what a notice is about.
"""

import asyncio
import contextlib
import time

GAP = 60.0  # seconds between two mails to the administrator


class Notices:
    """A queue of (subject, text). rule: the notice rule; hook: the path of its hook."""

    def __init__(self, rule, hook, dirs, runner, teller):
        self.rule, self.hook, self.dirs, self.runner, self.teller = rule, hook, dirs, runner, teller
        self._queue = asyncio.Queue()

    def put(self, subject, text):
        """Have something told to the administrator."""
        self._queue.put_nowait((subject, text))

    async def run(self):
        """Send what has gathered: at once when it is the first for a while, else together."""
        while True:
            first = await self._queue.get()
            await self._send(as_one([first, *self._gathered()]))
            await asyncio.sleep(GAP)

    async def send_gathered(self):
        """Send what has gathered, with one try: for a daemon that is about to end."""
        if gathered := self._gathered():
            with contextlib.suppress(OSError):  # the log has it
                await self._run_once(as_one(gathered))

    def _gathered(self):
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    async def _send(self, text):
        """Run the notice hook, again and again while it asks for that."""
        wait, deadline = self.rule.retry.first, time.time() + self.rule.retry.give_up_after
        while time.time() < deadline:
            try:
                if await self._run_once(text):
                    return
            except OSError as error:  # the disk below the state directory is full, most likely
                self.teller.problem("notice", str(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, self.rule.retry.maximum)

    async def _run_once(self, text):
        """Run the notice hook; return whether it has succeeded."""
        run_id = self.dirs.new_id(self.rule.name)
        run = self.dirs.prepare(run_id, self.rule.name, "", "0", [], self.rule.timeout, self.hook, text)
        self.teller.run_begins(run)
        ended = await self.runner.run(run)
        self.teller.run_ended(ended)
        self.dirs.forget(run)
        return ended.code == 0


def as_one(gathered):
    """Return the text of one notice, its subject in the first line, from several."""
    (subject, text), *more = gathered
    if not more:
        return f"{subject}\n{text}"
    return f"{subject} (and {len(more)} more)\n" + "\n\n".join(f"{s}\n{t}" for s, t in gathered)
