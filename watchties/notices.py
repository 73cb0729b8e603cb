"""Notices for the administrator: kept on disk, gathered, and sent by the notice hook until it succeeds.

Knows: how often the administrator may be written to, and that a notice is tried again while the mail server is down, also by the
next daemon. Which trouble the administrator was told of and is not over. Whether the daemon before this one has ended as it should.
Must not know: what a notice is about.

A notice is a file in `notices` of the state directory, its subject the first line, until it was sent. Its name is the moment, so that
a repeat of a notice has the same text, and with it the same Message-ID. A file in `told` is named like a trouble that was told.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time

from watchties import durable

GAP = 60.0  # seconds between two mails to the administrator

log = logging.getLogger("watchties")


class Notices:
    """A queue of (subject, text). rule: the notice rule; hook: the path of its hook."""

    def __init__(self, rule, hook, dirs, runner, teller):
        self.rule, self.hook, self.dirs, self.runner, self.teller = rule, hook, dirs, runner, teller
        self.folder, self._alive = os.path.join(dirs.state, "notices"), os.path.join(dirs.state, "alive")
        self._told_in = os.path.join(dirs.state, "told")
        for folder in self.folder, self._told_in:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        self._told = set(os.listdir(self._told_in))
        self._news, self._unwritten, self._begun = asyncio.Event(), [], False

    def put(self, subject, text):
        """Have something told to the administrator: it is on disk from now on, unless the disk is full."""
        name, whole = f"{time.time_ns():x}", f"{subject}\n{text}"
        error = durable.carry_out({name: durable.replace(os.path.join(self.folder, name), whole.encode("utf-8", "replace"))})[name]
        if isinstance(error, OSError):
            self.teller.problem("notice", str(error))
            self._unwritten.append((name, whole))
        self._news.set()

    def trouble(self, what, subject, text):
        """Have trouble told, once until it is `over`, whatever daemons are at work meanwhile. what: its name, that of a file."""
        if what not in self._told:
            log.warning("%s", subject)
            self.put(subject, text)
            self._told.add(what)
            with contextlib.suppress(OSError):  # a disk that is full, say: then the next daemon tells it once more
                open(os.path.join(self._told_in, what), "w").close()

    def over(self, what, subject, text=""):
        """Have told that a trouble is over, if it was told."""
        if what in self._told:
            log.warning("%s", subject)
            self.put(subject, text)
            self._told.discard(what)
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._told_in, what))

    def begin(self):
        """Return whether the daemon before this one has ended without saying so: killed, or the machine went down."""
        crashed, self._begun = os.path.exists(self._alive), True
        with contextlib.suppress(OSError):
            open(self._alive, "w").close()
        return crashed

    def end(self):
        """Say that this daemon has ended as it should; a pass, which has not begun as one, leaves word of a crash as it is."""
        if self._begun:
            with contextlib.suppress(OSError):
                os.unlink(self._alive)

    async def run(self):
        """Send what has gathered: at once when it is the first for a while, else together."""
        while True:
            gathered = self._gathered()
            if gathered:
                await self._send(as_one(gathered))
                self._forget(gathered)
                await asyncio.sleep(GAP)
            else:
                await self._news.wait()
                self._news.clear()

    def _gathered(self):
        """Return (name, whole text) of each notice that was not sent yet, the oldest first."""
        found = list(self._unwritten)
        for name in os.listdir(self.folder):
            with contextlib.suppress(OSError):
                with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as file:
                    found += [] if name.endswith(".new") else [(name, file.read())]
        return sorted(found)

    def _forget(self, gathered):
        self._unwritten = [one for one in self._unwritten if one not in gathered]
        for name, _ in gathered:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.folder, name))

    async def send_gathered(self):
        """Send what has gathered, with one try: for a pass that is about to end. What could not be sent waits for the next one."""
        if gathered := self._gathered():
            with contextlib.suppress(OSError):  # the log has it
                if await self._run_once(as_one(gathered)):
                    self._forget(gathered)

    async def _send(self, text):
        """Run the notice hook, again and again while it asks for that."""
        wait, deadline = self.rule.retry.first, time.monotonic() + self.rule.retry.give_up_after
        while time.monotonic() < deadline:
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
    """Return the text of one notice, its subject in the first line, from several (name, whole text)."""
    (first, whole), *more = gathered
    subject, _, text = whole.partition("\n")
    if more:
        subject, text = f"{subject} (and {len(more)} more)", "\n\n".join(each for _, each in gathered)
    return f"{subject}\n{text.rstrip()}\n\n-- \nwatchties on {socket.gethostname()}, notice {first}\n"
