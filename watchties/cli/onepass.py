"""transfer: one pass and out; and passes for names that arrive, for the older commands.

Knows: who is at work already, what is printed of a pass.
Must not know: when a pass ends (watchties/onepass.py).
"""

import time

import click

from watchties.cli.common import with_places

AGAIN = 0.2  # seconds between two looks whether another pass has ended


@click.command()
@click.option("--verbose", "-v", is_flag=True, help="Show on standard error what is logged.")
@with_places
def transfer(places, verbose):
    """Carry what can be carried now, and end: the daemon's work as one pass, for cron.

    Every web host is asked once what waits there, every mirror is read once, and every compute host is asked once how its
    jobs stand. What follows from that is done and waited for: pull, submit, fetch, push, mail. It ends when no hook runs any
    more and nothing more can be done now. Left to the next pass are jobs that run, also those just submitted, tries that are
    to come later, and hosts that are down.

    A second one at the same time, or beside a daemon, says so and does nothing; the exit code is 0. A daemon that is started
    meanwhile takes over what runs. SIGTERM and Ctrl-C end it as they end a daemon.

    \b
    Example:  watchties transfer
    """
    do_transfer(places, verbose)


def do_transfer(places, verbose):
    """Make one pass over everything."""
    from watchties.onepass import OnePass
    from watchties.statelock import AtWork

    try:
        work, taken_over, told_to_end = make_pass(places, OnePass, lambda: (), verbose)
    except AtWork as held:
        click.echo(f"{held}: nothing to be done here")
        return
    click.echo(work.summary())
    if taken_over or told_to_end:
        click.echo("a daemon takes over" if taken_over else "told to end: the next pass goes on")


def make_pass(places, kind, more, verbose):
    """Make one pass of a kind of OnePass; return what serve_once() returns. Raises AtWork."""
    import os

    from watchties import statelock
    from watchties.cli.service import load, start_logging
    from watchties.serve import serve_once
    from watchties.treelock import TreeLocks

    config, hooks = load(places)
    os.makedirs(places.state, mode=0o700, exist_ok=True)
    lock, trees = statelock.take(places.state, statelock.TRANSFER), TreeLocks()
    try:
        trees.take(config.tree)
        start_logging(places.log, config.daemon.log_keep, to_terminal=verbose)
        return serve_once(lambda: kind(config, places.state, hooks, more))
    finally:
        trees.close()
        lock.close()


def pass_for_each(places, kind, incoming, verbose, until_all_ended=False):
    """Make a pass for the names that have come, again and again until there will be none; return how many were refused.

    A name that comes during a pass is taken into it. until_all_ended: while names may come, make a pass now and then for jobs
    that run. Beside a daemon names are left to that.
    """
    from watchties.statelock import DAEMON, AtWork

    refused, again = 0, None
    while incoming.wait(again) or not incoming.ended:
        try:
            work, _, told_to_end = make_pass(places, kind, incoming.take, verbose)
        except AtWork as held:
            if held.what == DAEMON:
                leave_to_daemon(incoming.take(), held.pid)
                again = None
            else:
                time.sleep(AGAIN)
            continue
        refused += tell(work.told())
        if told_to_end:
            break
        polls = [work.config.host[job.record.host].poll for job in work.engine.jobs if job.record.host in work.config.host]
        again = min(polls, default=None) if until_all_ended else None
    return refused


def leave_to_daemon(names, pid):
    """Tell that names are not for us."""
    from watchties.model import printable

    for name in names:
        click.echo(f"{printable(name)}: left to the daemon that is at work (pid {pid}), which sees its PENDING by itself")


def tell(told):
    """Print what came of each name; return how many were refused."""
    for name, good, text in told:
        click.echo(f"{name}: {text}" if good else f"watchties: {name}: {text}", err=not good)
    return sum(not good for _, good, _ in told)
