"""A task that is told to end does end, also when what it waits for comes in the same moment (in 3.11 wait_for would lose one)."""

import asyncio

from watchties.engine import Engine
from watchties.lanes import Alarms
from watchties.relays import Link


def engine():
    """Return an Engine with nothing to do."""
    made = Engine.__new__(Engine)
    made.dirty, made.ended, made.clock, made.halted = {}, [], lambda: 0.0, False
    made.kick, made._alarms = asyncio.Event(), Alarms()
    made._alarms.set("job", 1000.0)
    made.one_pass = lambda: asyncio.sleep(0)
    return made


def link():
    return Link(far=None, role="web", trees={}, trigger="relay", poll=60.0, heartbeat=60.0, listener=None)


async def cancelled_as_it_wakes(task, event):
    await asyncio.sleep(0.01)
    event.set()
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1)
    return bool(done) and task.cancelled()


def test_the_engine_ends_though_it_was_just_kicked():
    async def attempt():
        one = engine()
        return await cancelled_as_it_wakes(asyncio.ensure_future(one.run()), one.kick)

    assert asyncio.run(attempt())


def test_a_link_ends_though_it_was_just_woken():
    async def attempt():
        one = link()
        return await cancelled_as_it_wakes(asyncio.ensure_future(pause_for_ever(one)), one._wake)

    assert asyncio.run(attempt())


async def pause_for_ever(one):
    while True:
        await one._pause(60.0)
