"""explain, requeue, cancel: jobs, as people ask for them.

Knows: which jobs are meant, what is asked for.
Must not know: how one job is told (onejob.py), what is to be done for it (decide.py).
"""

import os

import click

from watchties.cli.common import clock, fitted, json_option, show_json, with_places
from watchties.cli.names import JOB, Names
from watchties.errors import UserError
from watchties.model import CANCEL, FINAL, PENDING


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
    from watchties import decide, onlook, progress
    from watchties.cli.onejob import INDENT, comes_next, facts_of, show_markers, show_record, unseen_of

    config = places.load()
    job, where = Names.at(places).find_on_disk(job)
    at_work = onlook.runs_at_work(places.state, job)
    seen = onlook.see(config, job, at_work)
    decision = decide.decide(seen, onlook.world(config, job.tree))
    facts = facts_of(places, job)
    nexts = comes_next(seen, decision)
    runs = [{"run": run.run, "rule": run.rule, "host": run.host, "started": clock(run.started)} for run in at_work]
    far = {one.run: one.progress.told() for one in progress.transfers(places.state)}
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
        if run["run"] in far:
            click.echo(f"{INDENT * 2}under way: {far[run['run']]}")
    click.echo(f"\n{INDENT}what comes next")
    rows = [(INDENT * 2 + one["action"], one["what"], one["reason"]) for one in nexts]
    if facts["waiting_on"] and facts["waiting_on"] not in "; ".join(one["reason"] for one in nexts):
        rows.append((INDENT * 2 + "wait", "as the daemon said", facts["waiting_on"]))  # what depends on other jobs: max_running
    nothing = "nothing: everything that was asked for has ended" if facts["record"] else "nothing"
    for line in fitted(rows) if rows else [INDENT * 2 + nothing]:
        click.echo(line)
    click.echo(f"\n{INDENT}not seen from here")
    for line in unseen:
        click.echo(INDENT * 2 + line)


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
    from watchties import recordfile

    rec = recordfile.load(where)
    if rec.pulling or os.path.lexists(os.path.join(where, PENDING)):
        return ""
    if not rec.attempt:
        return "nothing was ever asked for here, so there is nothing to stop"
    return f"it is {rec.phase} already, so there is nothing to stop" if rec.phase in FINAL else ""
