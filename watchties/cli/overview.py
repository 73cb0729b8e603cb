"""Many jobs at a glance: what journal and runs hold of them, as lines for a terminal of any width.

Knows: how much room there is, what is cut and what is wrapped.
Must not know: which jobs are asked for on the command line, how often it is looked at (live.py).
"""

import time
import unicodedata
from typing import NamedTuple

from watchties import progress, troubles
from watchties.cli.common import aligned, iso, width
from watchties.model import DONE, FAILED, PENDING, SUBMITTED, JobId, printable

SHOWN = (PENDING, SUBMITTED, DONE, FAILED)
WANTED_ALWAYS = [PENDING, SUBMITTED]
INDENT = "    "
NARROW = 100  # columns of a terminal below which a reason stands under its job
JOB_ROOM = 40  # columns of a job's name at least before it is cut


class Overview(NamedTuple):
    """pid: of who is at work, as text, or ""; what: daemon or transfer; counts: state -> jobs; transfers: those under way; troubles: what is wrong."""

    pid: str
    what: str
    counts: dict
    rows: list
    transfers: list
    troubles: list = []

    @classmethod
    def at(cls, places, states=None, everything=False, user=None, limit=1000):
        """Return the Overview of these places. states: only those; everything: jobs that have ended, too."""
        reader, (pid, what) = places.reader(), places.at_work()
        try:
            wanted = states or (None if everything else WANTED_ALWAYS)
            rows = reader.jobs(wanted, user, limit)
            if not (everything or states):
                rows += [row for row in reader.jobs([DONE, FAILED], user) if row.waiting_on]
            wrong = troubles.standing(places.state, bool(pid))
            return cls(pid, what, reader.counts(), rows[:limit], progress.transfers(places.state), wrong)
        finally:
            reader.close()

    def plain(self):
        """Return it for programs."""
        jobs = [row._asdict() | {"since": iso(row.since)} for row in self.rows]
        transfers = [one.plain() | {"jobs": [str(JobId(*job)) for job in one.jobs()]} for one in self.transfers]
        at_work = {what: self.pid if what == self.what else None for what in ("daemon", "transfer")}
        return {**at_work, "troubles": self.troubles, "counts": self.counts, "under_way": transfers, "jobs": jobs}

    def head(self):
        """Return the lines above the jobs: the daemon, what is wrong, how many there are, what travels."""
        counts = ", ".join(f"{count} {state}" for state in SHOWN if (count := self.counts.get(state)))
        wrong = [f"trouble: {printable(line, 2000)}" for line in self.troubles]
        return [told_of_work(self.pid, self.what), *wrong, counts or "no jobs yet", *map(told_of_transfer, self.transfers)]


def told_of_work(pid, what):
    """Return a line on whether a daemon, or a pass, is at work."""
    if what == "transfer":
        return f"a pass is at work, pid {pid}"
    return f"a daemon is at work, pid {pid}" if pid else "no daemon is at work; start it: watchties run"


def told_of_transfer(transfer):
    """Return a line on a transfer, with the first job that travels."""
    names = [printable(JobId(*job)) for job in transfer.jobs()]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"under way: {transfer.told()}" + (f" ({names[0]}{more})" if names else "")


def lines(rows, columns, now=None, cut=False):
    """Return the lines of a table of JobRows that fit into so many columns. cut: one line for each reason, else wrapped."""
    now = time.time() if now is None else now
    reasons = [printable(row.waiting_on or row.reason, 4000) for row in rows]
    cells = [(f"{r.tree}:{r.job}", r.state, str(r.attempt or ""), r.host, _age(r.since, now)) for r in rows]
    heads, beside = ("JOB", "STATE", "ATTEMPT", "HOST", "FOR"), columns >= NARROW
    others = sum(max(map(width, column)) + 2 for column in zip(*[row[1:] for row in [heads, *cells]]))
    room = max(columns - others, 20) if not beside else max(JOB_ROOM, columns // 3)
    table = aligned([heads, *((shortened(printable(name, 600), room), *rest) for name, *rest in cells)])
    if beside:
        start = max(map(width, table)) + 2
        return [_beside(line, told, start, columns, cut) for line, told in zip(table, ["WAITS FOR, OR WHY", *reasons])]
    found = table[:1]
    for line, told in zip(table[1:], reasons):
        found += [line, *_wrapped(told, columns - len(INDENT), INDENT, cut)]
    return found


def _beside(line, told, start, columns, cut):
    if not told:
        return line
    pad = " " * start
    return line + pad[width(line) :] + "\n".join(_wrapped(told, columns - start, pad, cut)).removeprefix(pad)


def _wrapped(text, room, indent, cut):
    import textwrap

    if cut:
        return [indent + shortened(text, room)] if text else []
    return [indent + line for line in textwrap.wrap(text, max(room, 20))]


def _age(since, now):
    return progress.seconds(max(0, int(now - since))) if since else "-"


def shortened(text, room):
    """Return text cut to so many columns; of a name, beginning and end are what tells it from others."""
    if width(text) <= room:
        return text
    head, tail = _first(text, (room - 3) * 2 // 3), _first(text[::-1], (room - 3) - (room - 3) * 2 // 3)[::-1]
    return f"{head}...{tail.lstrip()}" if not unicodedata.combining((tail or " ")[0]) else f"{head}...{tail[1:]}"


def _first(text, room):
    """Return as many characters of the beginning as so many columns take."""
    taken = 0
    for number, character in enumerate(text):
        taken += width(character)
        if taken > room:
            return text[:number]
    return text
