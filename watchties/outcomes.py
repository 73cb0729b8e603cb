"""From what a run says to what the record holds.

Knows: what each rule's outcome means for a job, when a rule gives up, what the administrator is told then.
Must not know: disks, processes. Record in, record out; `now` and tokens are passed in.
"""

from dataclasses import dataclass, replace

from watchties import record
from watchties.lanes import backoff
from watchties.model import FAILED, PENDING, Request, SUBMITTED, WEB, number
from watchties.record import GAVE_UP, REFUSED

DAY = 86400.0
TOLD_AT = 6  # tries of a rule for a job until the administrator hears of it
OURS = ("pull", "submit", "report", "poll", "fetch", "push", "cancel")  # how these fail is the daemon's to judge
BEFORE_DONE = ("pull", "submit", "fetch")  # giving up in one of these makes the job FAILED


@dataclass(frozen=True)
class Taken:
    """What follows from an outcome: the record, and what is to be told to the administrator, if anything."""

    record: record.Record
    notice: str = ""


def take_in(rec, rule, told, outcome, now, new_token, reconcile, resubmit=0):
    """Return Taken for one job of a run that ended.

    rule: the Rule; told: the line the hook was given for this job; outcome: an Outcome, or None if the run was
    interrupted before it settled the job (then nothing changes: what is undone will be started again). resubmit: how
    often a job that was lost is tried again.
    """
    if outcome is None:
        return Taken(rec)
    if not still_matters(rec, rule, told):
        return Taken(rec)
    if outcome.outcome == "done":
        if says_how_it_stands(rule, outcome.fields) and is_tried_again(rec, outcome.fields, resubmit):
            return Taken(record.doubt(rec, outcome.fields.get("note") or "it is gone and left no exit file"))
        return Taken(done(rec, rule, told, outcome.fields, now, new_token))
    if rule.name == "submit" and told.get("first") and outcome.fields.get("untouched"):
        return Taken(record.release(rec))
    if outcome.fields.get("host_down"):
        return Taken(rec)  # the breaker's business: it costs the job nothing
    if outcome.outcome == "retry" and outcome.fields.get("later"):  # the lane's
        return Taken(record.try_not_counted(rec, rule.name, now, outcome.reason, outcome.fields))
    return failed(rec, rule, told, outcome, now, new_token, reconcile)


def says_how_it_stands(rule, fields):
    """Return whether a run says how a job stands at its host, and no more: a poll, or a fetch that has found no end to fetch."""
    return rule.name == "poll" or rule.name == "fetch" and "seen" in fields


def is_tried_again(rec, fields, resubmit):
    """Return whether a poll or a fetch has found the attempt lost, for no reason that would come again, and it has tries left."""
    lost = fields.get("seen") == "lost" and fields.get("cause") in (None, "", "lost")
    return lost and number(rec.fields.get(record.RESUBMITTED)) < resubmit


def still_matters(rec, rule, told):
    """Return whether an outcome concerns the job as it stands: not if a newer attempt or a newer phase has overtaken it.

    Only cancel has anything to say of the overtaken attempt: what its submit or fetch says would be taken for the new one's.
    """
    if rule.name == "pull":
        return rec.pulling == told["run"]
    if rule.name == "cancel" and rec.old and told["token"] == rec.old.token:
        return True
    expected = {"submit": (PENDING,), "fetch": (SUBMITTED,), "poll": (SUBMITTED,), "cancel": (PENDING, SUBMITTED)}
    return told["token"] == rec.token and rec.phase in expected.get(rule.name, (told["marker"],))


