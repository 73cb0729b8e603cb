"""Lives of jobs, one for each point: traced undisturbed, then lived with a kill at that point; in some lanes at once.

Knows: how a life is begun and when it is over, that a life goes on with one more job if its point was not reached.
Must not know: which points a test wants, what is on disk.
"""

import queue
import threading
import time
from typing import Callable, NamedTuple

from crash_checks import expected, wait_clean
from crash_kit import CrashSite

LANES = 3  # sites at once: most of a life is waiting
JOBS = 6  # in one life, until its point is reached: how the journal's writes fall together differs from job to job


class Turn(NamedTuple):
    """One point's turn. aim(): a new function (point) -> whether it is the one; fresh: on a new site, from the daemon's start on."""

    name: str
    aim: Callable
    fresh: bool = False
    spoil: Callable | None = None


def at(point, fresh=False, spoil=None):
    """Return the turn of one Point."""
    return Turn(str(point), lambda: lambda found: found == point, fresh, spoil)


def plain(site, job):
    """Drop a job, see it to its end; return (state, fields)."""
    site.put(job)
    return site.follow(job)


def trace(site, fresh=False, script=plain, state="DONE", judge=None):
    """Return the points of one undisturbed job, in their order; fresh: from the daemon's start on a new site."""
    points = {}
    job = site.begin(points=points)
    if fresh:
        site.start()
    found, fields = script(site, job)
    site.points = None
    wrong = (judge or globals()["judge"])(site, job, found, fields)
    assert (found, wrong) == (state, []), (found, fields, wrong)
    return list(points)


def judge(site, job, state, fields, **more):
    """Return what is wrong at the end of a job, in words. A wrapper that was killed is lost, unless its `exit` stood already."""
    wrong, runs = [], (1,)
    if state == "FAILED" and site.has_hit("wrapper"):
        runs = (0, 1)
        if fields.get("cause") != "lost":
            wrong.append(f"FAILED {fields}, not lost")
    elif state != "DONE":
        wrong.append(f"{state} {fields}")
    return wrong + expected(site, job, state, **{"runs": runs} | more) + [f"left: {what}" for what in wait_clean(site, job)]


class Sweep:
    """Turns that wait for their lives, and what became of them. make(folder): a new site; script, judge: of a life."""

    def __init__(self, folder, turns, seconds=None, make=CrashSite, script=plain, judge=judge, lanes=LANES):
        self.folder, self.waiting, self.lanes = folder, queue.SimpleQueue(), lanes
        self.make, self.script, self.judge = make, script, judge
        for turn in turns:
            self.waiting.put(turn)
        self.end = time.monotonic() + seconds if seconds else float("inf")
        self.killed, self.missed, self.wrong, self.lives, self.sites = [], [], [], 0, 0

    def run(self):
        """Let every turn have its life; one that breaks a lane's site is told, and the lane goes on with a new one."""
        lanes = [threading.Thread(target=self._lane) for _ in range(self.lanes)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        return self

    def _lane(self):
        site = None
        while time.monotonic() < self.end:
            try:
                turn = self.waiting.get_nowait()
            except queue.Empty:
                break
            try:
                if turn.fresh or not site:
                    self._close(site)
                    site = self._site(turn.fresh)
                self._take(site, turn)
                keep = not turn.fresh
            except Exception as error:
                self.wrong.append(f"{turn.name}: {error!r}"[:6000].replace("\\n", "\n"))
                keep = False
            if not keep:
                self._close(site)
                site = None
        self._close(site)

    def _site(self, fresh):
        self.sites += 1
        site = self.make(self.folder / f"{self.sites}.{threading.get_ident()}").__enter__()
        if not fresh:
            site.start().wait_ready()
        return site

    def _take(self, site, turn):
        self.lives += 1
        wrong = self._life(site, turn)
        if wrong is None:
            self.missed.append(turn)
        else:
            self.killed.append(turn)
            self.wrong += [f"{turn.name}: {what}" for what in wrong]

    def _life(self, site, turn):
        """Give a job a life with a kill, or the next one if it is over before; return what is wrong; None if it was never reached."""
        job = site.begin(turn.aim(), spoil=turn.spoil)
        if turn.fresh:
            site.start()
        for _ in range(JOBS):
            self.script(site, job)
            end = time.monotonic() + 1
            while not site.hit and time.monotonic() < end:
                time.sleep(0.05)
            if site.hit:
                site.aim = None
                state, fields = site.follow(job)
                return self.judge(site, job, state, fields)
            job = site.new_name()
        site.aim = None
        return None

    def _close(self, site):
        if site:
            try:
                site.__exit__()
            except Exception as error:
                self.wrong.append(f"at the end of a site: {error!r}")


def sample(turns, role_of, draw):
    """Return turns in an order drawn, but one of each role first."""
    turns = draw.sample(turns, len(turns))
    first = {role_of(turn): turn for turn in turns}
    return [*first.values(), *(turn for turn in turns if turn is not first[role_of(turn)])]
