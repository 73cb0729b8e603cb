"""Each process is killed at points drawn by the seed among its calls on sockets and pipes and its writes of many bytes.

Some of them are killed in the life of one job, one after another: what is tried again after one kill meets the next. In
every second life the journal is spoiled at each kill, too: deleted, truncated or replaced by garbage, while the daemon is dead if it was the
daemon, else beneath it, as an administrator might.
"""

import collections
import random
import time

import calls
import pytest
from calls import NETWORK
from crash_kit import CrashSite, is_traffic
from crash_lives import Sweep, trace
from journal_kit import SPOILS, spoiled

EACH, FEW, SHORT = 200, 2, 30.0  # points for each process; in the short form, and its seconds
AT_ONCE, JOBS = 4, 3  # kills in one life, jobs that it may take for them
DATA = bytes(range(256)) * 2000  # some hundred writes for rsync

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


def process_of(point):
    """Return which of the processes a point belongs to: one name for all rsyncs, one for all calls of the agent, one for relays."""
    first = point.role.split()[0]
    return point.role if first == "hook" else first


class Volley:
    """Points of different processes, to be met in one life. calls: process -> which of its calls, counted from the life's beginning.

    spoil, how: of the journal, or None and "". left: what has not been met; called with each point, it says whether to kill there.
    """

    def __init__(self, calls, spoil=None, how=""):
        self.calls, self.spoil, self.left, self._counted = calls, spoil, dict(calls), collections.Counter()
        self.name = ", ".join(f"{process}: call {number}" for process, number in calls.items()) + (f", journal {how}" if how else "")
        self.fresh = False

    def __call__(self, point):
        process = process_of(point) if is_traffic(point) else ""
        self._counted[process] += 1
        if self.left.get(process) != self._counted[process]:
            return False
        del self.left[process]
        return True


class Volleys(Sweep):
    """Lives with several kills each. met, missed: points."""

    met = 0

    def _take(self, site, volley):
        """Give a job its life, and another one if not all points were met."""
        self.lives += 1
        job = site.begin(volley, spoil=volley.spoil, kills=len(volley.calls))
        for number in range(JOBS):
            before = len(site.hits)
            self.script(site, job)
            end = time.monotonic() + 1  # some are called now and then
            while volley.left and time.monotonic() < end:
                time.sleep(0.05)
            if not volley.left or number == JOBS - 1:
                site.aim = None
            state, fields = site.follow(job)
            if len(site.hits) > before:
                self.wrong += [f"{volley.name}; killed at {site.where()}: {what}" for what in self.judge(site, job, state, fields)]
            if not volley.left:
                break
            job = site.new_name()
        self.met += len(site.hits)
        self.missed += volley.left


def make(folder):
    return CrashSite(folder, names=NETWORK, data=DATA)


def counts(folder):
    """Return {process: how many such calls it makes in one life, at the least}."""
    found = []
    with make(folder) as site:
        site.start().wait_ready()
        trace(site)  # the first is not like the others
        for _ in range(2):
            counted = collections.Counter()
            site.seen = lambda point: counted.update([process_of(point)] if is_traffic(point) else [])
            trace(site)
            found.append(counted)
    return {process: min(one[process] for one in found) for process in found[0] if all(one[process] for one in found)}


def drawn(counted, draw, each):
    """Return Volleys with `each` points for each process, every second with a spoiled journal."""
    found, number = [], 0
    for _ in range(each):
        processes = draw.sample(sorted(counted), len(counted))
        for at in range(0, len(processes), AT_ONCE):
            how = draw.choice(sorted(SPOILS)) if number % 2 else ""
            number += 1
            calls = {process: draw.randint(1, counted[process]) for process in processes[at : at + AT_ONCE]}
            found.append(Volley(calls, spoiled(how, draw.randrange(1 << 30)) if how else None, how))
    return found


@pytest.mark.slow
def test_kills_amid_traffic_lose_nothing_and_repeat_nothing(tmp_path, seed, long, figure):
    draw = random.Random(seed)
    counted = counts(tmp_path / "trace")
    volleys = drawn(counted, draw, EACH if long else FEW)
    points = sum(len(volley.calls) for volley in volleys)
    sweep = Volleys(tmp_path, volleys, None if long else SHORT, make=make).run()
    calls_of = ", ".join(f"{process} {count}" for process, count in sorted(counted.items()))
    figure(f"calls on sockets and pipes and bulk writes in one job's life: {calls_of}; {sweep.met} kills at {points} points drawn, "
           f"in {sweep.lives} lives, {len(sweep.missed)} not reached; {len(sweep.wrong)} wrong")  # fmt: skip
    assert not sweep.wrong, "\n".join(sweep.wrong)
    assert sweep.met >= 2 and (not long or len(sweep.missed) * 50 <= points), sweep.missed
