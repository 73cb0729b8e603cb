"""decide.py: one job as seen, the time, the rules; the action and its reason. No disk."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from watchties import record
from watchties.decide import decide
from watchties.lanes import Hold
from watchties.seen import Seen, Start, Step, Wait, WebHint, World
from watchties.markers import Standing
from watchties.model import CANCEL, DONE, FAILED, MIRROR, PENDING, SUBMITTED, WEB, JobId, Marker, Request
from watchties.record import GAVE_UP, Attempt, Record

NOW = 1_000_000.0
FIRST, SECOND = Request(WEB, PENDING, 10), Request(WEB, PENDING, 20)


def rule(name, on, after=()):
    return SimpleNamespace(name=name, on=on, after=list(after))


FINALS = [f"{MIRROR}:{DONE}", f"{MIRROR}:{FAILED}"]
RULES = [rule("pull", ["web:PENDING"]), rule("submit", ["mirror:PENDING"]), rule("report", ["mirror:SUBMITTED"]),
         rule("poll", ["mirror:SUBMITTED"]), rule("fetch", ["compute:DONE", "compute:FAILED"]), rule("push", FINALS), rule("mail", FINALS, ["push"]),
         rule("cancel", ["web:CANCEL", "mirror:CANCEL"])]  # fmt: skip

WAITING = replace(record.accept(Record(), FIRST, "t1"), own=5)
AT_HOST = record.contact(WAITING, "b1")
RUNNING = replace(AT_HOST, phase=SUBMITTED, fields={"id": "7", "since": NOW - 100})
REPORTED = replace(RUNNING, ended={"report@SUBMITTED": "done"})
ENDED = replace(RUNNING, phase=DONE, fields={"exit": "0"})
PUSHED = replace(ENDED, ended={"push@DONE": "done"})
ALL_DONE = replace(ENDED, ended={"push@DONE": "done", "mail@DONE": "done"})


def mirror(rec, junk=(), taken=None, **stands):
    """What stands in the mirror for a record; `stands`: PENDING=ns, CANCEL=ns, a state=token; None for a marker that is not there."""
    shown = {PENDING: rec.own} if rec.phase == PENDING else {rec.phase: rec.token} if rec.phase else {}
    shown = {name: value for name, value in {**shown, **stands}.items() if value is not None}
    made = {n: Marker(n, v if n in (PENDING, CANCEL) else 1, {} if n in (PENDING, CANCEL) else {"token": v}) for n, v in shown.items()}
    return Standing(made, taken or {}, tuple(junk), open=True)


def look(rec, web=None, compute="", busy=(), polled=NOW, down=None, blocked="", extra=(), failover=True, now=NOW, held=None, **stands):
    tree = SimpleNamespace(web="vision", compute=["b1", "b2"], failover=failover)
    world = World(tree, {r.name: r for r in (*RULES, *extra)}, now, down or {}, blocked, {"b1": 30.0}, held or {})
    return decide(Seen(JobId("t", "u/e"), rec, mirror(rec, **stands), web or WebHint(), compute, frozenset(busy), polled), world)


def step(*args, **kwargs):
    decision = look(*args, **kwargs)
    assert decision.step, decision
    return decision.step


def starts(*args, **kwargs):
    decision = look(*args, **kwargs)
    assert not decision.step, decision.step
    return {s.rule: s for s in decision.starts}


def waits(*args, **kwargs):
    return {w.rule: w for w in look(*args, **kwargs).waits}


# ---- one life ----


def test_one_life_in_order():
    assert starts(Record(), WebHint(10))["pull"] == Start("pull", "vision", "a new PENDING on the web host", "", "", FIRST)
    assert starts(WAITING, WebHint(10))["submit"].host == "b1"
    assert set(starts(RUNNING)) == {"report"} and set(starts(REPORTED, now=NOW + 31)) == {"poll"}
    assert starts(REPORTED, compute=DONE)["fetch"].marker == DONE
    assert set(starts(ENDED)) == {"push"} and set(starts(PUSHED)) == {"mail"}
    assert step(ALL_DONE).what == "close"


def test_submitted_is_not_reported_where_the_end_is_seen_already_unless_it_cannot_be_shown_soon():
    young = replace(RUNNING, fields={"id": "7", "since": NOW - 1})
    assert set(starts(young, compute=DONE)) == {"fetch"} and waits(young, compute=DONE)["report"].until == NOW + 4
    assert set(starts(young)) == {"report"} and set(starts(young, compute="lost")) == {"report", "fetch"}
    assert set(starts(young, compute=DONE, now=NOW + 4)) == {"report", "fetch"}


def test_every_decision_has_a_reason():
    for rec in Record(), WAITING, AT_HOST, RUNNING, REPORTED, ENDED, PUSHED, ALL_DONE:
        assert look(rec).reason and "\n" not in look(rec).reason


def test_a_job_that_never_was_is_closed():
    assert step(Record()).what == "close"
    assert "pull" in starts(Record(pulling="pull-1"))


# ---- what stands in the mirror ----


def test_junk_in_a_marker_is_published_over():
    assert step(RUNNING, SUBMITTED="").what == "publish"
    assert step(RUNNING, SUBMITTED="another").what == "publish"


def test_a_marker_that_is_a_directory_is_published_over():
    assert step(RUNNING, SUBMITTED=None, junk=[SUBMITTED]) == Step("publish", "the mirror does not show SUBMITTED", marker=SUBMITTED)
    assert step(RUNNING, junk=[DONE]).what == "publish"
    assert step(WAITING, PENDING=None, junk=[PENDING]).marker == PENDING
    assert "submit" in starts(WAITING, junk=[CANCEL])  # no request: only a regular file is one


def test_two_state_markers_at_once():
    assert step(RUNNING, DONE="t1").what == "publish"
    assert step(ENDED, SUBMITTED="t1").what == "publish"
    assert step(WAITING, DONE="t0").marker == PENDING


def test_a_marker_that_vanished_is_published_again():
    for rec in WAITING, RUNNING, ENDED:
        assert step(rec, **{rec.phase: None}) == Step("publish", f"the mirror does not show {rec.phase}", marker=rec.phase)


def test_a_leftover_comes_before_all_else():
    left = Step("restore", "PENDING was left under its hidden name", marker=PENDING)
    assert step(RUNNING, taken={PENDING: 99}, PENDING=98, SUBMITTED=None) == left
    assert step(RUNNING, taken={CANCEL: 99}).marker == CANCEL


def test_pending_in_the_mirror_is_a_request_unless_it_is_our_own():
    assert step(RUNNING, PENDING=77).request == Request(MIRROR, PENDING, 77)
    assert step(RUNNING, PENDING=RUNNING.own).what == "take_off"
    assert step(Record(), PENDING=77).what == "accept"
    assert "submit" in starts(WAITING)  # it stands there by right


def test_a_request_is_known_by_place_and_marker_too():
    assert step(ENDED, PENDING=FIRST.ns).what == "accept"
    assert starts(Record(), WebHint(10))["pull"].request == FIRST


# ---- requests on the web host ----


def test_a_restored_backup_causes_no_run_and_is_tidied_away():
    assert starts(ALL_DONE, WebHint(10))["report"].marker == DONE
    assert starts(REPORTED, WebHint(10))["report"].marker == SUBMITTED
    assert "report" in starts(ALL_DONE, WebHint(taken=True))
    assert "report" not in starts(WAITING, WebHint(10))  # it stands by right until SUBMITTED is shown


def test_a_push_that_gave_up_is_not_followed_by_done_on_the_web():
    rec = replace(ENDED, ended={"push@DONE": GAVE_UP, "mail@DONE": "done"}, tries={"push": {"next": NOW + 9, "reason": "disk full"}})
    decision = look(rec, WebHint(10))
    assert not decision.starts and decision.waits[0] == Wait("push", "push is tried again: disk full", NOW + 9)
    assert "push" in starts(replace(rec, tries={}))


def test_a_closed_job_with_a_new_request_begins_again():
    assert "pull" in starts(ALL_DONE, WebHint(20))


def test_a_withdrawn_request_is_still_looked_for_by_the_open_pull():
    assert starts(replace(REPORTED, pulling="pull-3"))["pull"].request is None


# ---- pull_open ----


@pytest.mark.parametrize("rec, more, what", [(WAITING, {}, "submit"), (RUNNING, {"compute": DONE}, "fetch"), (ENDED, {}, "push")])
def test_nothing_leaves_the_mirror_while_a_pull_is_open(rec, more, what):
    assert what in starts(rec, **more)
    found = look(replace(rec, pulling="pull-2"), **more)
    assert what not in {s.rule for s in found.starts} and "pull" in {s.rule for s in found.starts}
    assert "pull is open" in next(w.reason for w in found.waits if w.rule == what)


def test_a_pull_that_gave_up_holds_nothing_back_until_the_next_attempt():
    failed = record.fail(replace(WAITING, pulling="pull-1"), "infrastructure", "permission denied")
    assert set(starts(failed)) == {"push"}
    again = record.accept(failed, Request(MIRROR, PENDING, 99), "t2")
    assert set(starts(replace(again, own=5))) == {"pull"}


def test_a_full_disk_holds_back_what_fills_it():
    assert waits(Record(), WebHint(10), blocked="only 1 MB are free")["pull"].reason == "only 1 MB are free"
    assert waits(REPORTED, compute=DONE, blocked="only 1 MB are free")["fetch"].reason == "only 1 MB are free"
    assert "push" in starts(ENDED, blocked="only 1 MB are free")


# ---- who may run at the same time ----


@pytest.mark.parametrize(
    "rec, more, rule_name, free, taken",
    [
        (Record(), {"web": WebHint(10)}, "pull", {"compute"}, {"mirror"}),
        (WAITING, {}, "submit", {"web"}, {"compute"}),
        (RUNNING, {}, "report", {"mirror", "compute"}, {"web"}),
        (REPORTED, {"compute": DONE}, "fetch", {"web"}, {"mirror"}),
        (ENDED, {}, "push", {"compute"}, {"web"}),
        (PUSHED, {}, "mail", {"web", "mirror", "compute"}, {"mail"}),
        (replace(WAITING, old=Attempt(0, "t0", "b2")), {}, "cancel", {"web", "mirror"}, {"compute"}),
    ],
)
def test_one_run_at_a_place_at_a_time(rec, more, rule_name, free, taken):
    assert rule_name in starts(rec, busy=free, **more)
    assert rule_name not in starts(rec, busy=taken, **more) and "at work" in waits(rec, busy=taken, **more)[rule_name].reason


def test_no_job_is_closed_while_a_run_holds_it():
    assert look(ALL_DONE, busy={"mail"}).step is None


# ---- waits ----


def test_a_try_that_is_put_off_waits_for_its_time():
    rec = record.put_off(WAITING, "submit", NOW, 30, "queue is full")
    assert waits(rec)["submit"] == Wait("submit", "submit is tried again: queue is full", NOW + 30)
    assert "submit" in starts(rec, now=NOW + 30)


def test_hosts_that_are_down():
    down = {"b1": "b1 cannot be reached", "b2": "b2 is off"}
    assert starts(WAITING, down={"b1": "x"})["submit"].host == "b2"
    assert waits(WAITING, down={"b1": "x"}, failover=False)["submit"].reason == "x"
    assert waits(WAITING, down=down)["submit"].reason == "b1 cannot be reached; b2 is off"
    assert waits(AT_HOST, down={"b1": "x"})["submit"].reason == "x"  # contacted: no other host may have it
    assert waits(REPORTED, compute=DONE, down=down)["fetch"].reason == "b1 cannot be reached"
    named = replace(WAITING, fields={"cpu_server": "b2"})
    assert starts(named)["submit"].host == "b2" and waits(named, down={"b2": "y"})["submit"].reason == "y"


def test_a_lane_that_is_held_back_holds_its_own_rule_and_host_only():
    held = {("submit", "b1"): Hold("b1 takes no more for now: quota", NOW + 5)}
    assert waits(AT_HOST, held=held)["submit"] == Wait("submit", "b1 takes no more for now: quota", NOW + 5)
    assert set(starts(AT_HOST, held=held, now=NOW + 5)) == {"submit"}
    assert starts(record.contact(WAITING, "b2"), held=held)["submit"].host == "b2"
    assert starts(REPORTED, compute=DONE, held=held)["fetch"].host == "b1"


def test_the_next_attempt_waits_for_the_end_of_the_former():
    overtaken = replace(record.accept(RUNNING, SECOND, "t2"), own=5)
    assert "attempt 1 on b1 must first be proven ended" in waits(overtaken)["submit"].reason
    found = starts(overtaken)["cancel"]
    assert (found.attempt, found.host) == ("t1", "b1")
    assert waits(overtaken, down={"b1": "x"})["cancel"].reason == "x"


@pytest.mark.parametrize("age, pause", [(0, 30), (100, 30), (1000, 100), (10_000, 900), (10_000_000, 900)])
def test_young_jobs_are_asked_for_soon_and_old_ones_seldom(age, pause):
    rec = replace(REPORTED, fields={"since": NOW - age})
    assert waits(rec, polled=NOW - 1)["poll"].until == pytest.approx(NOW - 1 + pause, abs=1)
    assert "poll" in starts(rec, polled=0.0)
    assert "poll" not in starts(rec, polled=0.0, compute=DONE)


def test_a_lost_job_that_is_to_be_tried_again_is_first_proven_ended():
    lost = record.doubt(REPORTED, "gone")
    for compute in "", DONE, "lost":
        found = starts(lost, compute=compute, polled=0.0)
        assert set(found) == {"cancel"} and found["cancel"].attempt == "t1" and "lost (gone)" in found["cancel"].reason
    assert waits(lost, down={"b1": "x"})["cancel"].reason == "x"
    assert starts(lost, WebHint(10, 30))["cancel"].request == Request(WEB, CANCEL, 30)


# ---- CANCEL ----


def test_cancel_before_any_contact_needs_no_host():
    found = step(WAITING, WebHint(10, 30))
    assert (found.what, found.stop, found.request) == ("cancel", True, Request(WEB, CANCEL, 30))


@pytest.mark.parametrize("rec", [AT_HOST, RUNNING])
def test_cancel_after_contact_asks_the_host(rec):
    found = starts(rec, WebHint(10, 30))
    assert found["cancel"].host == "b1" and found["cancel"].attempt == "t1" and "submit" not in found


def test_cancel_order_on_one_host_by_time():
    for older in 5, 10:
        found = step(AT_HOST, WebHint(10, older))
        assert found.what == "cancel" and not found.stop
    both = record.accept(WAITING, SECOND, "t2")
    assert not step(both, WebHint(20, 15)).stop and step(both, WebHint(20, 25)).stop


def test_cancel_order_between_hosts_by_acceptance():
    both = replace(WAITING, served=(str(FIRST), str(Request(MIRROR, PENDING, 10**18))))
    assert step(both, WebHint(10, 30)).stop
    assert step(both, CANCEL=10**18 + 1).stop and not step(both, CANCEL=10**18).stop


def test_cancel_that_stood_before_a_request_in_the_mirror_does_not_cover_it():
    found = step(WAITING, WebHint(10, 30), PENDING=10**18)
    assert (found.what, found.stop) == ("cancel", False)
    assert step(record.accept_cancel(WAITING, found.request, False), WebHint(10, 30), PENDING=10**18).what == "accept"


def test_cancel_of_what_has_ended_stops_nothing_and_is_taken_off():
    found = step(ALL_DONE, WebHint(0, 30))
    assert not found.stop and "stops nothing" in found.reason
    accepted = record.accept_cancel(ALL_DONE, found.request, False)
    assert "report" in starts(accepted, WebHint(0, 30)) and accepted.phase == DONE
    in_mirror = Request(MIRROR, CANCEL, 30)
    assert step(record.accept_cancel(ALL_DONE, in_mirror, False), CANCEL=30) == Step("take_off", "CANCEL has been accepted", marker=CANCEL)


def test_cancel_waits_for_what_comes_before_it():
    assert "older PENDING" in waits(RUNNING, WebHint(20, 30))["cancel"].reason
    assert "cancel" in starts(RUNNING, WebHint(40, 30))  # that PENDING is younger
    assert "pull is under way" in waits(RUNNING, WebHint(10, 30), busy={"web", "mirror"})["cancel"].reason
    assert "run at the compute host" in waits(AT_HOST, WebHint(10, 30), busy={"mirror", "compute"})["cancel"].reason
    overtaken = replace(record.accept(RUNNING, SECOND, "t2"), own=5)
    assert starts(overtaken, WebHint(20, 30))["cancel"].attempt == "t1"


def test_cancel_without_a_job_does_nothing():
    assert step(Record(), WebHint(0, 30)).what == "close"
    assert step(Record(), CANCEL=30).what == "close"


# ---- mail and a site's rules ----


def test_a_sites_rule_waits_for_the_rules_it_names():
    plots = rule("plots", FINALS, ["push", "mail"])
    assert "waits for push, mail" in waits(ENDED, extra=[plots])["plots"].reason
    assert "plots" in starts(ALL_DONE, extra=[plots])
    assert step(replace(ALL_DONE, ended={**ALL_DONE.ended, "plots@DONE": "done"}), extra=[plots]).what == "close"


def test_a_rule_that_gave_up_counts_as_ended_for_others_and_is_tried_again():
    rec = replace(ENDED, ended={"push@DONE": GAVE_UP}, tries={"push": {"next": NOW + 9, "reason": "x"}})
    assert "mail" in starts(rec) and "push" not in starts(rec)


def test_what_is_no_longer_due_keeps_no_job_open():
    assert step(replace(ALL_DONE, tries={"report": {"next": NOW + 99, "reason": "x"}})).what == "close"
    assert look(replace(ALL_DONE, old=Attempt(1, "t1", "b1")), down={"b1": "x"}).step is None


@pytest.mark.parametrize("rec, compute, rule", [(RUNNING, "", "poll"), (RUNNING, DONE, "fetch"), (AT_HOST, "", "submit"),
                                                (replace(WAITING, fields={"cpu_server": "b9"}), "", "submit"),
                                                (replace(WAITING, old=Attempt(1, "t0", "b9")), "", "cancel")])  # fmt: skip
def test_a_job_waits_for_a_host_that_was_taken_out_of_the_configuration(rec, compute, rule):
    """Its hook would know nothing of that host: what is DONE there would be FAILED."""
    rec = replace(rec, host="b9") if rec.contacted else rec
    assert "b9 is no host of tree t any more" in waits(rec, compute=compute, polled=0.0)[rule].reason
    assert rule not in starts(rec, compute=compute, polled=0.0)


@pytest.mark.parametrize("back", [3600, 86400])
def test_a_clock_that_was_set_back_makes_nothing_wait(back):
    put_off = replace(AT_HOST, tries={"submit": {"count": 1, "first": NOW, "at": NOW + back, "next": NOW + back + 300, "reason": "x", "fields": {}}})
    assert "submit" in starts(put_off) and "submit" in waits(replace(put_off, tries={"submit": put_off.tries["submit"] | {"at": NOW}}))
    held = Hold()
    held.refused("full", False, NOW + back, SimpleNamespace(first=5.0, maximum=300.0))
    assert "submit" in starts(AT_HOST, held={("submit", "b1"): held})
