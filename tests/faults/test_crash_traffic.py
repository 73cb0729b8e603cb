"""Each process is killed at points drawn by the seed among its calls on sockets and pipes and its writes of many bytes.

At every second of them the journal is spoiled too: deleted, truncated or replaced by garbage, while the daemon is dead if it was the
daemon, else beneath it, as an administrator might.
"""

import collections
import random

import calls
import pytest
from calls import NETWORK
from crash_kit import CrashSite, is_traffic
from crash_lives import Sweep, Turn, sample, trace
from journal_kit import SPOILS, spoiled

EACH, FEW, SHORT = 200, 2, 30.0  # points for each process; in the short form, and its seconds
DATA = bytes(range(256)) * 2000  # some hundred writes for rsync

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


def process_of(point):
    """Return which of the processes a point belongs to: one name for all rsyncs, one for all calls of the agent, one for relays."""
    first = point.role.split()[0]
    return point.role if first == "hook" else first


def nth(process, number):
    """Return a function (point) -> whether it is this call of this process, counted from the beginning of a life."""
    counted = [0]

    def aim(point):
        counted[0] += is_traffic(point) and process_of(point) == process
        return counted[0] == number and is_traffic(point) and process_of(point) == process

    return aim


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
    """Return turns: `each` for each process, every second with a spoiled journal."""
    turns = []
    for process, count in sorted(counted.items()):
        for number in range(each):
            call, how = draw.randint(1, count), draw.choice(sorted(SPOILS))
            spoil = spoiled(how, draw.randrange(1 << 30)) if number % 2 else None
            name = f"{process}, call {call} of {count}" + (f", journal {how}" if spoil else "")
            turns.append(Turn(name, lambda process=process, call=call: nth(process, call), spoil=spoil))
    return turns


@pytest.mark.slow
def test_kills_amid_traffic_lose_nothing_and_repeat_nothing(tmp_path, seed, long, figure):
    draw = random.Random(seed)
    counted = counts(tmp_path / "trace")
    turns = drawn(counted, draw, EACH if long else FEW)
    order = sample(turns, lambda turn: turn.name.partition(",")[0], draw)
    sweep = Sweep(tmp_path, order, None if long else SHORT, make=make).run()
    calls_of = ", ".join(f"{process} {count}" for process, count in sorted(counted.items()))
    figure(f"calls on sockets and pipes and bulk writes in one job's life: {calls_of}; {len(sweep.killed)} kills at {len(turns)} points "
           f"drawn, {len(sweep.missed)} not reached; {len(sweep.wrong)} wrong")  # fmt: skip
    assert not sweep.wrong, "\n".join(sweep.wrong)
    assert not long or len(sweep.missed) * 50 <= len(turns), [turn.name for turn in sweep.missed]
