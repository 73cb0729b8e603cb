"""From what a run says to what the record holds."""

from dataclasses import replace

import pytest

from watchties import outcomes, record
from watchties.model import DONE, FAILED, PENDING, SUBMITTED, WEB, Outcome, Request
from watchties.record import GAVE_UP, Attempt, Record

NOW = 1000.0


class Retry:
    first, maximum, give_up_after = 10.0, 900.0, 3600.0


class Rule:
    def __init__(self, name):
        self.name, self.retry = name, Retry


REQUEST = Request(WEB, PENDING, 17)
WAITING = record.accept(Record(), REQUEST, "t1")
AT_HOST = record.contact(WAITING, "b01")
RUNNING = replace(AT_HOST, phase=SUBMITTED, fields={"id": "9"})
ENDED = replace(RUNNING, phase=DONE)
TOLD = {"token": "t1", "marker": "", "run": "pull-1", "identity": 17, "request": ""}


def take(rec, rule, outcome, now=NOW, **told):
    taken = outcomes.take_in(rec, Rule(rule), {**TOLD, **told}, outcome, now, "t2", 300.0)
    return taken.record, taken.notice


@pytest.mark.parametrize("rule", ["pull", "submit", "fetch", "push", "cancel"])
def test_an_interrupted_run_changes_nothing(rule):
    assert take(RUNNING, rule, None) == (RUNNING, "")


@pytest.mark.parametrize("rule", ["submit", "fetch", "push", "mail", "poll", "cancel"])
def test_what_is_said_of_an_overtaken_attempt_changes_nothing(rule):
    assert take(RUNNING, rule, Outcome("done", "", {"state": DONE}), token="t0") == (RUNNING, "")


@pytest.mark.parametrize("rule", ["pull", "submit", "fetch", "push"])
def test_a_host_that_is_down_costs_the_job_nothing(rule):
    assert take(RUNNING, rule, Outcome("retry", "no route", {"host_down": True})) == (RUNNING, "")


def test_a_scheduler_that_takes_no_more_costs_the_job_no_try_and_what_was_asked_before_counts_no_longer():
    rec, _ = take(AT_HOST, "submit", Outcome("retry", "asked once more", {"asked": 5}))
    for later in range(20):
        rec, notice = take(rec, "submit", Outcome("retry", "full", {"later": True, "asked": 0}), now=NOW + 9999 * later)
        assert rec.phase == PENDING and notice == ""
    assert rec.tries["submit"] == {"count": 0, "at": NOW + 9999 * 19, "next": NOW + 9999 * 19, "reason": "full", "fields": {"asked": 0}}
    rec, _ = take(rec, "submit", Outcome("retry", "asked once more"), now=NOW + 9e9)
    assert rec.phase == PENDING and rec.tries["submit"]["count"] == 1, "trying has begun anew"


def test_a_pull_accepts_what_it_saw_last():
    rec, _ = take(Record(pulling="pull-1"), "pull", Outcome("done", "", {"identity": "18", "bytes": 5}))
    assert (rec.phase, rec.attempt, rec.token, rec.pulling, rec.size) == (PENDING, 1, "t2", "", 5)
    assert rec.accepted == ("web:PENDING:18",)


def test_a_pull_of_a_withdrawn_request_accepts_nothing():
    rec, _ = take(Record(pulling="pull-1"), "pull", Outcome("done", "", {"identity": ""}))
    assert rec == Record()


def test_a_result_of_an_earlier_pull_leaves_the_open_one_open():
    open_pull = Record(pulling="pull-2")
    assert take(open_pull, "pull", Outcome("done", "", {"identity": "18"})) == (open_pull, "")


def test_a_job_over_its_limits_is_rejected_at_once():
    rec, notice = take(Record(pulling="pull-1"), "pull", Outcome("done", "", {"identity": "18", "cause": "rejected", "reason": "too large"}))
    assert (rec.phase, rec.fields["cause"], rec.fields["reason"], notice) == (FAILED, "rejected", "too large", "")


