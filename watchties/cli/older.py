"""The older commands: transfer_ties_jobs, get_ties_jobs, submit_ties_jobs, relay_ties_directories; programs of their own.

Knows: their names and arguments, and that names of jobs go from one to the next by a pipe.
Must not know: how any of it is done: it is the daemon's code.
"""

import functools
import os
import sys
from importlib import resources

import click

from watchties import __version__
from watchties.cli import TellsErrors
from watchties.cli.common import Places, place_options
from watchties.errors import FAILURE

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Older(TellsErrors, click.Command):
    """A command that is a program."""


def older(function):
    """Decorate: a program with its --help and --version."""
    version = click.version_option(__version__, "-V", "--version", message="%(prog)s (watchties %(version)s)")
    return click.command(function.__name__, cls=Older, context_settings=SETTINGS)(version(function))


def placed(function):
    """Decorate: it gets the Places first."""

    @place_options(envvar=True)
    @functools.wraps(function)
    def call(config_dir, state_dir, **rest):
        return function(Places.of(config_dir, state_dir), **rest)

    return call


verbosely = click.option("--verbose", "-v", is_flag=True, help="Show on standard error what is logged.")


@older
@click.argument("names", metavar="[-]", required=False, type=click.Choice(["-"]))
@verbosely
@placed
def transfer_ties_jobs(places, names, verbose):
    """Carry what can be carried now, and end, as `watchties transfer` does, which says what that is.

    With - names of jobs are read from standard input, one a line, and a pass is made for those that arrive; one that arrives
    during a pass is taken into it. While more may arrive, jobs that run are asked for as well, and their results are brought
    back. At the end of the input it makes a last pass if names are left, and ends; jobs that run then are left to the next.

    A name is no request: PENDING on the web host or in the mirror is, and a job for which none stands is told on standard
    error, as is one with a bad name (exit code 1). A name that comes twice runs nothing twice. Beside a daemon, names are left
    to that, which is said for each.

    \b
    Example:  transfer_ties_jobs
              get_ties_jobs vision | transfer_ties_jobs -
    """
    from watchties.cli.onepass import do_transfer, pass_for_each
    from watchties.incoming import Incoming

    if not names:
        return do_transfer(places, verbose)
    from watchties.onepass import OnePass

    if pass_for_each(places, OnePass, Incoming(), verbose, until_all_ended=True):
        raise SystemExit(FAILURE)


@older
@verbosely
@placed
def submit_ties_jobs(places, verbose):
    """Bring jobs here and submit them: reads their names on standard input, one a line, until its end.

    For each it prints how the job stands then. No other job is touched, and nothing is fetched: that is for
    transfer_ties_jobs, `watchties transfer` or the daemon. A job that cannot be submitted now (a host is down) is left to
    those, too.

    A name is no request: PENDING on the web host or in the mirror is, and a job for which none stands is told on standard
    error, as is one with a bad name (exit code 1). A name that comes twice runs nothing twice. Beside a daemon, names are left
    to that, which is said for each.

    \b
    Example:  get_ties_jobs vision | submit_ties_jobs
    """
    from watchties.cli.onepass import pass_for_each
    from watchties.incoming import Incoming
    from watchties.onepass import Submitting

    if pass_for_each(places, Submitting, Incoming(), verbose):
        raise SystemExit(FAILURE)


@older
@click.argument("host")
@placed
def get_ties_jobs(places, host):
    """Print the names of jobs with a PENDING on a web HOST, first those that stand there, then each as it appears.

    It starts the relay there, as the user whose files they are, and ends when nobody reads its output any more. A connection
    that breaks is made again. With several trees on the host, names are TREE:USER/EXP. Names that are refused, and what does
    not work, are told on standard error.

    \b
    Example:  get_ties_jobs vision
              get_ties_jobs vision | submit_ties_jobs
    """
    import asyncio

    from watchties.cli import tell
    from watchties.follow import Follower

    def say(name):
        os.write(1, f"{name}\n".encode())

    try:
        asyncio.run(Follower(places.load(), host, say, tell).run())
    except KeyboardInterrupt:
        pass


@older
@click.option("--directory", metavar="DIR", default="~/compties/scripts", show_default=True,
              help="Where relay.pid, relay.names and relay.lock are.")
@click.option("--tree", metavar="DIR", default="~/compties/user_data", show_default=True, help="The tree of jobs.")
@click.option("--jobs", metavar="PATTERN", default="*/*", show_default=True, help="Where in it the jobs are.")
@click.option("--poll", metavar="SECONDS", type=click.FloatRange(0.1), default=30, show_default=True,
              help="How often what cannot be watched is listed.")
def relay_ties_directories(directory, tree, jobs, poll):
    """Print the names of jobs with a PENDING in a tree of this machine, as they appear, until nobody reads them any more.

    It is the relay itself. `watchties deploy` puts it into compties/scripts of every web host, under this name as well; there it
    needs nothing but python3. A program hands a job over by its marker alone, or by the older protocol: it appends the name to
    relay.names, while it holds relay.lock, and sends signal 30 to the process whose id is in relay.pid, which is locked while
    that one lives:

    \b
    (flock 9; echo USER/EXP >>relay.names
     flock -s -n relay.pid true || kill -30 "$(cat relay.pid)") 9>>relay.lock

    \b
    Example:  relay_ties_directories
              relay_ties_directories --tree /srv/jobs --directory /srv/relay
    """
    with resources.as_file(resources.files("watchties.far") / "relay.py") as relay:
        directory, tree = (os.path.abspath(os.path.expanduser(path)) for path in (directory, tree))
        words = ["--names", "--markers", "PENDING", "--directory", directory, "--tree", f"ties={tree}={jobs}", "--poll", f"{poll:g}"]
        os.execv(sys.executable, [sys.executable, str(relay), *words])
