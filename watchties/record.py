"""The record of a job: what watchties knows of it, and how it changes.

Knows: the transitions of the protocol (accept a request, take in what a run has said).
Must not know: when something is to be done (decide.py), how a record lies on disk (recordfile.py), markers, hooks, hosts.

Transitions are pure: record in, record out. Rules of the protocol are functions with the rule's name.
"""

from dataclasses import dataclass, field, replace

from watchties.model import CANCEL, DONE, FAILED, FINAL, MIRROR, PENDING, Request, SUBMITTED, number

GAVE_UP = "gave up"  # tried again, now and then
REFUSED = "refused"  # for good: by its hook, with the field `final`
REMOVED = "its directory in the mirror was removed"
LOST, RESUBMITTED = "lost", "resubmitted"  # fields: why an attempt is to be tried again; how many were
TOO_MANY = 10**6  # attempts: what says so many was written by somebody else
NOT_A_SITES = {LOST, RESUBMITTED, "since", "cpu_server", "id", "exit"}  # fields that decide what is done: no hook of a site sets them


@dataclass(frozen=True)
class Attempt:
    """One execution of a job that may still have to be proven ended: where, and by which token."""

    attempt: int
    token: str
    host: str


@dataclass(frozen=True)
class Record:
    """What is known of one job.

    accepted: every request ever accepted, in order, as text. own: mtime in ns of the PENDING that the daemon
    itself published in the mirror. phase: PENDING, SUBMITTED, DONE, FAILED, or "" before the first attempt.
    contacted: the attempt's host may hold a claim. served: the requests the attempt answers. pulling: the run of
    a pull that has begun and not ended. old: the overtaken attempt that must first be proven ended.
    ended: "RULE@PHASE" -> how it ended. tries: rule -> {"count", "first", "at", "next", "reason", "fields"}, times in
    seconds since 1970; at: when it was put off. fields: what the markers say.
    """

    accepted: tuple = ()
    own: int = 0
    attempt: int = 0
    token: str = ""
    host: str = ""
    contacted: bool = False
    phase: str = ""
    served: tuple = ()
    pulling: str = ""
    old: Attempt | None = None
    ended: dict = field(default_factory=dict)
    tries: dict = field(default_factory=dict)
    fields: dict = field(default_factory=dict)
    size: int = 0
    extra: dict = field(default_factory=dict)  # keys of a newer watchties, kept as they are

    def has_accepted(self, request):
        """Return whether this very request is in the record, or is the daemon's own PENDING."""
        return str(request) in self.accepted or (
            request.place == MIRROR and request.marker == PENDING and request.ns == self.own
        )

    def accepted_at(self, place):
        """Return the identities in ns, of PENDING and CANCEL alike, that were accepted at a place."""
        return [r.ns for r in map(Request.parse, self.accepted) if r.place == place]

    def ended_as(self, rule):
        """Return how a rule ended for this attempt in its present phase, or "" if it has not."""
        return self.ended.get(f"{rule}@{self.phase}", "")


# ---- transitions ----


def merge_uncontacted(record):
    """Return whether a request may merge into the attempt: only until its first contact with a host."""
    return record.attempt > 0 and record.phase == PENDING and not record.contacted


def accept(record, request, token, latest=0):
    """Return the record with a PENDING accepted: merged into the attempt, or beginning the next, called `token`.

    latest: the attempt that a state on the web host or in the mirror shows. A record that was removed knows of none, and what it
    began with a number that was used before would be older than that state.
    """
    text = str(request)
    record = replace(record, accepted=(*record.accepted, text))
    if not merge_uncontacted(record):
        overtaken = record.phase in (PENDING, SUBMITTED) and record.contacted
        record = replace(
            record,
            old=Attempt(record.attempt, record.token, record.host) if overtaken else record.old,
            served=() if record.phase in FINAL else record.served,  # one that is overtaken hands on what it promised
            attempt=max(record.attempt, latest if latest < TOO_MANY else 0) + 1,
            token=token,
            phase=PENDING,
            host="",
            contacted=False,
            ended={},
            tries={},
            fields={k: v for k, v in record.fields.items() if k == "cpu_server"},  # a requeue in the mirror has no pull to say it
        )
    return replace(record, served=(*record.served, text))


def accept_cancel(record, request, stop):
    """Return the record with a CANCEL accepted; `stop`: the attempt ends here, nothing of it has been submitted."""
    record = replace(record, accepted=(*record.accepted, str(request)))
    return fail(record, "cancelled", f"cancelled by {CANCEL} at the {request.place}") if stop else record


def fail(record, cause, reason, **more):
    """Return the record with its attempt FAILED, and why."""
    told = {**record.fields, **more, "cause": cause, "reason": reason}
    return replace(record, phase=FAILED, tries={}, fields=told)


def removed(record):
    """Return the record of a job that somebody has removed from the mirror, and with it all that lay there.

    What no host has seen is pulled again. What a host may hold must be proven ended [cancel_waits]; an attempt whose results
    have not come to the web host is FAILED. Of one that had ended altogether nothing is left: an empty record.
    """
    waits, why, old = record.phase == PENDING and not record.contacted, "", record.old
    if record.phase in (PENDING, SUBMITTED) and record.contacted:
        why, old = f"while it was {record.phase} on {record.host}", Attempt(record.attempt, record.token, record.host)
    elif record.phase == DONE and record.ended_as("push") in ("", GAVE_UP):
        why = f"before its results were on the web host; they are still on {record.host}"
    kept = replace(record, pulling=record.pulling or (REMOVED if waits else ""), old=old)
    ended = not (kept.pulling or old or record.ended_as("push") in ("", GAVE_UP))
    return fail(replace(kept, ended={}), "infrastructure", f"{REMOVED} {why}") if why else Record() if ended else kept


