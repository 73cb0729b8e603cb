"""How long each step takes, how many jobs a day, why jobs failed: from lines of the journal's history.

Knows: what the order of a job's lines means.
Must not know: where they come from, how they are shown. Pure.

    waiting   from PENDING in the mirror until the run began that submitted it: for a host, for room there, for a slot
    pull, submit, fetch, push, mail   the run that did it, which may have carried many jobs
    running   the job itself, as its host has measured it
    in all    from the beginning of the pull (where none was: from PENDING) until push and mail have ended
"""

import time
from collections import Counter
from itertools import groupby

from watchties.model import DONE, FAILED, FINAL, PENDING

STAGES = ("waiting", "pull", "submit", "running", "fetch", "push", "mail", "in all")
AT_THE_END = ("push", "mail")


def of(events):
    """Return {"stages": {stage: [seconds]}, "days": {date: Counter}, "causes": Counter, "jobs": Counter} of Events in order of job."""
    found = {"stages": {stage: [] for stage in STAGES}, "days": {}, "causes": Counter(), "jobs": Counter()}
    for _, lines in groupby(events, key=lambda event: (event.tree, event.job)):
        _of_job(list(lines), found)
    return found


def _of_job(lines, found):
    took, pulled, began, last, pending = found["stages"], None, None, None, None

    def close():
        if began is not None and last is not None:
            took["in all"].append(last - began)

    for event in lines:  # a new state stands before the line of the run that led to it
        start = event.when - (event.seconds or 0)
        if event.rule and event.event == "done":
            if event.rule in STAGES and event.seconds is not None:
                took[event.rule].append(event.seconds)
            if event.rule == "pull" and pending is not None:
                began = min(began, start)
            elif event.rule == "pull":
                pulled = start
            elif event.rule == "submit" and pending is not None:
                took["waiting"].append(max(0.0, start - pending))
                pending = None
            elif event.rule in AT_THE_END and last is not None:
                last = event.when
        elif event.event == PENDING:
            close()
            began, last, pending, pulled = (event.when if pulled is None else pulled), None, event.when, None
        elif event.event in FINAL and not event.rule:
            last, pending = event.when, None
            _ended(event, found)
    close()


def _ended(event, found):
    day = time.strftime("%Y-%m-%d", time.localtime(event.when))
    found["days"].setdefault(day, Counter())[event.event] += 1
    found["jobs"][event.event] += 1
    if event.event == DONE or event.cause in ("exit", "success"):
        found["stages"]["running"] += [event.seconds] if event.seconds is not None else []
    if event.event == FAILED:
        found["causes"][event.cause or "not told"] += 1


def quantile(values, share):
    """Return the smallest of the values that this share of them does not exceed; None of no values."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)] if ordered else None
