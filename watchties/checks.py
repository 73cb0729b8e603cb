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
import sys
from dataclasses import dataclass

from watchties import hookfiles, letterforms
from watchties.errors import ConfigError

RSYNC_CAREFUL = (3, 2, 5)  # the receiver refuses what it has not asked for, or has excluded: NEWS of that version
RSYNC_NEEDED = (3, 1, 3)  # --modify-window=-1 compares nanoseconds from there on
WATCHES = "/proc/sys/fs/inotify/max_user_watches", "/proc/sys/user/max_inotify_watches"  # the machine's, and those of our namespace
SPARE = 1.5  # what is asked of max_user_watches, times the directories there are
FEW_FILES = 1000  # files that a mirror must still take: a small job of the usual kind leaves 800
SECRET = re.compile(r"(?i)(password|passwd|passphrase|secret|token|api_?key)\w*[\"']?\s*[=: ]\s*\S")


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
    found += [*secrets(places), *hooks(config, places), *this_machine(config, places), *mail(config, call_hosts)]
    return found + (asyncio.run(hosts(config)) if call_hosts else [])


def secrets(places):
    """Yield fragments that others may read, though a text in them looks like a secret: conf.d needs none, but `setup` may hold one."""
    from watchties import configfiles

    for table in configfiles.read(places.config)[0]:
        for key, value in table.data.items():
            texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
            if os.stat(table.file).st_mode & 0o044 and key != "password_file" and any(map(SECRET.search, texts)):
                text = f"{table.file}: {table.label} {key} seems to hold a secret, and others may read it"
                yield Finding("configuration", False, text, f"run: chmod 600 {shlex.quote(table.file)}")


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
    yield from here_rsync(_said("rsync", "--version"))
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


def here_rsync(said):
    """Yield whether this machine's rsync is new enough; and, if it is, whether it holds another host's half to what was asked for."""
    found = rsync("this machine", said)
    version = numbers(re.search(r"^rsync +version v?([\d.]+)", said))
    if found.ok and version < RSYNC_CAREFUL:
        text = f"{found.text} takes from a host also files that nobody asked for (CVE-2022-29154)"
        found = Finding(found.where, None, text, f"install {'.'.join(map(str, RSYNC_CAREFUL))} or newer, or a patched one")
    yield found


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
    free, status = shutil.disk_usage(path).free, os.statvfs(path)
    text = f"{root}{'' if path == root else ' (will be made)'}, {free >> 20} MB free"
    if free < floor:
        return Finding(f"tree {name}", False, f"{text}, less than disk_floor ({floor >> 20} MB)", "jobs would wait: make room")
    if status.f_files and status.f_favail < FEW_FILES:
        text = f"{root}: the inode table of its disk is full, room for {status.f_favail} more files"
        return Finding(f"tree {name}", False, text, "remove small files there (df -i)")
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
            network = backend_for(kind) == "polling"
            why = f"{tree.root} lies on a network file system ({kind}), where inotify misses what others write"
            remedy = "a mirror on a local disk is heard of at once" if network else ""
            yield Finding(f"tree {name}", None, f"{why if network else 'as `backend` says'}: it is polled", remedy)
        elif os.path.isdir(tree.root):
            jobs = [job for job, _ in MirrorWatch(tree.root, tree.jobs).scan()]
            needed += 1 + len(jobs) + len({os.path.dirname(job) for job in jobs})
    limit = min((int(text) for text in map(_content, WATCHES) if text.isdecimal()), default=0)
    text = f"{needed} directories to watch, inotify allows {limit} (fs.inotify.max_user_watches, user.max_inotify_watches)"
    good = needed * SPARE <= limit
    yield Finding("this machine", good, text, "" if good else raise_watches(needed, limit, "as root"))


def raise_watches(needed, limit, where):
    """Return what to do about a limit of inotify that is too low; with a namespace of our own, the other of the two counts."""
    wanted = max(2 * needed, 2 * limit)
    return f"run {where}: sysctl fs.inotify.max_user_watches={wanted} user.max_inotify_watches={wanted}, and put them into /etc/sysctl.d"


def _content(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def mail(config, call_server=True):
    """Yield where mail goes; nothing is sent. A server is asked whether it would take a mail from us to the administrator."""
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
        yield server(table) if call_server else Finding("mail", None, f"goes to {table.server}:{table.port} (not tried)")
    else:
        yield Finding("mail", None, "nobody gets any", "set folder, sendmail or server in [mail]")
    if table.templates:
        remedy = "put it right, or correct `templates` in [mail]"
        yield from (Finding("mail", False, problem, remedy) for problem in letterforms.problems(table.templates))
    if not table.admin:
        yield Finding("mail", None, "nobody hears of hosts that are down or jobs that were given up", "set admin in [mail]")


def server(table):
    """Return whether the mail server would take a mail: asked by a process of the hooks' half, as it would be in earnest."""
    argv, asked = [sys.executable, "-m", "watchties.mailprobe"], table.model_dump_json(by_alias=True)
    done = subprocess.run(argv, input=asked, capture_output=True, text=True)
    if done.returncode == 0:
        return Finding("mail", True, f"goes to {table.server}:{table.port}, which would take it")
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding("mail", False, said, "correct server, port, starttls, user, from or admin in [mail], or ask who runs it")


# ---- hosts ----


async def hosts(config):
    """Return what is found on all hosts, each in its order; see watchties/hostchecks.py."""
    from watchties import hostchecks

    return await hostchecks.hosts(config)
