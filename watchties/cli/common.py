"""What the commands share: where configuration and state lie, whether a daemon is at work, tables, JSON.

Knows: options, environment, places on disk, terminals.
Must not know: what any command does; which job is meant (names.py). Imports next to nothing at its top.
"""

import functools
import json
import os
import sys
import time
import unicodedata
from dataclasses import dataclass

import click

from watchties.errors import ConfigError, UserError

CONFIG_ENV, STATE_ENV = "WATCHTIES_CONF_DIR", "WATCHTIES_STATE_DIR"


@dataclass(frozen=True)
class Places:
    """The directories of one watchties: conf.d, and its own state. User's own hooks lie beside conf.d."""

    config: str
    state: str

    @classmethod
    def of(cls, config, state):
        """Return the places for options that may be None."""
        if not (config and state):
            import platformdirs

            config = config or os.path.join(platformdirs.user_config_dir("watchties"), "conf.d")
            state = state or platformdirs.user_state_dir("watchties")
        return cls(os.path.abspath(os.path.expanduser(config)), os.path.abspath(os.path.expanduser(state)))

    @property
    def hooks(self):
        return os.path.join(os.path.dirname(self.config), "hooks")

    @property
    def journal(self):
        return os.path.join(self.state, "journal.sqlite")

    @property
    def log(self):
        return os.path.join(self.state, "log")

    def load(self):
        """Return the whole Config; raise ConfigError with all that is wrong."""
        from watchties import config

        return config.load(self.config, self.state)

    def trees(self):
        """Return tree -> (mirror's root, job pattern), read without pydantic: enough to find a job. Raises ConfigError."""
        from watchties import configfiles

        tables, problems = configfiles.read(self.config)
        if problems:
            raise ConfigError(line for _, line in problems)
        found = {table.name: (table.data.get("root"), table.data.get("jobs", "*/*")) for table in tables if table.kind == "tree"}
        if bad := [name for name, (root, jobs) in found.items() if not (isinstance(root, str) and isinstance(jobs, str))]:
            raise ConfigError([f"{self.config}: [tree.{bad[0]}] has no root or no job pattern; run: watchties check"])
        return {name: (os.path.normpath(os.path.expanduser(root)), jobs) for name, (root, jobs) in found.items()}

    def reader(self):
        """Return the journal, to read; raise UserError if there is none."""
        from watchties.journal import Reader

        if not os.path.exists(self.journal):
            raise UserError(f"{self.journal} is not there: no daemon has been at work here yet; start one: watchties run")
        return Reader(self.journal)

    def daemon(self):
        """Return the pid of the daemon at work here, as text; "" if none is."""
        pid, what = self.at_work()
        return pid if what == "daemon" else ""

    def transfer(self):
        """Return the pid of the pass at work here, as text; "" if none is."""
        pid, what = self.at_work()
        return pid if what == "transfer" else ""

    def at_work(self):
        """Return (pid, "daemon" or "transfer") of what is at work here; ("", "") if nothing is."""
        from watchties import statelock

        return statelock.holder(self.state)


def place_options(envvar=False):
    """Return a decorator that adds --config and --state; environment variables count only before the command."""

    def add(command):
        kind = click.Path(file_okay=False)
        env = (CONFIG_ENV, STATE_ENV) if envvar else (None, None)
        config = click.option("--config", "config_dir", metavar="DIR", type=kind, envvar=env[0],
                              help=f"The configuration: a directory of *.toml.  [~/.config/watchties/conf.d, or ${CONFIG_ENV}]")
        state = click.option("--state", "state_dir", metavar="DIR", type=kind, envvar=env[1],
                             help=f"Where journal, logs and locks are.  [~/.local/state/watchties, or ${STATE_ENV}]")
        return config(state(command))

    return add


def with_places(command):
    """Decorate a command: it gets Places first. An option after the command counts more than one before it."""

    @place_options()
    @click.pass_context
    @functools.wraps(command)
    def call(ctx, config_dir, state_dir, **rest):
        return command(places_of(ctx, config_dir, state_dir), **rest)

    return call


def places_of(ctx, config_dir=None, state_dir=None):
    """Return the Places of a context, also while a shell completes words and nothing has been called yet."""
    outer = ctx.find_root()
    before = outer.obj or (outer.params.get("config_dir"), outer.params.get("state_dir"))
    return Places.of(config_dir or before[0], state_dir or before[1])


def json_option(command):
    """Decorate a command with --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


# ---- output ----


def show_json(value):
    """Print a value as JSON; in ASCII where the output is not UTF-8."""
    ascii_only = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "") != "utf8"
    click.echo(json.dumps(value, ensure_ascii=ascii_only, indent=2))


def show_table(heads, rows):
    """Print rows of text under heads: a table on a terminal, plain aligned columns elsewhere."""
    rows = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))  # Text: a name in square brackets is no markup
        Console().print(table)
    else:
        for line in aligned([list(heads), *rows]):
            click.echo(line)


def aligned(rows):
    """Return lines with the cells of each column one below the other, two blanks apart."""
    widths = [max(map(width, column)) for column in zip(*rows)]
    return ["  ".join(cell + " " * (w - width(cell)) for cell, w in zip(row, widths)).rstrip() for row in rows]


def fitted(rows):
    """Return the same lines; on a terminal, a last cell that is too long goes on below itself."""
    lines = aligned(rows)
    if not (rows and sys.stdout.isatty()):
        return lines
    import shutil
    import textwrap

    columns, start = shutil.get_terminal_size().columns, sum(max(map(width, column)) + 2 for column in list(zip(*rows))[:-1])
    room, found = max(20, columns - start), []
    for line, (*_, cell) in zip(lines, rows):
        first, *more = textwrap.wrap(cell, room) if width(line) > columns else [cell]
        found += [line[: len(line) - len(cell.rstrip())] + first.rstrip(), *(" " * start + part for part in more)]
    return found


def width(text):
    """Return how many columns of a terminal a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clock(seconds):
    """Return a time (seconds since 1970) for people, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def iso(seconds):
    """Return a time for programs: ISO 8601 in UTC, None for none."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None


def plural(count, word):
    """Return `1 job`, `2 jobs`."""
    return f"{count} {word}" + ("" if count == 1 else "s")
