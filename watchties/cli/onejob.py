"""One job in words: what journal, record and markers hold of it, what would come next.

Knows: how each of these is told to people, and as JSON.
Must not know: which job is meant, where anything lies on disk (onlook.py).
"""

import os
from dataclasses import asdict

import click

from watchties import onlook, recordfile
from watchties.cli.common import clock, fitted, show_json
from watchties.cli.names import Names
from watchties.seen import Start, Step
from watchties.errors import WatchtiesError
from watchties.model import SUBMITTED

HISTORY = 20  # lines of a job's history
INDENT = "  "


def show_job(places, job, as_json):
    """Print what journal and disk hold of one job."""
    facts = facts_of(places, job)
    if as_json:
        return show_json(facts)
    click.echo(facts["job"])
    keys = ("state", "attempt", "host", "since", "reason", "waiting_on", "dir")
    heads = [(INDENT + key.replace("_", " "), str(facts[key])) for key in keys if facts[key]]
    click.echo("\n".join(fitted(heads)))
    show_markers(facts["markers"])
    if facts["record"]:
        show_record(facts["record"])
    if facts["history"]:
        click.echo(f"\n{INDENT}history, the last {HISTORY} events at most")
        cells = [(INDENT * 2 + e["when"], e["rule"] or "-", e["event"], e["text"]) for e in facts["history"]]
        click.echo("\n".join(fitted(cells)))


def facts_of(places, job):
    """Return all that journal and disk hold of a job, as it is printed and as JSON has it."""
    names = Names.at(places)
    row = names.reader.job(job.tree, job.job) if names.reader else None
    history = names.reader.history(job.tree, job.job, HISTORY) if names.reader else []
    where = os.path.join(names.trees[job.tree][0], job.job) if job.tree in names.trees else ""
    there, rec = bool(where) and os.path.isdir(where), None
    try:
        rec = recordfile.load(where) if there else None
    except WatchtiesError as error:
        click.echo(f"watchties: {error}", err=True)
    return {
        "job": str(job),
        "state": (rec.phase if rec else "") or (row.state if row else ""),
        "attempt": (rec.attempt if rec else 0) or (row.attempt if row else 0),
        "host": (rec.host if rec else "") or (row.host if row else ""),
        "since": clock(row.since) if row else "",
        "reason": (rec.fields.get("reason", "") if rec else "") or (row.reason if row else ""),
        "waiting_on": row.waiting_on if row else "",
        "dir": where if there else "",
        "markers": [{"marker": m, "since": clock(s), "fields": f} for m, s, f in onlook.standing(where)] if there else [],
        "record": asdict(rec) if rec and rec.attempt + bool(rec.accepted) + bool(rec.pulling) else None,
        "history": [event._asdict() | {"when": clock(event.when)} for event in history],
    }


def show_markers(rows):
    """Print the markers that stand, each with what it says."""
    click.echo(f"\n{INDENT}markers in the mirror" + ("" if rows else ": none"))
    told = [" ".join(f"{key}={value}" for key, value in row["fields"].items()) for row in rows]
    for line in fitted([(INDENT * 2 + row["marker"], row["since"], text) for row, text in zip(rows, told)]):
        click.echo(line)


def show_record(plain):
    """Print what a record says, empty things left out."""
    click.echo(f"\n{INDENT}record")
    old = plain["old"] and "attempt {attempt} on {host}, token {token}".format(**plain["old"])
    tries = [f"{rule}: {e['count']} so far, next at {clock(e['next'])}: {e['reason']}" for rule, e in plain["tries"].items()]
    rows = [
        ("token", plain["token"]),
        ("host contacted", "yes" if plain["contacted"] else ""),
        ("requests accepted", ", ".join(plain["accepted"])),
        ("of these served", ", ".join(plain["served"])),
        ("pull under way", plain["pulling"]),
        ("overtaken, to be ended", old or ""),
        ("rules ended", ", ".join(f"{rule} {how}" for rule, how in plain["ended"].items())),
        *(("tried again", text) for text in tries),
        *((key, clock(value) if key == "since" else str(value)) for key, value in plain["fields"].items() if key != "reason"),
    ]
    click.echo("\n".join(fitted([(INDENT * 2 + key, value) for key, value in rows if value])))


def comes_next(seen, decision):
    """Return what a Decision says, as words: one Step, or every Start and Wait; [] if there is nothing to do."""
    step = decision.step
    if step and step.what == "close" and not seen.mirror.open:
        return []  # it would take down a flag that is not up
    return [told_of(action) for action in ([step] if step else [*decision.starts, *decision.waits])]


def told_of(action):
    """Return a Step, Start or Wait as words."""
    if isinstance(action, Step):
        marker = action.marker or (action.request.marker if action.request else "")
        return {"action": "daemon", "what": f"{action.what} {marker}".strip(), "reason": action.reason}
    if isinstance(action, Start):
        return {"action": "start", "what": f"{action.rule} on {action.host}" if action.host else action.rule, "reason": action.reason}
    when = f", looked at again at {clock(action.until)}" if action.until else ""
    return {"action": "wait", "what": action.rule, "reason": action.reason + when}


def unseen_of(config, seen):
    """Return what an onlooker cannot know, each with the way to find out."""
    tree = config.tree[seen.id.tree]
    where = f"{tree.path[tree.web]}/{seen.id.job}"
    lines = [f"whether PENDING or CANCEL stand on {tree.web}: the daemon is told of those; look into {where} there"]
    lines.append(f"whether {', '.join(tree.hosts())} answer: watchties check")
    if seen.record.phase == SUBMITTED:
        lines.append(f"whether the job has ended on {seen.record.host}: the daemon asks there")
    return lines
