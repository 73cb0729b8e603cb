"""How a submitted job stands: the attempt's files first, then the processes, then the scheduler.

Knows: which of the three is believed for what.
Must not know: any scheduler's words, or how long to wait before a job that is gone is lost.

    the agent says     so
    exit               it has ended; believed before everything else
    begun, alive       it runs, or its session is proven empty on its own host: gone
    begun elsewhere    the scheduler is asked; gone only if a query that succeeded does not know it
    submitted          the same
    anything else      nothing is known, nothing changes: an empty answer is never "finished"
"""

from datetime import datetime
from typing import NamedTuple

from watchties.model import DONE, FAILED
from watchties.schedulers import QueryFailed


class Standing(NamedTuple):
    """state: DONE, FAILED or "". note: for people. gone: nothing of it is seen. proven: nothing of it can be there."""

    state: str = ""
    note: str = ""
    gone: bool = False
    proven: bool = False


def look(agent, scheduler, jobs):
    """Return job -> Standing, from one call of the agent, which runs one query of the scheduler."""
    if not jobs:
        return {}
    ids = [str(job.fields["id"]) for job in jobs if job.fields.get("id")]
    answers, query = agent.status(jobs, scheduler.query_command(ids) if ids else "")
    entries, why = heard(scheduler, query, ids)
    return {job: judged(answer, str(job.fields.get("id") or ""), entries, why) for job, answer in answers.items()}


def heard(scheduler, query, ids):
    """Return ({id: Entry}, "") of a query that succeeded, else (None, why not)."""
    if query is None:
        return None, "the scheduler was not asked"
    try:
        return scheduler.parse_query(*query.reply(), ids), ""
    except QueryFailed as error:
        return None, str(error)


def judged(answer, number, entries, why):
    """Return the Standing of one job; `entries` is None where the scheduler said nothing of use."""
    values = answer.values
    if answer.word == "exit":
        well = values.get("code") == "0" and not values.get("killed")
        return Standing(DONE if well else FAILED, f"exit code {values.get('code', 'unknown')}")
    if answer.word == "cancelled":
        return Standing(FAILED, "cancelled before it began")
    if answer.word == "begun" and values.get("alive") == "yes":
        return Standing("", "running")
    if answer.word == "begun" and values.get("alive") == "no":
        return Standing("", "its processes are gone and left no exit file", gone=True, proven=True)
    if answer.word not in ("begun", "submitted"):
        return Standing("", answer.detail())
    if entries is None or not number:
        return Standing("", f"{answer.word}; {why or 'its number is not known'}")
    if number in entries:
        return Standing("", entries[number].words)
    return Standing("", f"the scheduler does not know {number} any more, and there is no exit file", gone=True)


def seconds(when):
    """Return a moment as seconds since 1970; 0 if it is not known."""
    try:
        return float(when or 0)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(when).timestamp()
    except ValueError:
        return 0.0
