"""The command line: `watchties COMMAND`. Each command lies in a file of its group and is imported when it is called.

Knows: which commands there are, in which file, and how an error becomes one line and an exit code.
Must not know: what any of them does.

So `watchties --help`, `watchties status` and shell completion never wait for pydantic, asyncio or rich.
"""

import errno
import importlib
import sys

import click

from watchties import __version__
from watchties.cli.common import place_options
from watchties.errors import FAILURE, CommandFailed, UserError, WatchtiesError

# command -> (module, what `watchties --help` says of it); in the order in which they are met
COMMANDS = {
    "demo": ("demo", "Carry example jobs through three trees on this machine."),
    "init": ("setup", "Make the directories, with a configuration to edit."),
    "deploy": ("setup", "Put agent and relay on hosts."),
    "check": ("setup", "Look whether everything is as it must be, here and on the hosts."),
    "run": ("service", "Carry jobs, until told to stop."),
    "service": ("unit", "Have systemd keep the daemon running."),
    "transfer": ("onepass", "Carry what can be carried now, and end: for cron."),
    "status": ("status", "Show all jobs that something is left to do for, or one job."),
    "stats": ("stats", "Show how long each step takes, jobs for each day, failures by cause."),
    "explain": ("jobs", "Show what is on disk for a job, what would be done next, and why."),
    "requeue": ("jobs", "Have jobs run once more."),
    "cancel": ("jobs", "Have jobs stopped."),
    "logs": ("logs", "Show what hooks and daemon have logged."),
    "run-hook": ("hooks", "Run one hook by hand for one job, in the environment that it has in earnest."),
    "rebuild": ("service", "Make the journal again from the disk."),
}


class TellsErrors:
    """What each program's outermost command is, so that an error is told in one line."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except UserError as error:
            tell(str(error))
            ctx.exit(error.exit_code)
        except WatchtiesError as error:
            tell(str(error))
            for line in error.details() if isinstance(error, CommandFailed) else ():
                click.echo(f"  {line}", err=True)
            ctx.exit(FAILURE)
        except OSError as error:
            if error.errno == errno.EPIPE or error.errno is None:
                raise  # click ends in silence when nobody reads any more
            tell(f"{error.filename or 'the system'}: {error.strerror}")
            ctx.exit(FAILURE)


class Lazy(TellsErrors, click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"watchties.cli.{COMMANDS[name][0]}")
        return getattr(module, name.replace("-", "_"))

    def resolve_command(self, ctx, args):
        """Say which command was meant, where one is near."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from watchties.configfiles import nearest

            near = nearest(args[0], COMMANDS)
            ctx.fail(f"no command is called {args[0]!r}" + (f"; did you mean {near}?" if near else "; see watchties --help"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx, incomplete):
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return found or click.Command.shell_complete(self, ctx, incomplete)


def tell(text):
    """Write what is wrong to standard error, `watchties:` in front of each line."""
    for line in text.splitlines() or [""]:
        click.echo(f"watchties: {line}", err=True)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", message="watchties %(version)s")
@place_options(envvar=True)
@click.pass_context
def main(ctx, config_dir, state_dir):
    """Carries experiments from a web host to compute hosts and their results back, watching marker files.

    \b
    See it work:     watchties demo
    Set it up:       watchties init; watchties deploy vision b01; watchties check
    Use it:          watchties run
    Read it all:     man watchties; man watchties.toml
    Complete words:  eval "$(_WATCHTIES_COMPLETE=bash_source watchties)"
                     (or zsh_source, fish_source)

    JOB is USER/EXPERIMENT, or TREE:USER/EXPERIMENT where two trees have it, or the path of its directory.
    Exit code 0: done; 1: something is wrong; 2: it was asked for in a wrong way.
    """
    ctx.obj = config_dir, state_dir
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name must never be what a terminal cannot show
