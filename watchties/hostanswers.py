"""What a host's answers to `watchties check` mean: one line each, with a remedy.

Knows: what watchties needs far away, the lines of hostchecks.ASK.
Must not know: how a host is asked. Pure.
"""

import re

from watchties import deploy
from watchties.checks import FEW_FILES, SPARE, Finding, numbers, raise_watches, rsync
from watchties.model import printable
from watchties.mounts import backend_for

PYTHON_NEEDED = (3, 6)
MIN_FREE, FULL = 1 << 30, 10 << 20  # bytes on a host: less is worth a word, and as good as full


def loud(where, out):
    """Yield what is wrong with a login that printed something before it was spoken to."""
    if out:
        text = ascii(out.decode("utf-8", "replace").strip()[:60])
        remedy = "make its .bashrc (or what else its shell reads) silent: first line [[ $- == *i* ]] || return"
        yield Finding(where, False, f"its login prints {text} before a command's own output, so that rsync fails", remedy)


def judged(where, name, host, answers):
    """Yield Findings from a host's answers, each a word and texts."""
    said, deploy_it = {word: text for word, text, *_ in answers}, f"run: watchties deploy {name}"
    all_said = lambda wanted: [text for word, text, *_ in answers if word == wanted]  # noqa: E731
    if said.get("agent") == deploy.version():
        yield Finding(where, True, f"answers, {said['agent']}")
    else:
        yield Finding(where, False, f"its agent is not ours ({said.get('agent') or 'none'}, not {deploy.version()})", deploy_it)
    if missing := all_said("missing"):
        yield Finding(where, False, f"{', '.join(missing)} not there", deploy_it)
    for word, *rest in answers:
        if word in DIRECTORY:
            yield from DIRECTORY[word](where, host, *rest)
    if held := all_said("held"):
        yield Finding(where, False, f"{ascii(held[0])[1:-1]} cannot be written to by the login", "chown it there, or set become in [host]")
    yield rsync(where, said.get("rsync", ""))
    if host.trigger == "relay":
        yield from relay(where, said, deploy_it)
    if host.role == "web" and "GNU" not in said.get("find", ""):
        yield Finding(where, False, "its find is not GNU find", "install findutils there")
    if lacking := all_said("lacking"):
        yield Finding(where, False, f"{', '.join(lacking)} not there", "install util-linux there")
    yield from queue(where, name, host, said, all_said("queue"))


def queue(where, name, host, said, lacking):
    """Yield what is wrong with a scheduler's commands, or with the setup that should make them known."""
    correct = f"correct `setup` in [host.{name}]"
    if "setup" in said:
        yield Finding(where, False, f"its setup ends the shell that reads it ({printable(said['setup']) or 'without a word'})", correct)
    elif lacking and host.setup:
        yield Finding(where, False, f"{', '.join(lacking)} not found, also after its setup", f"{correct}, or `scheduler` there")
    elif lacking:
        remedy = f"set `setup` in [host.{name}], shell text that puts them on the PATH; or correct `scheduler` there"
        yield Finding(where, False, f"{', '.join(lacking)} not found", remedy)


def closed(where, host, directory, why=""):
    """Yield why nothing can be written to a data directory; a full one is told by `free` and `files`."""
    if "Read-only" in why:
        yield Finding(where, False, f"{directory} is mounted read-only", "have its disk looked at, and mounted for writing again")
    elif "No space" not in why and "quota" not in why:
        yield Finding(where, False, f"{directory} cannot be written to by the login", "chown it there, or set become in [host]")


def free(where, host, text, directory):
    """Yield how much room a data directory has."""
    size = number(text) << 10
    good = size >= MIN_FREE or (None if size >= FULL else False)
    text = f"{directory}: {'its disk is full, ' if good is False else ''}{size >> 20} MB free"
    yield Finding(where, good, text, "" if good else "make room there")


def files(where, host, text, directory):
    """Yield whether the file system of a data directory takes more files; "" is one without such a limit, or a df that cannot tell."""
    if text.isdecimal() and int(text) < FEW_FILES:
        yield Finding(where, False, f"{directory}: its inode table is full, room for {text} more files", "remove small files there (df -i)")


def owner(where, host, name, directory):
    """Yield what it means that root works in a data directory of another user's, who can lay links there for root to follow."""
    if name not in ("root", "UNKNOWN", ""):
        text = f"watchties works as root in {directory}, which belongs to {printable(name)}: who lays links there leads root out of it"
        yield Finding(where, False, text, f'set become = "{printable(name)}" in [host]')


def kind(where, host, text, directory):
    """Yield what a network file system means for a data directory."""
    if text and backend_for(text) == "polling" and host.role == "web" and host.trigger == "relay":
        what = f"{directory} lies on a network file system ({text}), where the relay hears only of what its own machine writes"
        yield Finding(where, False, what, 'set trigger = "poll" in [host], or put it on a local disk')
    elif text and backend_for(text) == "polling":
        yield Finding(where, None, f"{directory} lies on a network file system ({text}); what appears there is asked for, not heard of")


DIRECTORY = {"owner": owner, "closed": closed, "free": free, "files": files, "kind": kind}


def number(text):
    return int(text) if text and text.isdecimal() else 0


def relay(where, said, deploy_it):
    """Yield whether the relay can run on a host, and watch all there is."""
    ours = re.search(rb"^VERSION = (\d+)", deploy.source("relay.py"), re.M)[1].decode()
    version = numbers(re.match(r"([\d.]+)", said.get("python", "")))
    if said.get("relay") != ours:
        yield Finding(where, False, f"its relay is not ours (version {said.get('relay') or 'none'}, not {ours})", deploy_it)
    if version < PYTHON_NEEDED:
        text = f"python3 {said['python']} is too old for the relay" if version else "python3 is not there, which the relay needs"
        yield Finding(where, False, text, 'install python3 3.6 or newer there, or set trigger = "poll"')
    needed, limit = number(said.get("directories")), number(said.get("watches"))
    text = f"{needed} directories to watch, inotify allows {limit} (fs.inotify.max_user_watches, user.max_inotify_watches)"
    if "watches" in said and needed * SPARE > limit:
        yield Finding(where, False, text, raise_watches(needed, limit, "there as root"))
    elif "watches" in said:
        yield Finding(where, True, text)
    if "instances" in said and number(said["instances"]) < 8:
        text = f"fs.inotify.max_user_instances is {number(said['instances'])}"
        yield Finding(where, False, text, "run there as root: sysctl fs.inotify.max_user_instances=128")
