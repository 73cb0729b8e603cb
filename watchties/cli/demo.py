"""demo: example jobs through three trees on this machine, to look at.

Knows: how it is shown, on a terminal and elsewhere; when it has succeeded.
Must not know: how it is done (watchties/demo.py).
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import click

from watchties.cli.common import plural
from watchties.errors import FAILURE

GLANCE, GLANCE_PER_JOB = 0.1, 0.002  # seconds between two looks
ROWS = 20  # jobs that the live table shows
TAIL = 25  # lines of the daemon's log


@click.command()
@click.option("--jobs", "count", metavar="N", type=click.IntRange(1, 10_000), default=3, show_default=True, help="How many example jobs.")
@click.option("--dir", "folder", metavar="DIR", type=click.Path(file_okay=False),
              help="Where everything goes; it stays there. It must be empty or not there yet.  [a temporary directory]")
@click.option("--keep", is_flag=True, help="Leave the temporary directory there, to look at.")
def demo(count, folder, keep):
    """Carry example jobs through three trees on this machine: for the web host, for this one, for the compute host.

    The real daemon, hooks, rsync and agent are at work; only ssh is not. Mail goes to a folder. Each job fits coupled
    oscillators to some dyads. Nothing outside of the directory is touched.

    \b
    Example:  watchties demo
              watchties demo --jobs 20 --keep
    """
    from watchties.demo import Demo

    keep, temporary = keep or bool(folder), not folder
    folder = os.path.abspath(os.path.expanduser(folder)) if folder else os.path.realpath(tempfile.mkdtemp(prefix="watchties-demo-"))
    work = Demo(folder, count)
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}  # or the daemon would outlive us
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    good = False
    try:
        good = show(work)
    except KeyboardInterrupt:
        click.echo("\ninterrupted", err=True)
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # once is enough: the daemon is being ended
        try:
            work.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            leave(work, temporary and not keep and (good or not work.dropped))
    if not good:
        raise SystemExit(FAILURE)


def leave(work, remove):
    """Remove the directory, or say where everything lies."""
    if remove:
        shutil.rmtree(work.folder, ignore_errors=True)
        click.echo("Removed again. To have a look at it all: watchties demo --keep")
    elif work.dropped:
        say_where(work)


def _end(number, frame):
    signal.signal(number, signal.SIG_IGN)  # timeout(1), for one, sends it twice
    raise SystemExit(128 + number)


def show(work):
    """Carry it out; return whether all went well."""
    work.prepare()
    click.echo(f"Three trees in {work.folder} stand for three hosts: vision (web), v11 (this one), b01 (compute).")
    work.start()
    work.drop()
    click.echo(f"{plural(len(work.jobs), 'job')} dropped on the web host's tree; a daemon (pid {work.daemon.pid}) is at work.\n")
    ways = (in_table if sys.stdout.isatty() else in_lines)(work, watch(work))
    lacking = work.lacking(ways)
    if lacking or work.has_died():
        explain_failure(work, lacking)
        return False
    if work.daemon:
        work.stop()  # it must end well, too
    slowest = max(way.seconds for way in ways)
    click.echo(f"\n{plural(len(ways), 'job')} DONE, {'its' if len(ways) == 1 else 'all'} results on the web host, a mail for each. "
               f"From PENDING to mail: {slowest:.1f} s for the slowest.")
    show_result(work)
    return True


def watch(work):
    """Yield the Ways of all jobs, again and again, until all have ended, the daemon has died, or patience has."""
    deadline, glance = time.monotonic() + work.patience, max(GLANCE, GLANCE_PER_JOB * len(work.jobs))
    while True:
        ways, over = work.look(), work.has_died() or time.monotonic() > deadline
        yield ways
        if over or all(way.ended for way in ways):
            return
        time.sleep(glance)


def in_lines(work, looks):
    """Print a line for each change; return the last Ways."""
    shown, ways = {}, []
    wide = max(map(len, work.jobs))
    for ways in looks:
        for way in ways:
            if shown.get(way.job) != way.shown:
                shown[way.job] = way.shown
                places = f"web {way.web:<9}  mirror {way.mirror:<9}  compute {way.compute:<9}  {'mail sent' if way.mail else ''}"
                click.echo(f"{way.seconds:6.1f} s  {way.job:<{wide}}  {places}".rstrip())
    return ways


def in_table(work, looks):
    """Show a table that changes; return the last Ways."""
    from rich.live import Live

    ways = []
    with Live(auto_refresh=False) as live:
        for ways in looks:
            live.update(table_of(ways), refresh=True)
    return ways


def table_of(ways):
    """Return the table of the jobs: those that are on their way first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    colours = {"PENDING": "yellow", "SUBMITTED": "cyan", "DONE": "green", "FAILED": "red"}
    table = Table("JOB", "WEB", "MIRROR", "COMPUTE", "MAIL", "SECONDS", box=box.SIMPLE_HEAD, pad_edge=False)
    for way in sorted(ways, key=lambda way: way.ended)[:ROWS] if len(ways) > ROWS else ways:
        places = [Text(shown, style=colours.get(shown, "")) for shown in (way.web, way.mirror, way.compute)]
        table.add_row(Text(way.job), *places, "sent" if way.mail else "-", f"{way.seconds:.1f}")
    if len(ways) > ROWS:
        table.caption = f"{sum(way.ended for way in ways)} of {len(ways)} have ended"
    return table


def show_result(work):
    """Print the first lines of one job's results, as its user would see them."""
    path = os.path.join(work.web, work.jobs[0], "parameters.csv")
    with open(path, encoding="utf-8") as file:
        click.echo(f"\n{path}")
        for line, _ in zip(file, range(3)):
            click.echo(f"  {line.rstrip()[:110]}")
    click.echo("  ...")


def explain_failure(work, lacking):
    """Print what is not as it must be, what watchties itself says of it, and the end of the daemon's log."""
    click.echo("\nIt did not go well:", err=True)
    why = "the daemon has ended by itself" if work.has_died() else f"not everything ended within {work.patience} s"
    for line in ([why] if work.has_died() or not all(way.ended for way in work.look()) else []) + lacking:
        click.echo(f"  {line}", err=True)
    done = subprocess.run(work.words("status"), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    click.echo(f"\n{done.stdout}{done.stderr}", err=True)
    for path in work.at("daemon.err"), os.path.join(work.state, "log", "daemon.log"):
        if os.path.exists(path) and os.path.getsize(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()[-TAIL:]
            click.echo(f"The end of {path}:", err=True)
            click.echo("\n".join(f"  {line}" for line in lines), err=True)
            break


def say_where(work):
    """Print where everything lies, and what to type next."""
    mine = f"watchties --config {shlex.quote(work.conf)} --state {shlex.quote(work.state)}"
    click.echo(f"""
It lies in {work.folder}:
  vision/compties/user_data   the web host's tree, results in it
  v11/compties/user_data      the mirror, with the records
  b01/compties/user_data      the compute host's tree; b01/compties/bin has the program
  mail/                       the mail
  conf.d/                     the configuration      state/log/  the logs

What to type next:
  {mine} status --all
  {mine} logs {shlex.quote(work.jobs[0])}
  {mine} explain {shlex.quote(work.jobs[-1])}
and to go on with it:
  {mine} run &
  touch {shlex.quote(os.path.join(work.web, work.jobs[0], 'PENDING'))}
  {mine} status""")


