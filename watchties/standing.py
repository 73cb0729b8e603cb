"""How a submitted job stands: the attempt's files first, then the processes, then the scheduler.

Knows: which of the three is believed for what.
Must not know: any scheduler's words, or how long to wait before a job that is gone is lost.

    the agent says     so
    exit               it has ended; believed before everything else
    begun, alive       it runs, or its session is proven empty on its own host: gone
    begun elsewhere    the scheduler is asked; gone only if a query that succeeded does not know it
    submitted          the same; given up only when a tombstone keeps it from beginning later
    intent, claimed    the same, if the scheduler has given it a number: the agent could not note down its reply
    cancelled          it never began and never will; the tombstone says whether it was lost
    none, removed      somebody has removed the attempt's directory: the same, after a look for its processes
    anything else      nothing is known, nothing changes: an empty answer is never "finished"
"""

import time
from datetime import datetime
from typing import NamedTuple

from watchties.model import DONE, FAILED
from watchties.schedulers import QueryFailed, tells_of_nodes, unique_name

AGAIN = 10.0  # seconds between two looks at a node that has come back


class Standing(NamedTuple):
    """state: DONE, FAILED or "". note: for people. gone: nothing of it is seen. proven: nothing of it can be there.

    waits: it has not begun, so that it must be kept from beginning later before it is given up. cause: why the scheduler has ended
    what is gone, if it says so."""

    state: str = ""
    note: str = ""
    gone: bool = False
    proven: bool = False
    waits: bool = False
    cause: str = ""


def ask(agent, scheduler, jobs, asked=None):
    """Return (job -> Answer, {id: Entry} or None, why not), from one call of the agent, which runs one query of the scheduler.

    asked: the jobs that the scheduler is asked about, if not all.
    """
    ids = [str(job.fields["id"]) for job in (jobs if asked is None else asked) if job.fields.get("id")]
    answers, query = agent.status(jobs, scheduler.query_command(ids) if ids else "")
    return answers, *heard(scheduler, query, ids)


def look(agent, scheduler, jobs):
    """Return job -> Standing."""
    if not jobs:
        return {}
    answers, entries, why = ask(agent, scheduler, jobs)
    found = {job: judged(answer, str(job.fields.get("id") or ""), own(job, entries), why) for job, answer in answers.items()}
    ended = {job: why_ended(scheduler, job, answers[job], entries) for job, seen in found.items() if seen.gone}
    return {job: seen._replace(cause=ended[job].cause) if ended.get(job) else seen for job, seen in found.items()}


def heard(scheduler, query, ids):
    """Return ({id: Entry}, "") of a query that succeeded, else (None, why not)."""
    if query is None:
        return None, "the scheduler was not asked"
    try:
        return scheduler.parse_query(*query.reply(), ids), ""
    except QueryFailed as error:
        return None, str(error)


def own(job, entries):
    """Return the entries without those that have another name than this job: its number is another one's by now."""
    if entries is None:
        return None
    return {id: entry for id, entry in entries.items() if entry.name in ("", unique_name(job.token))}


def why_ended(scheduler, job, answer, entries):
    """Return the Entry that tells best why an attempt ended, or None.

    Over its memory comes first from what the scheduler wrote beside the job's output: its own state may be FAILED alone.
    """
    entry = (own(job, entries) or {}).get(str(job.fields.get("id") or ""))
    said = scheduler.parse_said("\n".join(answer.err))
    told = [found for found in (said, entry) if found and found.cause]
    return next((found for found in told if found.cause == "memory"), told[-1] if told else entry)


