"""status, explain, requeue, cancel: jobs, as people ask for them.

Knows: how a job, its record and what comes next are told.
Must not know: where they come from (journal.py, onlook.py, decide.py).
"""

import click

from watchties.cli.common import aligned, clock, iso, json_option, plural, show_json, show_table, with_places
from watchties.cli.names import JOB, Names
from watchties.errors import UserError
from watchties.model import CANCEL, DONE, FAILED, FINAL, MARKERS, PENDING, SUBMITTED, JobId

SHOWN = (PENDING, SUBMITTED, DONE, FAILED)
HISTORY = 20  # lines of a job's history
INDENT = "  "


@click.command()
@click.argument("job", required=False, type=JOB)
@click.option("--all", "-a", "everything", is_flag=True, help="Jobs that have ended, too.")
@click.option("--state-is", "--in", "states", multiple=True, metavar="STATE", type=click.Choice(SHOWN, case_sensitive=False),
              help="Only jobs in this state; may be repeated.")
@click.option("--user", metavar="USER", help="Only jobs of this user.")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=1000, show_default=True, help="So many jobs at most.")
@json_option
@with_places
def status(places, job, everything, states, user, limit, as_json):
    """Show the jobs that something is left to do for, and why each waits; or everything about one JOB.

    \b
    Example:  watchties status
              watchties status --all --user ann --json
              watchties status --in FAILED
              watchties status 'ann/Exp 1'
    """
    if job:
        return show_job(places, Names.at(places).find(job), as_json)
    reader, pid = places.reader(), places.daemon()
    wanted = [state.upper() for state in states] or None if everything or states else [PENDING, SUBMITTED]
    rows = reader.jobs(wanted, user, None if everything or states else limit)
    if not (everything or states):
        rows += [row for row in reader.jobs([DONE, FAILED], user) if row.waiting_on]
    rows = rows[:limit]
    if as_json:
        jobs = [row._asdict() | {"since": iso(row.since)} for row in rows]
        return show_json({"daemon": pid or None, "counts": reader.counts(), "jobs": jobs})
    click.echo(told_of_daemon(pid))
    click.echo(", ".join(f"{count} {state}" for state in SHOWN if (count := reader.counts().get(state))) or "no jobs yet")
    if rows:
        click.echo()
        cells = [(f"{r.tree}:{r.job}", r.state, r.attempt or "", r.host, clock(r.since), r.waiting_on or r.reason) for r in rows]
        show_table(("JOB", "STATE", "ATTEMPT", "HOST", "SINCE", "WAITS FOR"), cells)


def told_of_daemon(pid):
    """Return a line on whether a daemon is at work."""
    return f"a daemon is at work, pid {pid}" if pid else "no daemon is at work; start it: watchties run"


def show_job(places, job, as_json):
    """Print what journal and disk hold of one job."""
    facts = facts_of(places, job)
    if as_json:
        return show_json(facts)
    click.echo(facts["job"])
    heads = [(INDENT + key.replace("_", " "), str(facts[key])) for key in ("state", "attempt", "host", "since", "reason", "waiting_on", "dir") if facts[key]]
    click.echo("\n".join(aligned(heads)))
    show_markers(facts["markers"])
    if facts["record"]:
        show_record(facts["record"])
    if facts["history"]:
        click.echo(f"\n{INDENT}history, the last {HISTORY} events at most")
        cells = [(INDENT * 2 + e["when"], e["rule"] or "-", e["event"], e["text"]) for e in facts["history"]]
        click.echo("\n".join(aligned(cells)))


def facts_of(places, job):
    """Return all that journal and disk hold of a job, as it is printed and as JSON has it."""
    import os
    from dataclasses import asdict

    from watchties import onlook, record
    from watchties.errors import WatchtiesError

    names = Names.at(places)
    row = names.reader.job(job.tree, job.job) if names.reader else None
    history = names.reader.history(job.tree, job.job, HISTORY) if names.reader else []
    where = os.path.join(names.trees[job.tree][0], job.job) if job.tree in names.trees else ""
    there, rec = bool(where) and os.path.isdir(where), None
    try:
        rec = record.load(where) if there else None
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
    for row in rows:
        told = " ".join(f"{key}={value}" for key, value in row["fields"].items())
        click.echo(f"{INDENT * 2}{row['marker']}  {row['since']}  {told}".rstrip())


