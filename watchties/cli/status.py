"""status: the jobs that something is left to do for, once or as it changes; or one job.

Knows: which jobs are meant, where it is shown.
Must not know: how one job is told (onejob.py), how many fit (overview.py), how keys are read (live.py).
"""

import sys

import click

from watchties.cli.common import clock, json_option, show_json, show_table, with_places
from watchties.cli.names import JOB, Names
from watchties.cli.overview import SHOWN, Overview, lines
from watchties.errors import UserError


@click.command()
@click.argument("job", required=False, type=JOB)
@click.option("--all", "-a", "everything", is_flag=True, help="Jobs that have ended, too.")
@click.option("--in", "states", multiple=True, metavar="STATE", type=click.Choice(SHOWN, case_sensitive=False),
              help="Only jobs in this state; may be repeated.")
@click.option("--user", metavar="USER", help="Only jobs of this user.")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=1000, show_default=True, help="So many jobs at most.")
@click.option("--watch", "-w", is_flag=True, help="Show it anew every second, on a terminal; q or Ctrl-C ends it.")
@json_option
@with_places
def status(places, job, everything, states, user, limit, watch, as_json):
    """Show the jobs that something is left to do for, and why each waits; or everything about one JOB.

    \b
    Example:  watchties status
              watchties status --watch
              watchties status --all --user ann --json
              watchties status --in FAILED
              watchties status 'ann/Exp 1'
    """
    if watch and (job or as_json):
        raise UserError(f"--watch shows the table of all jobs; leave {'JOB' if job else '--json'} out, or --watch")
    if job:
        from watchties.cli.onejob import show_job

        return show_job(places, Names.at(places).find(job), as_json)
    wanted = {"states": [state.upper() for state in states], "everything": everything, "user": user, "limit": limit}
    if watch:
        from watchties.cli import live

        return live.watch(lambda: Overview.at(places, **wanted))
    overview = Overview.at(places, **wanted)
    if as_json:
        return show_json(overview.plain())
    for line in overview.head():
        click.echo(line)
    if overview.rows:
        click.echo()
        show_rows(overview.rows)


def show_rows(rows):
    """Print the jobs: to fit a terminal, in full elsewhere."""
    if sys.stdout.isatty():
        import shutil

        click.echo("\n".join(lines(rows, shutil.get_terminal_size().columns)))
    else:
        cells = [(f"{r.tree}:{r.job}", r.state, r.attempt or "", r.host, clock(r.since), r.waiting_on or r.reason) for r in rows]
        show_table(("JOB", "STATE", "ATTEMPT", "HOST", "SINCE", "WAITS FOR, OR WHY"), cells)