def test_submit_fetch_and_push_lead_to_the_end():
    rec, _ = take(AT_HOST, "submit", Outcome("done", "", {"id": "44"}))
    assert (rec.phase, rec.fields["id"], rec.fields["since"]) == (SUBMITTED, "44", NOW)
    rec, _ = take(rec, "fetch", Outcome("done", "", {"state": DONE, "exit": 0}))
    assert rec.phase == DONE and rec.fields["exit"] == 0
    rec, _ = take(rec, "push", Outcome("done"), marker=DONE)
    assert rec.ended == {"push@DONE": "done"}


def test_a_report_of_another_phase_ends_nothing():
    assert take(ENDED, "report", Outcome("done"), marker=SUBMITTED) == (ENDED, "")


def test_retries_are_counted_with_growing_pauses():
    rec = AT_HOST
    pauses = []
    for _ in range(4):
        rec, _ = take(rec, "submit", Outcome("retry", "busy", {"asked": 5}))
        pauses.append(rec.tries["submit"]["next"] - NOW)
    assert rec.tries["submit"]["count"] == 4 and rec.tries["submit"]["fields"] == {"asked": 5}
    assert pauses == sorted(pauses) and 7 <= pauses[0] <= 10 and pauses[3] <= 80


@pytest.mark.parametrize("rule, before", [("submit", AT_HOST), ("fetch", RUNNING)])
def test_giving_up_before_the_end_fails_the_job_and_tells_the_administrator(rule, before):
    rec, _ = take(before, rule, Outcome("retry", "no"))
    rec, notice = take(rec, rule, Outcome("retry", "still no"), now=NOW + Retry.give_up_after + 1)
    assert (rec.phase, rec.fields["cause"]) == (FAILED, "infrastructure") and "still no" in notice


def test_a_refusal_is_the_jobs_and_not_the_administrators():
    rec, notice = take(AT_HOST, "submit", Outcome("failed", "no such queue", {"cause": "rejected"}))
    assert (rec.phase, rec.fields["cause"], notice) == (FAILED, "rejected", "")


def test_giving_up_after_the_end_keeps_the_state_and_tries_again_later():
    rec, notice = take(ENDED, "push", Outcome("failed", "disk full"), marker=DONE)
    assert rec.phase == DONE and rec.ended == {"push@DONE": GAVE_UP} and "disk full" in notice
    assert rec.tries["push"]["next"] >= NOW + 200
    rec, notice = take(rec, "push", Outcome("failed", "disk full"), marker=DONE)
    assert notice == ""  # told once
    rec, _ = take(rec, "push", Outcome("done"), marker=DONE)
    assert rec.ended == {"push@DONE": "done"} and not rec.tries


def test_a_pull_that_gives_up_shows_the_request_failed():
    rec, _ = take(Record(pulling="pull-1"), "pull", Outcome("failed", "permission denied"))
    assert (rec.phase, rec.accepted, rec.pulling) == (FAILED, ("web:PENDING:17",), "pull-1")


def test_cancel_ends_the_current_attempt_but_not_one_that_had_ended_by_itself():
    stop = Request("mirror", "CANCEL", 99)
    rec, _ = take(RUNNING, "cancel", Outcome("done", "", {"how": "ended"}), request=str(stop))
    assert (rec.phase, rec.fields["cause"]) == (FAILED, "cancelled") and rec.has_accepted(stop)
    rec, _ = take(RUNNING, "cancel", Outcome("done", "", {"how": "exited"}), request=str(stop))
    assert rec.phase == SUBMITTED and rec.has_accepted(stop)


def test_cancel_of_the_overtaken_attempt_frees_the_next():
    overtaken = replace(WAITING, token="t2", attempt=2, old=Attempt(1, "t1", "b01"))
    rec, _ = take(overtaken, "cancel", Outcome("done", "", {"how": "ended"}))
    assert rec == replace(overtaken, old=None)


def test_what_the_web_host_showed_is_heard():
    assert outcomes.web_hints("pull", {"identity": "5"}) == {"pending": 5}
    assert outcomes.web_hints("push", {"pending": "", "cancel": 7}) == {"pending": 0, "cancel": 7, "taken": False}
    assert outcomes.web_hints("fetch", {"exit": 0}) == {}


# ---- lost jobs that are tried again ----


LOST_NOW = Outcome("done", "", {"seen": "lost", "note": "gone"})


def poll_lost(rec, resubmit, outcome=LOST_NOW):
    return outcomes.take_in(rec, Rule("poll"), TOLD, outcome, NOW, "t2", 300.0, resubmit).record


