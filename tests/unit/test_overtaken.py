"""Outcomes that come too late, and attempts that gave up while something of them may still run (found by the simulation)."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from watchties import decide, outcomes, record
from watchties.model import CANCEL, DONE, FAILED, MIRROR, PENDING, SUBMITTED, WEB, Outcome, Request
from watchties.record import Attempt, Record

RETRY = SimpleNamespace(first=5.0, maximum=60.0, give_up_after=100.0)
FIRST = record.accept(Record(), Request(WEB, PENDING, 10), "t1")
AT_HOST = record.contact(FIRST, "b1")
RUNNING = replace(AT_HOST, phase=SUBMITTED)
NEXT = record.accept(RUNNING, Request(WEB, PENDING, 20), "t2")


def take_in(rec, rule, outcome, now=1000.0, **told):
    told = {"token": "t1", "marker": PENDING, "run": "r1", "identity": "", "request": ""} | told
    return outcomes.take_in(rec, SimpleNamespace(name=rule, retry=RETRY), told, outcome, now, "new", 300.0)


@pytest.mark.parametrize(
    "rule, outcome",
    [("submit", Outcome("done", "", {"id": "7"})), ("submit", Outcome("failed", "no queue", {"cause": "rejected"})),
     ("submit", Outcome("retry", "full")), ("fetch", Outcome("done", "", {"state": DONE})), ("fetch", Outcome("failed", "disk")), ("poll", Outcome("retry", "x")),
     ("report", Outcome("done")), ("mail", Outcome("failed", "x"))],
)  # fmt: skip
def test_what_is_said_of_the_overtaken_attempt_is_not_taken_for_the_next(rule, outcome):
    """A submit of attempt 1 that ends after attempt 2 was accepted once made attempt 2 SUBMITTED, which nobody had submitted."""
    assert take_in(NEXT, rule, outcome) == outcomes.Taken(NEXT)


def test_only_cancel_speaks_of_the_overtaken_attempt():
    assert take_in(NEXT, "cancel", Outcome("done", "", {"how": "exited"})).record == replace(NEXT, old=None)
    assert take_in(NEXT, "cancel", Outcome("retry", "still there")).record.tries["cancel"]["count"] == 1


@pytest.mark.parametrize("rule, told", [("report", {"marker": SUBMITTED}), ("poll", {}), ("fetch", {}), ("submit", {})])
def test_a_failure_of_an_earlier_phase_is_not_counted(rule, told):
    ended = replace(RUNNING, phase=DONE)
    for outcome in Outcome("retry", "x"), Outcome("failed", "x"):
        assert take_in(ended, rule, outcome, **told) == outcomes.Taken(ended)


def test_a_submit_that_gives_up_must_still_be_proven_ended():
    """The entry may stand in the queue: the next attempt would run beside it."""
    taken = take_in(AT_HOST, "submit", Outcome("failed", "not known whether it was submitted"))
    assert (taken.record.phase, taken.record.old) == (FAILED, Attempt(1, "t1", "b1")) and "gave up" in taken.notice
    after = record.accept(taken.record, Request(MIRROR, PENDING, 99), "t2")
    assert decide.cancel_waits(after)
    assert take_in(after, "cancel", Outcome("done", "", {"how": "none"})).record.old is None


def test_a_refused_submit_has_nothing_to_end():
    assert take_in(AT_HOST, "submit", Outcome("failed", "no such queue", {"cause": "rejected"})).record.old is None


def test_an_interrupted_pull_that_cannot_be_repeated_stays_open_and_is_told_once():
    """Without a pause it would be started, and told of, again and again."""
    rec = replace(RUNNING, pulling="r1")
    taken = take_in(rec, "pull", Outcome("failed", "permission denied"))
    assert "cannot be repeated" in taken.notice and taken.record.pulling == "r1" and taken.record.phase == SUBMITTED
    assert taken.record.tries["pull"]["next"] >= 1000.0 + outcomes.DAY
    assert take_in(taken.record, "pull", Outcome("failed", "permission denied"), now=1e6).notice == ""


def test_a_job_that_was_found_again_is_not_missing_since_then():
    missing = take_in(RUNNING, "poll", Outcome("retry", "gone?", {"missing": 1000.0})).record
    assert missing.tries["poll"]["fields"] == {"missing": 1000.0}
    assert take_in(missing, "poll", Outcome("done", "", {"seen": ""})).record == RUNNING


def test_cancel_is_accepted_with_what_it_has_ended():
    stop = Request(WEB, CANCEL, 30)
    rec = take_in(RUNNING, "cancel", Outcome("done", "", {"how": "ended"}), request=str(stop)).record
    assert (rec.phase, rec.fields["cause"]) == (FAILED, "cancelled") and rec.has_accepted(stop)
