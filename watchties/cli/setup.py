"""init, check, deploy: what is done before the daemon is started.

Knows: what a new user needs, how a finding is shown.
Must not know: how a host is looked at (watchties/checks.py), how files get there (watchties/deploy.py).
"""

import asyncio
import os
from importlib import resources

import click

from watchties.cli.common import json_option, plural, show_json, with_places
from watchties.errors import FAILURE, UserError, WatchtiesError


@click.command()
@with_places
def init(places):
    """Make the directories for configuration, hooks and state, with a configuration to edit.

    What is there already stays as it is.

    \b
    Example:  watchties init
              watchties init --config ~/try/conf.d --state ~/try/state
    """
    for directory, what in (places.config, "configuration"), (places.hooks, "hooks of your own"), (places.state, "journal, logs, locks"):
        told = "there already" if os.path.isdir(directory) else "made"
        os.makedirs(directory, mode=0o700 if directory == places.state else 0o755, exist_ok=True)
        click.echo(f"{told:<14} {directory}/   ({what})")
    for fragment in sorted(resources.files("watchties.conf").iterdir(), key=lambda f: f.name):
        if fragment.name.endswith(".toml"):
            path = os.path.join(places.config, fragment.name)
            click.echo(f"{_copy(fragment, path):<14} {path}")
    click.echo("\nNow edit 10-hosts.toml and 20-trees.toml (as they stand, two directories of your home play the hosts), and 40-mail.toml.")
    click.echo("Then: watchties deploy HOST...     (with the configuration as it came: watchties deploy vision b01)")
    click.echo("      watchties check\n      watchties run")


def _copy(fragment, path):
    """Write a fragment where no file is; return what was done. Never group-writable, whatever the umask: check would refuse it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return "left alone"
    with os.fdopen(fd, "wb") as file:
        file.write(fragment.read_bytes())
    return "written"


@click.command()
@click.option("--here", is_flag=True, help="Look at this machine only; call no host.")
@json_option
@with_places
def check(places, here, as_json):
    """Look whether everything is as it must be: configuration, permissions, this machine, every host.

    A line that begins with WRONG says what to do about it. Exit code 1 if there is one.

    \b
    Example:  watchties check
              watchties check --here --json
    """
    from watchties import checks

    findings = checks.all_of(places, call_hosts=not here)
    if as_json:
        show_json([{"where": f.where, "ok": f.ok, "text": f.text, "remedy": f.remedy} for f in findings])
    else:
        for finding in findings:
            click.echo(finding.line())
    wrong = sum(finding.ok is False for finding in findings)
    if not as_json:
        click.echo(f"\n{plural(wrong, 'thing')} to put right." if wrong else "\nEverything is as it must be.")
    if wrong:
        raise SystemExit(FAILURE)


def _complete_hosts(ctx, param, incomplete):
    from watchties import configfiles
    from watchties.cli.common import places_of

    tables, _ = configfiles.read(places_of(ctx, ctx.params.get("config_dir"), ctx.params.get("state_dir")).config)
    return [table.name for table in tables if table.kind == "host" and table.name.startswith(incomplete)]


@click.command()
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=_complete_hosts)
@with_places
def deploy(places, hosts):
    """Put agent and relay on hosts, and make the directories there: scripts, bin, user_data.

    Only files that an earlier deploy put there are overwritten; the others are named, and stay.

    \b
    Example:  watchties deploy vision b01
    """
    from watchties.configfiles import suggestion

    config = places.load()
    if unknown := [host for host in hosts if host not in config.host]:
        there = f"there are {', '.join(sorted(config.host))}"
        raise UserError(f"no host is called {unknown[0]} in {places.config}; {suggestion(unknown[0], config.host, there)}")
    names = list(dict.fromkeys(hosts))
    directories = {host: [tree.path[host] for tree in config.tree.values() if host in tree.hosts()] for host in names}
    failed = False
    for host, done in zip(names, asyncio.run(_deploy_all(config, directories)), strict=True):
        if isinstance(done, WatchtiesError):
            click.echo(f"watchties: {done}", err=True)
            failed = True
            continue
        files = ", ".join(f"{name} ({how})" for name, how in done.files.items())
        click.echo(f"{host}: {done.root}/scripts: {files}; {done.agent} runs there")
    if failed:
        raise SystemExit(FAILURE)


async def _deploy_all(config, directories):
    """Return for each host what stands there now, or the WatchtiesError it met; all are served at the same time."""
    from watchties import deploy as work
    from watchties import ssh
    from watchties.config import plain

    async def one(host):
        try:
            return await work.deploy(ssh.from_config(plain(config), host), directories[host])
        except WatchtiesError as error:
            return error

    return await asyncio.gather(*map(one, directories))
