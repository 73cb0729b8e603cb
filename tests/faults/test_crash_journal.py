"""The journal is deleted, truncated or replaced by garbage at every lasting call of one job's life: only history is lost.

Where the call is the daemon's, the daemon is killed there, and its journal spoiled while it is dead; where it is another's, that one
is killed, and the journal spoiled beneath the daemon that lives: it goes on, and says in its log what it has found.
"""

import random

import calls
import pytest
from crash_kit import CrashSite
from crash_lives import Sweep, at, judge, sample
from journal_kit import SPOILS, spoiled
from test_crash_sweep import all_points, hold

SHORT = 12.0  # seconds of new lives in the short form

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


def judge_with_status(site, job, state, fields):
    """Return what is wrong, also with what `status` tells people afterwards from the journal that was made anew."""
    wrong = judge(site, job, state, fields)
    said = site.watchties("status", job, check=False)
    return wrong + ([] if said.returncode == 0 and state in said.stdout else [f"status: {said.stdout} {said.stderr}"])


@pytest.mark.slow
def test_a_spoiled_journal_costs_history_and_nothing_else(tmp_path, seed, long, figure):
    draw, points = random.Random(seed), all_points(tmp_path)
    ways = {point: draw.choice(sorted(SPOILS)) for point in points}
    turns = {at(point, fresh, spoiled(ways[point], draw.randrange(1 << 30))): point for point, fresh in points.items()}
    order = sample(list(turns), lambda turn: ways[turns[turn]], draw)
    sweep = Sweep(tmp_path, order, None if long else SHORT, make=CrashSite, judge=judge_with_status).run()
    figure(f"journal deleted, truncated or replaced by garbage at {len(sweep.killed)} of {len(points)} points, {len(sweep.wrong)} wrong")
    hold(sweep, len(points), long)