def done(rec, rule, told, fields, now, new_token):
    """Return the record after a rule has done its work."""
    if says_how_it_stands(rule, fields):
        return replace(rec, tries={name: entry for name, entry in rec.tries.items() if name != rule.name})
    if rule.name == "pull":
        ns = fields.get("identity")
        request = Request(WEB, PENDING, number(ns)) if number(ns) else None
        return record.outcome_of_pull(rec, told["run"], request, fields, new_token)
    if rule.name == "submit":
        return record.outcome_of_submit(rec, {**fields, "since": now})
    if rule.name == "fetch":
        return record.outcome_of_fetch(rec, fields)
    if rule.name == "cancel":
        request = Request.parse(told["request"]) if told.get("request") else None
        return record.outcome_of_cancel(rec, told["token"], request, fields.get("how", ""), new_token)
    own = fields if rule.name in OURS else {k: v for k, v in fields.items() if k not in record.NOT_A_SITES}
    return record.end_rule(rec, rule.name, "done", own)


def failed(rec, rule, told, outcome, now, new_token, reconcile):
    """Return Taken after a failure: another try later, or the end of trying."""
    if outcome.outcome == "failed" and outcome.fields.get("final") and rule.name not in OURS:
        return Taken(record.end_rule(rec, rule.name, REFUSED), f"{rule.name} failed for good: {outcome.reason}")
    before = rec.tries.get(rule.name, {})
    final = outcome.outcome == "failed" or now - before.get("first", now) > rule.retry.give_up_after
    if not final or rule.name in ("poll", "cancel"):
        delay = backoff(before.get("count", 0), rule.retry.first, rule.retry.maximum)
        rec = record.put_off(rec, rule.name, now, delay, outcome.reason, outcome.fields)
        often = rec.tries[rule.name]["count"] == TOLD_AT and rule.name != "poll" and not outcome.fields.get("full")  # told at once
        return Taken(rec, f"{rule.name} has failed {TOLD_AT} times and is tried again: {outcome.reason}" if often else "")
    if rule.name in BEFORE_DONE:
        return give_up_before_done(rec, rule, told, outcome, now, new_token)
    delay = min(DAY, max(reconcile, reconcile * 2 ** min(20, before.get("count", 0))))
    rec_later = record.put_off(rec, rule.name, now, delay, f"{GAVE_UP}: {outcome.reason}", outcome.fields)
    ended = {**rec.ended, f"{rule.name}@{rec.phase}": GAVE_UP}
    news = rec.ended_as(rule.name) != GAVE_UP
    return Taken(replace(rec_later, ended=ended), f"{rule.name} gave up: {outcome.reason}" if news else "")


def give_up_before_done(rec, rule, told, outcome, now, new_token):
    """Return Taken with the job FAILED; what it had is kept. What a host may hold must still be proven ended, but for what was refused."""
    cause = outcome.fields.get("cause") or "infrastructure"
    if rule.name == "pull":
        request = Request(WEB, PENDING, number(told["identity"])) if number(told.get("identity")) else None
        if request and not rec.has_accepted(request):
            rec = record.accept(rec, request, new_token)
        elif rec.phase != PENDING:
            return pull_again_tomorrow(rec, outcome, now)
    if rec.contacted and (rule.name != "submit" or cause == "infrastructure"):
        rec = replace(rec, old=record.Attempt(rec.attempt, rec.token, rec.host))
    notice = f"{rule.name} gave up, {FAILED}: {outcome.reason}" if cause == "infrastructure" else ""
    return Taken(record.fail(rec, cause, outcome.reason), notice)


def pull_again_tomorrow(rec, outcome, now):
    """Return Taken where no request is left that could be FAILED: the mirror may be half pulled, so the pull stays open."""
    news = not rec.tries.get("pull", {}).get("fields", {}).get("told")
    rec = record.put_off(rec, "pull", now, DAY, outcome.reason, {"told": 1})
    return Taken(rec, f"an interrupted pull cannot be repeated: {outcome.reason}" if news else "")


def web_hints(rule, fields):
    """Return what a run has seen on the web host: {"pending": ns, "cancel": ns, "taken": bool}, as far as it says."""
    if rule == "pull":
        return {"pending": number(fields.get("identity"))} if "identity" in fields else {}
    if rule in ("report", "push"):
        return {"pending": number(fields.get("pending")), "cancel": number(fields.get("cancel")), "taken": False}
    return {}


