"""Queues: fairness, batches, slots, jobs that travel alone, room on a host, the breaker."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchties.lanes import ALARM_MAXIMUM, ALONE, PROBE_MAXIMUM, PROBE_SELDOM, STEADY, Alarms, Breaker, FairQueue, Hold, Lane, backoff


def test_users_take_turns():
    queue = FairQueue()
    for item in ["a1", "a2", "a3", "b1", "c1", "c2"]:
        queue.add(item[0], item)
    assert queue.take(4) == ["a1", "b1", "c1", "a2"]
    queue.add("d", "d1")
    assert queue.take(9) == ["c2", "a3", "d1"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 20))), st.integers(1, 7))
def test_each_item_comes_out_once_in_its_users_order(items, size):
    queue = FairQueue()
    for user, item in items:
        queue.add(user, (user, item))
    out = []
    while batch := queue.take(size):
        assert len(batch) <= size
        out += batch
    wanted = list(dict.fromkeys(items))
    assert sorted(out) == sorted(wanted) and len(queue) == 0
    for user in "abcd":
        assert [i for i in out if i[0] == user] == [i for i in wanted if i[0] == user]


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_nobody_gets_two_turns_ahead_of_somebody_who_waits(users):
    queue = FairQueue()
    for number, user in enumerate(users):
        queue.add(user, (user, number))
    left = {u: users.count(u) for u in set(users)}
    given_to = dict.fromkeys(left, 0)
    for user, _ in queue.take(len(users)):
        given_to[user] += 1
        left[user] -= 1
        assert all(given_to[user] - given_to[other] <= 1 for other in left if left[other])


def test_a_batch_waits_for_a_slot_and_then_takes_all_that_gathered():
    lane = Lane("pull", "vision", batch=3, parallel=1)
    lane.offer("a", "u")
    assert lane.next_batch() == ("0", ["a"])
    lane.busy.add("0")
    for item in "bcde":
        lane.offer(item, "u")
    assert lane.next_batch() is None
    lane.busy.clear()
    assert lane.next_batch() == ("0", ["b", "c", "d"])
    assert lane.next_batch() == ("0", ["e"]) and lane.waiting() == 0


def test_a_large_job_has_a_slot_of_its_own():
    lane = Lane("push", "vision", batch=10, alone_above=100)
    lane.offer("large", "u", size=101)
    lane.offer("small", "u", size=100)
    slot, jobs = lane.next_batch()
    assert (slot, jobs) == (ALONE, ["large"])
    lane.busy.add(slot)
    assert lane.next_batch() == ("0", ["small"])


def test_jobs_that_need_room_wait_for_it_and_others_do_not():
    lane = Lane("submit", "b01", batch=10)
    for item in "abc":
        lane.offer(item, "u", needs_room=True)
    lane.offer("again", "u")
    assert lane.next_batch(room=2) == ("0", ["again", "a", "b"])
    assert lane.next_batch(room=0) is None
    assert lane.next_batch(room=None) == ("0", ["c"])


def test_an_offer_is_taken_once():
    lane = Lane("pull", "vision", batch=10)
    lane.offer("a", "u")
    lane.offer("a", "u", needs_room=True)
    assert lane.waiting() == 1


def test_a_large_job_that_needs_room_travels_alone_and_only_if_there_is_room():
    lane = Lane("submit", "b01", batch=10, alone_above=100)
    lane.offer("big", "u", size=101, needs_room=True)
    lane.offer("small", "u", size=100, needs_room=True)
    assert lane.waiting() == 2 and "big" in lane
    assert lane.next_batch(room=0) is None
    assert lane.next_batch(room=2) == (ALONE, ["big"])
    lane.busy.add(ALONE)
    assert lane.next_batch(room=1) == ("0", ["small"])


@given(st.integers(0, 200), st.floats(0, 1))
def test_backoff_doubles_up_to_its_maximum_and_never_waits_longer(count, jitter):
    pause = backoff(count, 10, 900, lambda: jitter)
    whole = min(900, 10 * 2 ** min(count, 40))
    assert 0.75 * whole <= pause <= whole


def test_the_breaker_tells_news_once_and_probes_at_once_and_then_seldomer():
    breaker = Breaker()
    assert breaker.failed("no route", 100.0) and breaker.down and (breaker.since, breaker.next_probe) == (100.0, 100.0)
    assert not breaker.failed("no route", 100.1)  # a run that had begun before
    pauses, now = [], 100.0
    for _ in range(12):
        breaker.probe_failed("still no route", now)
        pauses.append(breaker.next_probe - now)
        now = breaker.next_probe
    assert pauses[0] <= 5 and 0.75 * PROBE_MAXIMUM <= pauses[-1] <= PROBE_MAXIMUM
    assert breaker.since == 100.0 and breaker.answered(now) and not breaker.down and not breaker.answered(now)
    assert breaker.failed("no route again", now + 1) and breaker.next_probe == now + 1  # it was no false alarm: the next is taken as seriously


def test_false_alarms_that_go_on_are_looked_into_seldomer_and_seldomer():
    breaker, now, pauses = Breaker(), 100.0, []
    for _ in range(8):
        assert breaker.failed("the agent said nothing", now)
        pauses.append(breaker.next_probe - now)
        assert breaker.answered(breaker.next_probe)
        now = breaker.next_probe + 1
    assert pauses[0] == 0 and pauses[1] <= 5 and 0.75 * ALARM_MAXIMUM <= pauses[-1] <= ALARM_MAXIMUM
    assert breaker.failed("much later", now + STEADY) and breaker.next_probe == now + STEADY


def test_a_host_that_keeps_us_out_is_left_alone_for_longer():
    breaker, now = Breaker(), 100.0
    for _ in range(12):
        breaker.probe_failed("Permission denied", now, PROBE_SELDOM)
        pause, now = breaker.next_probe - now, breaker.next_probe
    assert pause >= 0.75 * PROBE_SELDOM > PROBE_MAXIMUM


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_no_more_runs_than_slots(parallel):
    lane = Lane("fetch", "b01", batch=1, parallel=parallel)
    for number in range(20):
        lane.offer(number, "u")
    while found := lane.next_batch():
        lane.busy.add(found[0])
    assert len(lane.busy) == parallel


def test_alarms_fall_due_in_time_and_once():
    alarms = Alarms()
    assert alarms.seconds(0) is None
    for item, when in ("b", 20), ("a", 10), ("c", 30):
        alarms.set(item, when)
    assert alarms.seconds(4) == 6 and alarms.due(9) == []
    assert alarms.due(20) == ["a", "b"] and alarms.seconds(40) == 0
    assert alarms.due(40) == ["c"] and alarms.due(99) == []


def test_a_lane_is_held_back_longer_with_each_run_that_brought_nothing_there():
    retry = SimpleNamespace(first=10.0, maximum=60.0)
    hold, now, pauses = Hold(), 1000.0, []
    for count in range(1, 6):
        assert hold.refused("full", False, now, retry) == count
        pauses.append(hold.until - now)
        assert hold.refused("full still", False, hold.until - 1, retry) == 0 and hold.until - now == pauses[-1]
        now = hold.until
    assert all(0.75 * wanted <= pause <= wanted for pause, wanted in zip(pauses, [10, 20, 40, 60, 60]))
    assert hold.refused("full again", True, now, retry) == 1 and hold.until - now <= 10 and hold.reason == "full again"


def test_an_alarm_that_is_set_again_and_again_takes_no_room():
    """A job that waits for tomorrow, and is looked at with each event, must not fill the memory until then."""
    alarms = Alarms()
    for _ in range(1000):
        alarms.set("a", 10)
    assert len(alarms._heap) == 1 and alarms.due(10) == ["a"]
    alarms.set("a", 10)
    assert alarms.due(10) == ["a"]