def show_record(plain):
    """Print what a record says, empty things left out."""
    click.echo(f"\n{INDENT}record")
    old = plain["old"] and "attempt {attempt} on {host}, token {token}".format(**plain["old"])
    tries = [f"{rule}: {entry['count']} so far, next at {clock(entry['next'])}: {entry['reason']}" for rule, entry in plain["tries"].items()]
    rows = [
        ("token", plain["token"]),
        ("host contacted", "yes" if plain["contacted"] else ""),
        ("requests accepted", ", ".join(plain["accepted"])),
        ("of these served", ", ".join(plain["served"])),
        ("pull under way", plain["pulling"]),
        ("overtaken, to be ended", old or ""),
        ("rules ended", ", ".join(f"{rule} {how}" for rule, how in plain["ended"].items())),
        *(("tried again", text) for text in tries),
        *((key, str(value)) for key, value in plain["fields"].items() if key != "reason"),
    ]
    click.echo("\n".join(aligned([(INDENT * 2 + key, value) for key, value in rows if value])))


@click.command()
@click.argument("job", type=JOB)
@json_option
@with_places
def explain(places, job, as_json):
    """Show what is on disk for a JOB, what would be done next, and why.

    It looks at the mirror and at nothing else: what stands on the web host and whether hosts answer is not seen.

    \b
    Example:  watchties explain ann/Exp_1
    """
    from watchties import decide, onlook

    config = places.load()
    job, where = Names.at(places).find_on_disk(job)
    at_work = onlook.runs_at_work(places.state, job)
    seen = onlook.see(config, job, at_work)
    decision = decide.decide(seen, onlook.world(config, job.tree))
    facts = facts_of(places, job)
    nexts = [told_of(action) for action in ([decision.step] if decision.step else [*decision.starts, *decision.waits])]
    runs = [{"run": run.run, "rule": run.rule, "host": run.host, "started": clock(run.started)} for run in at_work]
    unseen = unseen_of(config, seen)
    if as_json:
        return show_json({**facts, "record_file": f"{where}/.watchties/record.json", "runs": runs, "next": nexts, "unseen": unseen})
    click.echo(f"{job}\n{INDENT}in {where}")
    show_markers(facts["markers"])
    if facts["record"]:
        show_record(facts["record"] | {"fields": {"state": seen.record.phase, "attempt": seen.record.attempt} | seen.record.fields})
    else:
        click.echo(f"\n{INDENT}no record: nothing was ever asked for here")
    for run in runs:
        click.echo(f"\n{INDENT}at work: run {run['run']} of {run['rule']} on {run['host'] or 'this machine'}, since {run['started']}")
    click.echo(f"\n{INDENT}what comes next")
    click.echo("\n".join(aligned([(INDENT * 2 + n["action"], n["what"], n["reason"]) for n in nexts])) if nexts else INDENT * 2 + "nothing")
    click.echo(f"\n{INDENT}not seen from here")
    for line in unseen:
        click.echo(INDENT * 2 + line)


def told_of(action):
    """Return a Step, Start or Wait as words."""
    from watchties.decide import Start, Step

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
    lines = [f"whether PENDING or CANCEL stand on {tree.web}: the daemon is told of those; look into {tree.path[tree.web]}/{seen.id.job} there"]
    lines.append(f"whether {', '.join(tree.hosts())} answer: watchties check")
    if seen.record.phase == SUBMITTED:
        lines.append(f"whether the job has ended on {seen.record.host}: the daemon asks there")
    return lines


# ---- asking for something ----


def ask_for(places, jobs, marker, refuse=lambda where: ""):
    """Put a request into each job's directory in the mirror, as `touch` would; all names are looked at before."""
    from watchties import markers

    names = Names.at(places)
    found = [names.find_on_disk(job) for job in jobs]
    for job, where in found:
        if why := refuse(where):
            raise UserError(f"{job}: {why}")
    for job, where in dict(found).items():
        markers.put_request(where, marker)
        click.echo(f"{job}: {marker} is in {where}")
    if not places.daemon():
        click.echo("watchties: no daemon is at work here: it will be seen when one is started (watchties run)", err=True)


@click.command()
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True, type=JOB)
@with_places
def requeue(places, jobs):
    """Have jobs run once more, with the inputs as they are in the mirror: puts PENDING there.

    \b
    Example:  watchties requeue ann/Exp_1 'bob/Exp 2'
    """
    ask_for(places, jobs, PENDING)


@click.command()
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True, type=JOB)
@with_places
def cancel(places, jobs):
    """Have jobs stopped, wherever they are: puts CANCEL into the mirror.

    A job that has ended stays as it is.

    \b
    Example:  watchties cancel ann/Exp_1
    """
    ask_for(places, jobs, CANCEL, refuse=nothing_to_stop)


def nothing_to_stop(where):
    """Return why a CANCEL would find nothing; "" if it may. It would otherwise lie in wait for the next request."""
    import os

    from watchties import record

    rec = record.load(where)
    if rec.pulling or os.path.lexists(os.path.join(where, PENDING)):
        return ""
    if not rec.attempt:
        return "nothing was ever asked for here, so there is nothing to stop"
    return f"it is {rec.phase} already, so there is nothing to stop" if rec.phase in FINAL else ""
