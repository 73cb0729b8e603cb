"""run, rebuild: the daemon in the foreground, and its journal.

Knows: where the daemon's log goes, how configuration and hooks are read for it (also again, at SIGHUP).
Must not know: what the daemon does.
"""

import logging
import os
import sys

import click

from watchties.cli.common import plural, with_places
from watchties.errors import UserError


@click.command()
@click.option("--check", is_flag=True, help="Only read the configuration and look for its hooks, and say what is wrong (exit code 2).")
@with_places
def run(places, check):
    """Carry jobs, in the foreground, until told to stop.

    SIGTERM and SIGINT (Ctrl-C) end it: what is at work may finish, the rest goes on at the next start. SIGHUP reads
    the configuration again; one that is wrong is not taken, and the former one stays.

    \b
    Example:  watchties run
              watchties run --check
              kill -HUP $(cat ~/.local/state/watchties/daemon.lock)
    """
    from watchties.serve import serve

    config, hooks = load(places)  # what is wrong with it is told before anything is made
    if check:
        return
    os.makedirs(places.state, mode=0o700, exist_ok=True)
    start_logging(places.log, config.daemon.log_keep)
    log = logging.getLogger("watchties")
    log.info("logs are in %s; the configuration is %s", places.log, places.config)
    for warning in config.warnings:
        log.warning("%s", warning)
    first = [(config, hooks)]
    serve(lambda: first.pop() if first else load(places), places.state)
    log.info("watchties has ended")


def load(places):
    """Return (config, rule name -> path of its hook); raise ConfigError or UserError with all that is wrong."""
    from watchties import hookfiles

    config = places.load()
    return config, hookfiles.find_all([rule.hook for rule in config.rule], [rule.name for rule in config.rule], places.hooks)


class Plain(logging.Formatter):
    """Puts nothing into a log that a terminal would obey, and no line of its own: what is told may be a stranger's words."""

    def formatMessage(self, record):
        from watchties.model import printable

        record.message = printable(record.message, 4000)
        return super().formatMessage(record)


class ToHookLog(logging.Handler):
    """Writes to LOG_DIR/daemon.log in the form of the hooks' logs, so that all are read, rotated and removed alike."""

    def __init__(self, folder, keep):
        from watchties.hooklog import HookLog

        super().__init__()
        self.log = HookLog(folder, keep)

    def emit(self, record):
        try:
            level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            self.log.write("daemon", "daemon", (level + self.format(record)).splitlines())
        except Exception:
            self.handleError(record)


def start_logging(folder, keep, to_terminal=True):
    """Have everything logged in a file, and on standard error. Under systemd the journal knows the time already."""
    terminal = logging.StreamHandler(sys.stderr)
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    terminal.setFormatter(Plain(stamp + "%(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [*([terminal] if to_terminal else []), ToHookLog(folder, keep)]
    root.setLevel(logging.WARNING)
    logging.getLogger("watchties").setLevel(logging.INFO)


@click.command()
@with_places
def rebuild(places):
    """Make the journal's index of all jobs again, from what lies in the mirrors. Nothing else is changed.

    A daemon may be at work meanwhile.

    \b
    Example:  watchties rebuild
    """
    from watchties import rebuild as work
    from watchties.journal import Journal

    config = places.load()
    rows = list(work.rows(config))
    journal = Journal(places.journal)
    try:
        if not journal.rebuild(rows):
            raise UserError(f"{places.journal} could not be written; is the disk full? Nothing is lost: try again when there is room")
    finally:
        journal.close()
    click.echo(f"{places.journal}: {plural(len(rows), 'job')} found in {plural(len(config.tree), 'mirror')}")