def cancelled(rec, how, request=""):
    return outcomes.take_in(rec, Rule("cancel"), {**TOLD, "request": request}, Outcome("done", "", {"how": how}), NOW, "t2", 300.0, 2).record


def test_a_lost_job_is_tried_again_only_when_it_is_proven_ended():
    doubtful = poll_lost(RUNNING, 1)
    assert (doubtful.phase, doubtful.token, doubtful.fields["lost"]) == (SUBMITTED, "t1", "gone")
    again = cancelled(doubtful, "ended")
    assert (again.phase, again.attempt, again.token, again.host, again.contacted, again.old) == (PENDING, 2, "t2", "", False, None)
    assert again.served == RUNNING.served and again.fields["resubmitted"] == 1 and "lost" not in again.fields


def test_so_often_and_no_more():
    assert poll_lost(RUNNING, 0) == RUNNING
    second = replace(RUNNING, fields={**RUNNING.fields, "resubmitted": 1})
    assert poll_lost(second, 1) == second and "lost" in poll_lost(second, 2).fields


def test_what_vanishes_after_its_end_was_seen_is_tried_again_too_and_else_fetched_as_lost():
    outcome = Outcome("done", "", {"seen": "lost", "note": "removed"})
    doubtful = outcomes.take_in(RUNNING, Rule("fetch"), TOLD, outcome, NOW, "t2", 300.0, 1).record
    assert (doubtful.phase, doubtful.fields["lost"]) == (SUBMITTED, "removed")
    put_off = record.put_off(RUNNING, "fetch", NOW, 10.0, "not there yet")
    assert outcomes.take_in(put_off, Rule("fetch"), TOLD, outcome, NOW, "t2", 300.0, 0).record == RUNNING


@pytest.mark.parametrize("rule", ["pull", "submit", "fetch"])
def test_what_a_host_may_hold_is_proven_ended_when_a_rule_gives_up(rule):
    rec, _ = take(replace(RUNNING, phase=PENDING if rule != "fetch" else SUBMITTED, pulling="pull-1"), rule, Outcome("failed", "broken"), identity="")
    assert (rec.phase, rec.old) == (FAILED, Attempt(1, "t1", "b01"))
    rec, _ = take(replace(WAITING, pulling="pull-1"), "pull", Outcome("failed", "broken"), identity="")
    assert (rec.phase, rec.old) == (FAILED, None), "no host has seen it"
    rec, _ = take(AT_HOST, "submit", Outcome("failed", "no such queue", {"cause": "rejected"}))
    assert (rec.phase, rec.old) == (FAILED, None), "its scheduler has refused it"


@pytest.mark.parametrize("cause", ["memory", "time", "node", "cancelled"])
def test_what_its_scheduler_has_ended_for_a_reason_is_not_tried_again(cause):
    outcome = Outcome("done", "", {"seen": "lost", "cause": cause})
    assert poll_lost(RUNNING, 3, outcome) == RUNNING


def test_a_lost_job_that_has_ended_by_itself_after_all_is_fetched():
    assert cancelled(poll_lost(RUNNING, 1), "exited") == RUNNING


def test_cancel_of_a_lost_job_cancels_it():
    stop = Request("mirror", "CANCEL", 99)
    rec = cancelled(poll_lost(RUNNING, 1), "none", str(stop))
    assert (rec.phase, rec.fields["cause"]) == (FAILED, "cancelled")


def test_a_new_request_counts_from_the_beginning():
    again = cancelled(poll_lost(RUNNING, 1), "none")
    rec = record.accept(replace(again, phase=DONE), Request(WEB, PENDING, 20), "t3")
    assert "resubmitted" not in rec.fields


# ---- hosts that were never reached ----


def test_a_job_whose_host_was_never_reached_is_free_and_any_other_is_not():
    away = Outcome("retry", "no route", {"host_down": True, "untouched": 1})
    assert take(AT_HOST, "submit", away, first=True)[0] == WAITING
    for outcome, first in (away, False), (Outcome("retry", "no route", {"host_down": True}), True):
        assert take(AT_HOST, "submit", outcome, first=first)[0] == AT_HOST
    assert take(AT_HOST, "submit", away, first=True, token="t0")[0] == AT_HOST
