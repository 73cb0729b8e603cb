"""run-hook: one hook by hand, for one job, in the environment that it has in earnest.

Knows: what a hook is told, where a run by hand keeps its files: apart from the daemon's, which would take it for one of its own.
Must not know: what any hook does, what its results mean.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess

import click

from watchties.cli.common import with_places
from watchties.cli.names import JOB, Names
from watchties.errors import UserError
from watchties.model import FINAL, PENDING

FOLDER = "by-hand"
TOLD_NOTHING = "(nothing: its exit code counts)"


def _complete_rules(ctx, param, incomplete):
    from watchties import configfiles
    from watchties.cli.common import places_of

    tables, _ = configfiles.read(places_of(ctx, ctx.params.get("config_dir"), ctx.params.get("state_dir")).config)
    return [table.name for table in tables if table.kind == "rule" and table.name.startswith(incomplete)]


@click.command("run-hook")
@click.argument("rule", shell_complete=_complete_rules)
@click.argument("job", type=JOB)
@click.option("--host", metavar="HOST", help="Let it work with this host.  [the one that the daemon would choose]")
@with_places
def run_hook(places, rule, job, host):
    """Run the hook of a RULE by hand for one JOB, in the environment that it has in earnest, and show what it says.

    Nothing of it is recorded: no marker is published, and the daemon hears nothing of it. The exit code is the hook's.

    \b
    Example:  watchties run-hook pull ann/Exp_1
              watchties run-hook push 'bob/Exp 2' --host vision
    """
    from watchties import hookfiles, onlook

    config = places.load()
    rule = config.find_rule(rule)
    if host and host not in config.host:
        raise UserError(f"no host is called {host}; there are {', '.join(sorted(config.host))}")
    hook = hookfiles.find_all([rule.hook], [rule.name], places.hooks)[rule.name]
    job_id, _ = Names.at(places).find_on_disk(job)
    at_work = onlook.runs_at_work(places.state, job_id)
    seen = onlook.see(config, job_id, at_work)
    refuse_harm(rule, seen, at_work)
    if places.at_work()[0]:
        click.echo("watchties: a daemon is at work: a run of its own may begin for this job meanwhile", err=True)
    raise SystemExit(carry_out(config, places, rule, hook, start_of(config, rule, seen, host), seen))


def refuse_harm(rule, seen, at_work):
    """Raise UserError where a run by hand would break what the daemon relies on."""
    from watchties.fire import touches

    record = seen.record
    if rule.name == "notice":
        raise UserError("notice is for no job: the daemon starts it by itself")
    if not record.attempt and rule.name != "pull":
        raise UserError(f"nothing was ever asked for of {seen.id}: touch PENDING in its directory first")
    if rule.name in ("push", "mail") and record.phase not in FINAL:
        raise UserError(f"{seen.id} is {record.phase}: {rule.name} is for jobs that have ended")
    if touches(rule) & seen.busy:
        runs = ", ".join(run.run for run in at_work)
        raise UserError(f"a run is at work for {seen.id} ({runs}); one at a time: try again when it has ended")
    if rule.name == "submit" and record.phase == PENDING and not record.contacted:
        raise UserError(f"{seen.id} has not been given to a host yet; that must be recorded first: let the daemon begin it")


def start_of(config, rule, seen, host):
    """Return the Start that the daemon would begin, or one like it where none is due now."""
    from watchties import decide, fire, onlook
    from watchties.seen import Start

    world = onlook.world(config, seen.id.tree)
    due = [start for start in decide.decide(seen, world).starts if start.rule == rule.name]
    if due and host in (None, due[0].host):
        return due[0]
    record, tree = seen.record, world.tree
    usual = dict.fromkeys(("pull", "report", "push"), tree.web) | dict.fromkeys(("submit", "poll", "fetch", "cancel"), record.host)
    chosen = host if host is not None else usual.get(rule.name, fire.host_of(rule, seen, world))
    if not chosen and rule.name in usual:
        raise UserError(f"{seen.id} is on no host yet; say which: --host {tree.compute[0]}")
    return Start(rule.name, chosen, "by hand", record.token, record.phase)


def carry_out(config, places, rule, hook, start, seen):
    """Run the hook in the foreground; show its results; return its exit code."""
    from watchties import config as configuration
    from watchties import masters, roots, runs
    from watchties.runner import Runner

    folder = os.path.join(places.state, FOLDER, str(os.getpid()))
    sweep(os.path.dirname(folder))
    dirs = runs.RunDirs(folder)
    try:
        plain = configuration.plain(config)
        plain["control"] = masters.directory(places.state, plain["host"])
        plain["trees"] = os.path.join(places.state, roots.FOLDER)
        runner = Runner(dirs, runs.write_config(plain, folder))
        run_id = dirs.new_id(rule.name)
        run = dirs.prepare(run_id, rule.name, start.host, "by-hand", [told(config, seen, start, run_id)], rule.timeout, hook)
        code = in_foreground(run, runner.environment(run))
        outcome = runs.read_results(run.path("result"), run.jobs).get(seen.id)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(f"\nhook: {hook}\nhost: {start.host or 'none: this machine'}\nexit code: {code}")
    click.echo("it told: " + (": ".join(filter(None, (outcome.outcome, outcome.reason))) if outcome else TOLD_NOTHING))
    for key, value in outcome.fields.items() if outcome else ():
        click.echo(f"  {key}={value}")
    return code


def sweep(folders):
    """Remove what runs by hand that were killed have left, but for one whose hook goes on: that still writes there."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folders):
            if not os.path.exists(f"/proc/{name}") and not is_held(os.path.join(folders, name, "locks")):
                shutil.rmtree(os.path.join(folders, name), ignore_errors=True)


def is_held(locks):
    """Return whether a hook holds one of the locks in a directory."""
    for entry in os.scandir(locks) if os.path.isdir(locks) else ():
        with open(entry.path) as lock, contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            continue
        return True
    return False


def told(config, seen, start, run_id):
    """Return what the hook is told of the job, just as the daemon does it."""
    from watchties.dispatch import Dispatch
    from watchties.jobs import Job

    where = os.path.join(config.tree[seen.id.tree].root, seen.id.job)
    line = Dispatch(config, None, None, None, {}, None, None).line(Job(seen.id, where, seen.record), start, run_id)
    return line | {"host": line["host"] or start.host}


def in_foreground(run, environment):
    """Return the exit code of a hook, its output on the terminal; Ctrl-C asks it to stop, as the daemon would."""
    with open(run.lock, "w") as lock:
        number = lock.fileno()
        fcntl.flock(number, fcntl.LOCK_EX)
        environment = environment | {"WATCHTIES_LOCK_FD": str(number)}
        process = subprocess.Popen(
            [run.hook], stdin=subprocess.DEVNULL, env=environment, cwd=run.dir, pass_fds=[number], start_new_session=True
        )
        while True:
            try:
                code = process.wait()
                return 128 - code if code < 0 else code
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGTERM)
