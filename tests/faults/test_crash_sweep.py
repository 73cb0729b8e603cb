"""Daemon, each hook, rsync, agent and wrapper are killed at every call of one job's life that makes something durable.

One undisturbed job is traced: its points are all renames, links, unlinks, mkdirs and syncs, and all writes to a marker, a record, a
claim, a run's results or the journal. Then each point has a life of its own: a new job, the one process killed just before that
call, the daemon started again if it was it. The kill before the next call is the one after this.
"""

import collections
import queue
import random
import threading
import time

import calls
import pytest
from crash_kit import COMMAND, CrashSite, expected, is_lasting, wait_clean

LANES = 3  # sites at once: most of a life is waiting
TRIES = 6  # lives for one point: how the journal's writes fall together differs a little from life to life
SHORT = 40.0  # seconds of new lives in the short form

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


def trace(site, fresh):
    """Return the points of one undisturbed job, in their order; fresh: from the daemon's start on a new site."""
    points = {}
    job = site.begin(points=points)
    if fresh:
        site.start()
    site.drop(job, COMMAND)
    state, _ = site.follow(job)
    assert (state, expected(site, job, state), wait_clean(site, job)) == ("DONE", [], [])
    site.points = None
    return [point for point in points if is_lasting(point)]


def life(site, point, fresh=False):
    """Give one job a life with a kill at a point; return what is wrong, in words; None if the point was not reached."""
    job = site.begin(aim=lambda found: found == point)
    if fresh:
        site.start()
    site.drop(job, COMMAND)
    state, fields = site.follow(job)
    end = time.monotonic() + 1
    while not site.hit and time.monotonic() < end:
        time.sleep(0.05)
    if not site.hit:
        return None
    state, fields = site.follow(job)
    return judge(site, job, state, fields, point.role == "wrapper")


def judge(site, job, state, fields, lost_is_right):
    """Return what is wrong at the end of a job. A wrapper that was killed is lost, unless its `exit` stood already."""
    wrong, runs = [], (1,)
    if state == "FAILED" and lost_is_right:
        runs = (0, 1)
        if fields.get("cause") != "lost":
            wrong.append(f"FAILED {fields}, not lost")
    elif state != "DONE":
        wrong.append(f"{state} {fields}")
    wrong += expected(site, job, state, runs) + [f"left: {what}" for what in wait_clean(site, job)]
    return wrong


class Sweep:
    """Points that wait for their lives, and what became of them."""

    def __init__(self, folder, points, seconds=None):
        self.folder, self.waiting = folder, queue.SimpleQueue()
        for fresh, point in points:
            self.waiting.put((fresh, point))
        self.end = time.monotonic() + seconds if seconds else float("inf")
        self.killed, self.wrong, self.lives, self.sites = set(), [], 0, 0

    def run(self):
        """Have every point's life, in some lanes at once; one that breaks a lane is told, and the lane goes on with a new site."""
        lanes = [threading.Thread(target=self._lane, args=(number,)) for number in range(LANES)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        return self

    def _lane(self, number):
        site = None
        while time.monotonic() < self.end:
            try:
                fresh, point = self.waiting.get_nowait()
            except queue.Empty:
                break
            try:
                if fresh or not site:
                    self._close(site)
                    site = self._site(fresh)
                self._take(site, point, fresh)
            except Exception as error:
                self.wrong.append(f"{point}: {error!r}"[:6000])
                self._close(site)
                site = None
            if fresh:
                self._close(site)
                site = None
        self._close(site)

    def _site(self, fresh):
        self.sites += 1
        site = CrashSite(self.folder / f"{self.sites}.{threading.get_ident()}").__enter__()
        if not fresh:
            site.start().wait_ready()
        return site

    def _take(self, site, point, fresh):
        for _ in range(1 if fresh else TRIES):
            self.lives += 1
            wrong = life(site, point, fresh)
            if wrong is not None:
                self.killed.add((fresh, point))
                self.wrong += [f"{point}: {what}" for what in wrong]
                return

    def _close(self, site):
        if site:
            try:
                site.__exit__()
            except Exception as error:
                self.wrong.append(f"at the end of a site: {error!r}")


def sample(points, draw):
    """Return the points in an order drawn, but one of each role first."""
    points = draw.sample(points, len(points))
    first = {point.role: (fresh, point) for fresh, point in points}
    return [*first.values(), *(one for one in points if one not in first.values())]


def all_points(folder):
    """Return [(on a new site, point)] of a job on a site that is at work, then of the daemon's start before it; how many by role."""
    with CrashSite(folder / "trace") as site:
        first = trace(site, True)
        warm = [point for _ in range(2) for point in trace(site, False)]
    warm = list(dict.fromkeys(warm))
    points = [(False, point) for point in warm] + [(True, point) for point in first if point not in set(warm)]
    return points, collections.Counter(point.role.partition(",")[0] for _, point in points)


@pytest.mark.slow
def test_a_kill_at_every_lasting_call_loses_nothing_and_repeats_nothing(tmp_path, seed, long, figure):
    points, roles = all_points(tmp_path)
    draw = random.Random(seed)
    sweep = Sweep(tmp_path, sample(points, draw), None if long else SHORT).run()
    counted = ", ".join(f"{role} {count}" for role, count in sorted(roles.items()))
    figure(f"{len(points)} points in one job's life ({counted}); killed at {len(sweep.killed)} of them in {sweep.lives} lives; "
           f"{len(sweep.wrong)} wrong")  # fmt: skip
    assert not sweep.wrong, "\n".join(sweep.wrong)
    if long:
        assert sweep.killed == set(points), [str(point) for _, point in set(points) - sweep.killed]