def contact(record, host):
    """Return the record as it must be on disk before the first contact of the attempt with a host."""
    return replace(record, host=host, contacted=True)


def release(record):
    """Return the record of an attempt whose host was never reached: it holds no claim, so that another host may be tried."""
    return replace(record, host="", contacted=False)


def doubt(record, why):
    """Return the record of an attempt that is lost and will be tried again, once it is proven ended [cancel_waits]."""
    return replace(record, tries={}, fields={**record.fields, LOST: why})


def try_again(record, token):
    """Return the record with the next attempt for the same requests: the former was lost, and nothing of it runs any more."""
    keep = {"cpu_server": record.fields.get("cpu_server", ""), RESUBMITTED: number(record.fields.get(RESUBMITTED)) + 1}
    record = replace(record, attempt=record.attempt + 1, token=token, phase=PENDING, ended={}, tries={}, fields=keep)
    return release(record)


def outcome_of_pull(record, run, request, told, token):
    """Return the record after a pull: `request` is what stood on the web host at its last look, or None."""
    if record.pulling != run:
        return record
    record = replace(record, pulling="", size=number(told.get("bytes")) or record.size, tries=_without(record.tries, "pull"))
    if request and not record.has_accepted(request):
        record = accept(record, request, token, number(told.get("latest")))
        if told.get("cause"):
            record = fail(record, told["cause"], told.get("reason", ""))
        else:
            record = replace(record, fields={**record.fields, "cpu_server": told.get("cpu_server", "")})
    return record


def outcome_of_submit(record, told):
    """Return the record after a submit that ended, for the current attempt."""
    if record.phase != PENDING:
        return record
    if told.get("state") == FAILED:
        return fail(record, told.get("cause") or "rejected", told.get("reason", ""))
    keep = {k: v for k, v in told.items() if k in ("id", "submitted", "since")}
    return replace(record, phase=SUBMITTED, tries={}, fields={**record.fields, **keep})


def outcome_of_fetch(record, told):
    """Return the record after a fetch that ended: DONE or FAILED, as the hook has judged. What may run on must still be proven ended."""
    if record.phase != SUBMITTED:
        return record
    keep = {k: v for k, v in told.items() if k not in ("state", "unproven")}
    state = DONE if told.get("state") == DONE else FAILED
    if told.get("unproven"):
        record = replace(record, old=Attempt(record.attempt, record.token, record.host))
    return replace(record, phase=state, tries={}, fields={**record.fields, **keep}, size=number(told.get("bytes")) or record.size)


def outcome_of_cancel(record, attempt, request, how, token=""):
    """Return the record after `agent cancel` has ended for an attempt: the overtaken one, or the current.

    token: for the next attempt, if this one was lost; it is not where it has left an exit file after all.
    """
    if record.old and attempt == record.old.token:
        return replace(record, old=None, tries=_without(record.tries, "cancel"))
    if attempt != record.token:
        return record
    record = replace(record, tries=_without(record.tries, "cancel"))
    if request and not record.has_accepted(request):
        record = replace(record, accepted=(*record.accepted, str(request)))
    if LOST in record.fields and (how == "exited" or not request):
        found = replace(record, fields={k: v for k, v in record.fields.items() if k != LOST})
        return found if how == "exited" else try_again(found, token)
    if how != "exited" and record.phase in (PENDING, SUBMITTED):
        record = fail(record, "cancelled", f"cancelled by {CANCEL}" + (f" at the {request.place}" if request else ""))
    return record


def end_rule(record, rule, how, told=None):
    """Return the record with a rule ended for this attempt and phase."""
    more = {k: v for k, v in (told or {}).items() if k not in ("pending", "cancel")}
    return replace(
        record,
        ended={**record.ended, f"{rule}@{record.phase}": how},
        tries=_without(record.tries, rule),
        fields={**record.fields, **more},
    )


def put_off(record, rule, now, delay, reason, told=None):
    """Return the record with one more try of a rule counted; the next is `delay` seconds away."""
    before = record.tries.get(rule, {})
    entry = {
        "count": before.get("count", 0) + 1,
        "first": before.get("first", now),
        "at": now,
        "next": now + delay,
        "reason": reason,
        "fields": {**before.get("fields", {}), **(told or {})},
    }
    return replace(record, tries={**record.tries, rule: entry})


def try_not_counted(record, rule, now, reason, told):
    """Return the record after a try that was no fault of the job: trying begins anew, with what its hook has to remember."""
    fields = {**record.tries.get(rule, {}).get("fields", {}), **{k: v for k, v in told.items() if k != "later"}}
    return replace(record, tries={**record.tries, rule: {"count": 0, "at": now, "next": now, "reason": reason, "fields": fields}})


def _without(tries, rule):
    return {name: entry for name, entry in tries.items() if name != rule}
