"""Daemon, each hook, rsync, agent and wrapper are killed at every call of one job's life that makes something durable.

One undisturbed job is traced: its points are all renames, links, unlinks, mkdirs and syncs, and all writes to a marker, a record, a
claim, a run's results or the journal. Then each point has a life of its own: a new job, the one process killed just before that
call, the daemon started again if it was it. The kill before the next call is the one after this.
"""

import collections
import random
import time

import calls
import pytest
from crash_kit import HOLD, CrashSite, is_lasting
from crash_lives import Sweep, at, judge, sample, trace

SHORT, SHORT_CANCEL = 30.0, 8.0  # seconds of new lives in the short form

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


def all_points(folder):
    """Return {point: whether it is one of the daemon's first start} of a job on a site that is at work, and before: those that two
    lives have in common, as how often a status is asked for, say, differs."""
    with CrashSite(folder / "trace") as site:
        first, warm, warm_again = trace(site, fresh=True), trace(site), set(trace(site))
    with CrashSite(folder / "again") as site:  # which agent is the first to look at a tree, and marks it, differs from life to life
        again = set(trace(site, fresh=True))
    first = [point for point in first if point in again]
    found = {point: False for point in warm if point in warm_again}
    return {point: fresh for point, fresh in (found | {p: True for p in first if p not in found}).items() if is_lasting(point)}


def told(points, sweep):
    """Return the figure of a sweep in words."""
    roles = collections.Counter(point.role.partition(",")[0] for point in points)
    return (f"{len(points)} points in one job's life ({', '.join(f'{role} {count}' for role, count in sorted(roles.items()))}); "
            f"killed at {len(set(sweep.killed))} of them in {sweep.lives} lives; {len(sweep.wrong)} wrong")  # fmt: skip


def hold(sweep, count, long):
    """Assert that nothing went wrong and, in the long form, that every point has had its kill."""
    assert not sweep.wrong, "\n".join([*sweep.wrong, *(f"not reached: {turn.name}" for turn in sweep.missed)])
    if long:
        assert (len(set(sweep.killed)), [turn.name for turn in sweep.missed]) == (count, [])


@pytest.mark.slow
def test_a_kill_at_every_lasting_call_loses_nothing_and_repeats_nothing(tmp_path, seed, long, figure):
    points = all_points(tmp_path)
    turns = {at(point, fresh): point for point, fresh in points.items()}
    order = sample(list(turns), lambda turn: turns[turn].role, random.Random(seed))
    sweep = Sweep(tmp_path, order, None if long else SHORT).run()
    figure(told(points, sweep))
    hold(sweep, len(points), long)


# ---- a job that is stopped ----


def stopped(site, job):
    """Drop a job that waits, touch CANCEL when it runs, and see it to its end."""
    site.put(job, HOLD)
    while not (site.compute / job / "busy").exists():
        site.revive()
        time.sleep(0.02)
    site.touch(job, "CANCEL")
    return site.follow(job)


def judge_stopped(site, job, state, fields):
    """Return what is wrong with a job that was stopped: it has begun, so it ran once."""
    wrong = judge(site, job, state, fields)
    cause = ("cancelled", "lost") if site.has_hit("wrapper") else ("cancelled",)
    return [what for what in wrong if not what.startswith("FAILED {")] if state == "FAILED" and fields.get("cause") in cause else wrong


@pytest.mark.slow
def test_a_kill_at_every_lasting_call_of_a_cancellation(tmp_path, seed, long, figure):
    with CrashSite(tmp_path / "trace") as site:
        site.start().wait_ready()
        usual = set(trace(site)) | set(trace(site))
        points = [point for _ in range(2) for point in trace(site, script=stopped, state="FAILED", judge=judge_stopped)]
    points = [point for point in dict.fromkeys(points) if is_lasting(point) and point not in usual]
    turns = {at(point): point for point in points}
    order = sample(list(turns), lambda turn: turns[turn].role, random.Random(seed))
    sweep = Sweep(tmp_path, order, None if long else SHORT_CANCEL, script=stopped, judge=judge_stopped).run()
    figure("of a cancellation, " + told(points, sweep))
    hold(sweep, len(points), long)


# ---- a wrapper that is killed, where a lost job is to be run once more ----


def judge_again(site, job, state, fields):
    """Return what is wrong: a lost job has run once more, and only once; two at a time would have left a trace."""
    return judge(site, job, state, fields, runs=(1, 2))


@pytest.mark.slow
def test_a_killed_wrapper_is_run_once_more_where_that_is_asked_for(tmp_path, seed, long, figure):
    make = lambda folder: CrashSite(folder, tree="resubmit_lost = 1")  # noqa: E731
    with make(tmp_path / "trace") as site:
        site.start().wait_ready()
        points = [point for point in trace(site) if point.role == "wrapper" and is_lasting(point)]
    order = random.Random(seed).sample(points, len(points) if long else 2)
    sweep = Sweep(tmp_path, [at(point) for point in order], make=make, judge=judge_again).run()
    figure(f"resubmit_lost: wrapper killed at {len(sweep.killed)} of {len(points)} points; {len(sweep.wrong)} wrong")
    hold(sweep, len(points), long)