def killed_elsewhere(agent, scheduler, jobs):
    """Return ([those of the jobs that have ended for the scheduler, on a host that the agent cannot see], {job: its node, if in doubt},
    why no node could be asked for, or "").

    It may have killed the wrapper outright, so that no exit file will ever tell. What it says of a job is no proof while its node
    cannot be heard, where the job may run on; a node that is at work has ended all that its scheduler does not know of.
    """
    if not jobs:
        return [], {}, ""
    ids, searched = _ids(agent, scheduler, jobs)
    answers, query = agent.status(jobs, scheduler.query_command(list(ids.values())) if ids else "")
    entries, _ = heard(scheduler, query, list(ids.values()))
    causes, nodes = {}, {}
    for job in jobs:
        if may_run_on(answers[job]):
            nodes[job] = answers[job].values.get("host", "").split(".")[0]
            entry, asked = (own(job, entries) or {}).get(ids.get(job, "")), entries is not None if job in ids else searched
            if entry and entry.ended or asked and not entry and tells_of_nodes(scheduler):
                causes[job] = entry.cause if entry else "node"  # forgotten: perhaps it was that
    at_work, why = _nodes(agent, scheduler, sorted({nodes[job] for job in causes}))
    doubted = {job: nodes[job] for job, cause in causes.items() if why or not at_work.get(nodes[job], cause != "node")}
    return [job for job in causes if job not in doubted], doubted, why


def may_run_on(answer):
    """Return whether an attempt has begun on a host that the agent cannot see, and has not told its end."""
    return answer.word == "begun" and answer.values.get("alive") == "unknown"


def _ids(agent, scheduler, jobs):
    """Return (job -> its number in the scheduler, whether names could be looked for): of what was overtaken only the name is known."""
    ids = {job: str(job.fields["id"]) for job in jobs if job.fields.get("id")}
    names = {unique_name(job.token): job for job in jobs if job not in ids}
    if text := names and scheduler.find_command(list(names)):
        try:
            ids |= {names[name]: id for name, id in scheduler.parse_find(*agent.query(text), list(names)).items()}
        except QueryFailed:
            return ids, False
    return ids, True


def _nodes(agent, scheduler, nodes):
    """Return ({node: whether the scheduler says that it is at work, twice: it may just have heard of it, and be at ending things}, "");
    a node that it does not know is not in it. ({}, why) where it could not be asked.
    """
    if not nodes or not tells_of_nodes(scheduler):
        return {}, ""
    try:
        first = scheduler.parse_nodes(*agent.query(scheduler.nodes_command(nodes)))
        if not any(first.values()):
            return first, ""
        time.sleep(AGAIN)
        second = scheduler.parse_nodes(*agent.query(scheduler.nodes_command(nodes)))
        return {node: at_work and second.get(node, False) for node, at_work in first.items()}, ""
    except QueryFailed as error:
        return {}, str(error)


def judged(answer, number, entries, why):
    """Return the Standing of one job; `entries` is None where the scheduler said nothing of use."""
    values = answer.values
    if answer.word == "exit":
        well = values.get("code") == "0" and not values.get("killed")
        return Standing(DONE if well else FAILED, f"exit code {values.get('code', 'unknown')}")
    if answer.word == "cancelled" and values.get("why") == "lost":  # and whoever has entombed it did not come to say so
        return Standing("", "it never began, and was given up", gone=True, proven=True)
    if answer.word == "cancelled":
        return Standing(FAILED, "cancelled before it began")
    if answer.word == "begun" and values.get("alive") == "yes":
        return Standing("", "running")
    if answer.word == "begun" and values.get("alive") == "no":
        return Standing("", "its processes are gone and left no exit file", gone=True, proven=True)
    removed = answer.word == "none" and bool(values.get("removed"))
    if removed and values.get("alive") == "yes":
        return Standing("", "running, though its directory there was removed")
    waits = removed or answer.word == "submitted" or bool(answer.word in ("intent", "claimed") and number)
    if answer.word != "begun" and not waits:
        return Standing("", answer.detail())
    if entries is None or not number:
        return Standing("", f"{answer.word}; {why or 'its number is not known'}")
    entry = entries.get(number)
    if entry and not entry.ended:
        return Standing("", entry.words)
    words = f"the scheduler says {entry.words}" if entry else f"the scheduler does not know {number} any more"
    missing = "its directory there was removed" if removed else "there is no exit file"
    return Standing("", f"{words}, and {missing}", gone=True, waits=waits)


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
