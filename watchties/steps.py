"""The plans of what the daemon does itself on disk: one for each Step of decide, and the saving of a record.

Knows: in which order record and markers are written, so that a crash between any two loses nothing.
Must not know: when. Each plan (durable.py) returns the record as it stands on disk at its end.
"""

import os
import secrets
from dataclasses import replace

from watchties import markers, record, recordfile
from watchties.model import FAILED, MIRROR, PENDING, SUBMITTED, Request, number


def new_token():
    """Return a token that no attempt has ever had. 12 digits: with `wt.` in front the name still fits into PBS."""
    return secrets.token_hex(6)


def perform(job, step, new_token):
    """Return the plan of a Step for a job. new_token() makes a token that no attempt has had."""
    return {
        "restore": _restore,
        "accept": _accept,
        "cancel": _cancel,
        "publish": _publish,
        "take_off": _take_off,
        "remake": _remake,
        "close": _close,
    }[step.what](job, step, new_token)


def save(job, new):
    """Plan: make the record durable, and before it the open flag: both in one go."""
    made = [] if job.opened else markers.raise_flag(job.dir)
    yield from recordfile.save(job.dir, new, made)
    job.opened = True
    return new


def create(job, new):
    """Plan: the same for a job that the mirror does not hold yet."""
    made = []
    head = job.dir
    while not os.path.isdir(head):
        made.append(head)
        head = os.path.dirname(head)
    for path in reversed(made):
        os.mkdir(path)
    if made:
        yield [os.path.dirname(path) for path in made]
    return (yield from save(job, new))


def _accepted(job, name):
    return lambda ns: job.record.has_accepted(Request(MIRROR, name, ns))


def _restore(job, step, new_token):
    yield from markers.restore(job.dir, step.marker, _accepted(job, step.marker))
    return job.record


def _take_off(job, step, new_token):
    yield from markers.take_off(job.dir, step.marker, _accepted(job, step.marker))
    return job.record


def _accept(job, step, new_token):
    shown = markers.look(job.dir).markers.values()
    latest = max((number(marker.fields.get("attempt")) for marker in shown), default=0)
    return (yield from save(job, record.accept(job.record, step.request, new_token(), latest)))


def _cancel(job, step, new_token):
    return (yield from save(job, record.accept_cancel(job.record, step.request, step.stop)))


def _publish(job, step, new_token):
    """PENDING of our own must be in the record before it can be seen, or it would be taken for a new request."""
    if step.marker != PENDING:
        yield from markers.publish(job.dir, step.marker, marker_fields(job.record))
        return job.record
    new = job.record
    if PENDING not in markers.look(job.dir).markers:
        new = yield from save(job, replace(new, own=markers.prepare_pending(job.dir)))
    yield from markers.publish_pending(job.dir)
    return new


def _remake(job, step, new_token):
    return (yield from save_removed(job, job.record))


def save_removed(job, rec):
    """Plan: what is left to be done for a job that somebody has removed from the mirror stands there again, in its record."""
    new = record.removed(rec)
    return (yield from create(job, new)) if new.accepted or new.pulling else new


def _close(job, step, new_token):
    yield from markers.set_closed(job.dir)
    return job.record


def nothing(value):
    """Plan: nothing is to be written."""
    return value
    yield


def marker_fields(rec):
    """Return what a state marker says, in the order in which people read it."""
    head = {"state": rec.phase, "attempt": rec.attempt, "token": rec.token, "host": rec.host}
    order = ("id", "exit", "cause", "reason", "submitted", "began", "ended", "seconds")
    skip = ("exit", "cause") if rec.phase == SUBMITTED else () if rec.phase == FAILED else ("cause",)
    return head | {k: rec.fields[k] for k in order if k in rec.fields and k not in skip}
