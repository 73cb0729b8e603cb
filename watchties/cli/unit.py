"""service install | uninstall | status: the daemon as a service of the user's systemd.

Knows: in which order it is done, what people are told.
Must not know: what is in the unit, how systemd is asked (watchties/unit.py).
"""

import click

from watchties.cli.common import with_places
from watchties.errors import CommandFailed, WatchtiesError

SEE = "see: systemctl --user status watchties; journalctl --user -u watchties; watchties logs"


@click.group()
def service():
    """Have systemd keep the daemon running, as a service of this user.

    \b
    Example:  watchties service install
              watchties service status
              watchties service uninstall
    """


@service.command(short_help="Write the unit, and start it.")
@with_places
def install(places):
    """Write the unit, with absolute paths, and start it, now and at every start of the user's systemd.

    A unit that is there already is never written over: uninstall first. Exit code 1 if anything stands in the way.

    \b
    Example:  watchties service install
    """
    from watchties import unit

    config = places.load()
    unit.require_manager()
    program = unit.program()
    why = unit.needs_privileges(config)
    text = unit.filled(program, places.config, places.state, sandbox=not why)
    if there := unit.installed():
        same = "is installed already" if there == text else "is there already, and differs from what would be written now"
        raise WatchtiesError(f"{unit.path()} {same}; nothing was done. To write it anew: watchties service uninstall, then install")
    if pid := places.daemon():
        raise WatchtiesError(f"a daemon is at work already (pid {pid}), which is no service; end it first: kill {pid}")
    unit.write(text)
    click.echo(f"written: {unit.path()}")
    if why:
        click.echo(f"its sandbox is left out, as {why}, which takes a set-user-ID program")
    unit.systemctl("daemon-reload")
    start(unit)
    click.echo("started, and to be started whenever this user's systemd starts")
    if not unit.lingers():
        click.echo("It ends with your last session. To have it run from boot on, without anybody logged in:\n"
                   f"  loginctl enable-linger {unit.user()}")


def start(unit):
    """Enable and start the service; raise WatchtiesError, with what it said last, if it does not come up."""
    try:
        unit.systemctl("enable", "--now", unit.NAME)
    except CommandFailed as error:
        now = unit.shown()
        state = f"{now.get('ActiveState')}, {now.get('Result')}" + (f", {now['StatusText']}" if now.get("StatusText") else "")
        raise WatchtiesError(f"it is installed, but did not start ({state}): {error.reason()}\n{SEE}") from error


@service.command()
@with_places
def uninstall(places):
    """Stop the service and take its unit away. Configuration, state and jobs stay.

    \b
    Example:  watchties service uninstall
    """
    from watchties import unit

    if not unit.installed():
        raise WatchtiesError(f"{unit.path()} is not there: nothing is installed")
    unit.require_manager()
    unit.systemctl("disable", "--now", unit.NAME)
    unit.path().unlink()
    unit.systemctl("daemon-reload")
    unit.systemctl("reset-failed", unit.NAME, check=False)
    click.echo(f"stopped, and taken away: {unit.path()}")


@service.command(short_help="Show whether it is installed and at work, and how things stand.")
@with_places
def status(places):
    """Show whether the service is installed and at work, and what it says of itself. Exit code 1 if it is not at work.

    \b
    Example:  watchties service status
    """
    from watchties import unit

    there = unit.installed()
    if not there:
        raise WatchtiesError(f"{unit.path()} is not there: nothing is installed; run: watchties service install")
    unit.require_manager()
    now = unit.shown()
    click.echo(f"{unit.path()}\n{now['ActiveState']} ({now['SubState']}), pid {now['MainPID']}, restarted {now['NRestarts']} times")
    if now.get("StatusText"):
        click.echo(now["StatusText"])
    if not unit.lingers():
        click.echo(f"it ends with your last session; to have it run always: loginctl enable-linger {unit.user()}")
    text = unit.filled(unit.program(), places.config, places.state, sandbox=not unit.needs_privileges(places.load()))
    if there != text:
        click.echo("the unit differs from what would be written now (a moved virtual environment, another configuration, a new version); "
                   "to write it anew: watchties service uninstall, then install")
    if now["ActiveState"] != "active":
        raise WatchtiesError(f"it is not at work ({now['Result']}); {SEE}")
