"""The jobs of a soak: how they come, what is asked of each, and whether it got exactly that.

Knows: what a user sees on the three hosts, and the mails.
Must not know: faults, but for which jobs' wrapper was killed (`lost`): those may run once less, and then say so.
"""

import email
import email.policy
import os
import re
import shutil
import time
from collections import Counter, deque

FLIGHT = 100  # jobs on their way at any moment
USERS = 40
STANDING = 500  # jobs that have ended and are not yet taken away
ENDS = ("DONE", "FAILED")
OURS = {"DONE", "FAILED", "command", "in.txt", "out.txt", "runs.log", "remote_ties_run.res", "remote_ties_run.err"}
AGAIN = 5  # removals of a job: a marker that goes alone is published again by the daemon, into a directory that is being removed
KINDS = {"plain": 82, "fails": 4, "again": 9, "cancel": 5}
TAIL = {"plain": "sleep {nap}", "again": "sleep {nap}", "fails": "exit 3", "cancel": "sleep 2"}


def remove(folder):
    """Remove a directory as `rm -rf` does; return whether it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


class Asked:
    """A job that is on its way. asked: how often it is to run; due: when the next thing is asked of it (monotonic), or None."""

    def __init__(self, job, kind, due):
        self.job, self.kind, self.due, self.asked = job, kind, due, 1
        self.name = job.partition("/")[2]


class Flow:
    """All jobs of a soak, of which some are in flight."""

    def __init__(self, site, jobs, draw):
        self.site, self.total, self.draw = site, jobs, draw
        self.begun = self.ended = 0
        self.flight, self.standing, self.lost = {}, deque(), Counter()
        self.kinds, self.moved, self.wrong = Counter(), time.monotonic(), []
        self.mails, self.mail_ids = {}, Counter()  # name of a job -> Message-IDs; Message-ID -> how often it came

    # ---- going on ----

    def go_on(self):
        """Let jobs come, ask what is due, look at those that have ended."""
        while self.begun < self.total and len(self.flight) < FLIGHT:
            self._drop()
        self._read_mail()
        now = time.monotonic()
        for one in list(self.flight.values()):
            if one.due and now > one.due:
                one.due = None
                self.site.touch(one.job, "CANCEL")
            if self._is_at_rest(one.job) and not self._asks_again(one):
                del self.flight[one.job]
                self._has_ended(one)

    def _drop(self):
        number, draw = self.begun, self.draw
        job = f"user {draw.randrange(USERS)}/E{number}"
        kind = draw.choices(list(KINDS), KINDS.values())[0]
        nap = f"{draw.choice([0, 0, 0, draw.uniform(0, 1)]):.2f}"
        due = time.monotonic() + draw.uniform(0, 4) if kind == "cancel" else None
        command = f"echo run >> runs.log\ncat in.txt > out.txt\n{TAIL[kind].format(nap=nap)}\n"
        self.flight[job] = Asked(job, kind, due)
        self.site.drop(job, command)
        self.begun += 1
        self.kinds[kind] += 1

    def _is_at_rest(self, job):
        names = os.listdir(self.site.web / job)
        ended = any(name in names for name in ENDS) and "PENDING" not in names and "CANCEL" not in names
        return ended and not (self.site.mirror / job / ".watchties.open").exists()

    def _asks_again(self, one):
        """Ask for another run, if this job is one that is asked twice; return whether something is still to come."""
        if one.kind == "again" and one.asked == 1:
            one.asked = 2
            self.site.touch(one.job)
            return True
        return one.due is not None

    def _has_ended(self, one):
        self.ended, self.moved = self.ended + 1, time.monotonic()
        self._read_mail()
        self._check(one)
        self.standing.append(one)
        while len(self.standing) > STANDING:
            self._take_away(self.standing.popleft())

    def _take_away(self, one):
        self._check(one)
        self.mails.pop(one.name, None)
        for tree in self.site.web, self.site.compute, self.site.mirror:
            if not any(remove(tree / one.job) for _ in range(AGAIN)):
                self.wrong.append(f"LEFT OVER: {tree / one.job} cannot be removed: {list((tree / one.job).iterdir())}")

    def last_look(self):
        """Look once more at all that still stands."""
        self._read_mail()
        for one in self.standing:
            self._check(one)

    def stuck(self):
        """Return a few jobs in flight, and how they stand, as text."""
        few = list(self.flight)[:3]
        explained = {job: self.site.watchties("explain", job, check=False).stdout for job in few}
        return "".join(f"\n{job}: {self.site.marker(job)}\n{text}" for job, text in explained.items())

    # ---- what must hold ----

    def _check(self, one):
        for wrong in self._wrong(one):
            self.wrong.append(f"{one.job} ({one.kind}): {wrong}")

    def _wrong(self, one):
        """Yield what is wrong with a job that has ended, in words."""
        (state, fields), runs = self.site.marker(one.job), self.site.runs(one.job)
        cause, spare = fields.get("cause"), self.lost[one.job]
        stopped = one.kind == "cancel" and cause == "cancelled"
        if runs > one.asked:
            yield f"TWICE: it ran {runs} times, {one.asked} asked for"
        if runs < one.asked - spare and not stopped:
            yield f"LOST: it ran {runs} times, {one.asked} asked for; {state} {fields}"
        good = "FAILED" if one.kind == "fails" else "DONE"
        if state != good and not stopped and not (spare and cause == "lost"):
            yield f"LOST: it is {state} {fields}"
        if state == "DONE" and self._text(one.job, "out.txt") != f"input of {one.job}\n":
            yield f"LOST: its result on the web host is {self._text(one.job, 'out.txt')!r}"
        if state == "DONE" and self._text(one.job, "runs.log") != "run\n" * runs:
            yield f"LOST: its runs.log on the web host is {self._text(one.job, 'runs.log')!r}"
        yield from self._letters(one)
        if not spare:
            yield from self._leftovers(one.job)

    def _letters(self, one):
        """One mail for each attempt; an attempt that a newer one overtook may have none."""
        count = len(self.mails.get(one.name, ()))
        if not 1 <= count <= one.asked:
            yield f"MAIL: {count} different mails for {one.asked} attempts"

    def _leftovers(self, job):
        for place in "web", "mirror", "compute":
            where = getattr(self.site, place) / job
            names = set(os.listdir(where)) if where.exists() else set()  # one that was stopped early has never been there
            if strange := names - OURS - (set() if place == "web" else {".watchties"}):
                yield f"LEFT OVER on {place}: {sorted(strange)}"

    def _text(self, job, name):
        try:
            return (self.site.web / job / name).read_text()
        except FileNotFoundError:
            return None

    def breaches(self):
        """Return what was wrong, a line for each."""
        lost = [f"{job}: LOST: it has not ended; {self.site.marker(job)}" for job in self.flight]
        repeats = [f"MAIL: {count} times the same mail {name}" for name, count in self.mail_ids.items() if count > 2]
        return list(dict.fromkeys(self.wrong)) + lost + repeats

    # ---- mail ----

    def _read_mail(self):
        """Take in the mails of a moment, and take them away."""
        for entry in list(os.scandir(self.site.mail)) if self.site.mail.exists() else ():
            if not entry.name.endswith(".eml"):
                continue
            with open(entry.path, encoding="utf-8") as file:
                letter = email.message_from_file(file, policy=email.policy.default)
            os.unlink(entry.path)
            if not entry.name.startswith("notice"):
                self._take_in(letter)

    def _take_in(self, letter):
        name, text = letter["Message-ID"], letter.get_body(("plain",)).get_content()
        job = re.search(r"^Experiment: +(E\d+)$", text, re.MULTILINE)[1]
        self.mail_ids[name] += 1
        self.mails.setdefault(job, set()).add(name)

    @property
    def repeats(self):
        return sum(count - 1 for count in self.mail_ids.values())
