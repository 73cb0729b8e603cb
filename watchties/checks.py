"""What `watchties check` finds: configuration, hooks, this machine. Each finding is one line with a remedy.

Knows: what watchties needs here, and how each can be looked at without changing anything. (On other hosts: hostchecks.py.)
Must not know: the command line; how a wrong thing is put right by itself.
"""

import asyncio
import os
import re
import shutil
import shlex
import subprocess
from dataclasses import dataclass

from watchties import hookfiles, letterforms
from watchties.errors import ConfigError

RSYNC_NEEDED = (3, 1, 3)  # --modify-window=-1 compares nanoseconds from there on
WATCHES = "/proc/sys/fs/inotify/max_user_watches"
SPARE = 1.5  # what is asked of max_user_watches, times the directories there are

@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ok: True, False, or None for what is merely worth knowing."""

    where: str
    ok: bool | None
    text: str
    remedy: str = ""

    def line(self):
        word = {True: "ok    ", False: "WRONG ", None: "note  "}[self.ok]
        return f"{word} {self.where}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def all_of(places, call_hosts=True):
    """Return every Finding there is; with a configuration that is wrong, its errors are all that can be found."""
    try:
        config = places.load()
    except ConfigError as error:
        return [Finding("configuration", False, problem) for problem in error.problems]
    text = f"{places.config}: hosts {', '.join(config.host)}; trees {', '.join(config.tree)}; {len(config.rule)} rules"
    found = [Finding("configuration", True, text)]
    found += [Finding("configuration", None, warning) for warning in config.warnings]
    found += [*hooks(config, places), *this_machine(config, places), *mail(config)]
    return found + (asyncio.run(hosts(config)) if call_hosts else [])


def hooks(config, places):
    """Yield whether every rule has its hook, and nobody else may change it."""
    try:
        found = hookfiles.find_all([rule.hook for rule in config.rule], [rule.name for rule in config.rule], places.hooks)
        own = [path for path in found.values() if path.startswith(places.hooks + "/")]
        yield Finding("hooks", True, f"{len(found)} found, {len(own)} of them your own")
    except ConfigError as error:
        yield from (Finding("hooks", False, problem) for problem in error.problems)


# ---- this machine ----


def this_machine(config, places):
    """Yield what is so here: rsync, the daemon, room, watches."""
    yield rsync("this machine", _said("rsync", "--version"))
    pid = places.daemon()
    yield Finding("daemon", True, f"at work, pid {pid}") if pid else Finding("daemon", None, "not at work", "start it: watchties run")
    for name, tree in config.tree.items():
        yield room(name, tree.root, config.daemon.disk_floor)
    yield from watches(config)


def _said(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    except OSError:
        return ""


def rsync(where, said):
    """Return whether what `rsync --version` said is new enough; "" is no rsync at all."""
    version = numbers(re.search(r"^rsync +version v?([\d.]+)", said))
    wanted = ".".join(map(str, RSYNC_NEEDED))
    if not version:
        return Finding(where, False, "no rsync is there", f"install rsync {wanted} or newer")
    told = f"rsync {'.'.join(map(str, version))}"
    if version < RSYNC_NEEDED:
        return Finding(where, False, f"{told} is too old", f"install {wanted} or newer")
    return Finding(where, True, told)


def numbers(match):
    """Return a version as a tuple of numbers, () for no match."""
    return tuple(int(part) for part in match[1].split(".") if part) if match else ()


def room(name, root, floor):
    """Return whether there is room at a mirror; one that is not there yet is made by the daemon."""
    path = root
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(f"tree {name}", False, f"{path} cannot be written to", f"run: chown {shlex.quote(_us())} {shlex.quote(path)}")
    free = shutil.disk_usage(path).free
    text = f"{root}{'' if path == root else ' (will be made)'}, {free >> 20} MB free"
    if free < floor:
        return Finding(f"tree {name}", False, f"{text}, less than disk_floor ({floor >> 20} MB)", "jobs would wait: make room")
    return Finding(f"tree {name}", True, text)


def _us():
    import getpass

    return getpass.getuser()


def watches(config):
    """Yield whether the kernel allows as many watches as the mirrors have directories."""
    from watchties.mounts import backend_for, file_system
    from watchties.watch import MirrorWatch

    needed = 0
    for name, tree in config.tree.items():
        kind = file_system(tree.root)
        if tree.backend == "polling" or (tree.backend == "auto" and backend_for(kind) == "polling"):
            yield Finding(f"tree {name}", None, f"changes are polled for ({kind or 'unknown'} file system)")
        elif os.path.isdir(tree.root):
            jobs = [job for job, _ in MirrorWatch(tree.root, tree.jobs).scan()]
            needed += 1 + len(jobs) + len({os.path.dirname(job) for job in jobs})
    with open(WATCHES) as file:
        limit = int(file.read())
    text = f"{needed} directories to watch, fs.inotify.max_user_watches is {limit}"
    if needed * SPARE > limit:
        wanted = max(2 * needed, 2 * limit)
        remedy = f"run as root: sysctl fs.inotify.max_user_watches={wanted} (and put it into /etc/sysctl.d)"
        yield Finding("this machine", False, text, remedy)
    else:
        yield Finding("this machine", True, text)


def mail(config):
    """Yield where mail goes; nothing is sent, no server is called."""
    table = config.mail
    if table.folder:
        head = table.folder
        while not os.path.isdir(head) and head != "/":
            head = os.path.dirname(head)
        good = os.access(head, os.W_OK | os.X_OK)
        remedy = "" if good else f"run: chown {shlex.quote(_us())} {shlex.quote(head)}"
        yield Finding("mail", good, f"goes to files in {table.folder}" + ("" if good else f", but {head} cannot be written to"), remedy)
    elif table.sendmail:
        program = (shlex.split(table.sendmail) or [""])[0]
        if shutil.which(program):
            yield Finding("mail", True, f"goes to {table.sendmail}")
        else:
            yield Finding("mail", False, f"goes to {table.sendmail}, which is not there", "install it, or name another")
    elif table.server:
        yield Finding("mail", None, f"goes to {table.server}:{table.port} (not tried)")
    else:
        yield Finding("mail", None, "nobody gets any", "set folder, sendmail or server in [mail]")
    if table.templates:
        yield from (Finding("mail", False, problem, "put it right") for problem in letterforms.problems(table.templates))
    if not table.admin:
        yield Finding("mail", None, "nobody hears of hosts that are down or jobs that were given up", "set admin in [mail]")


# ---- hosts ----


async def hosts(config):
    """Return what is found on all hosts, each in its order; see watchties/hostchecks.py."""
    from watchties import hostchecks

    return await hostchecks.hosts(config)
