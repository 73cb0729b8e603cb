"""Who makes a call, and what its path is to watchties: the names of the points at which a process is killed.

Knows: how the daemon's descendants look in /proc; the names that the three trees, the record and the state directory have.
Must not know: how calls are seen (calls.py), what is done at a point.

A role is a program at its work: "daemon", "forkserver", "hook pull", "rsync pull", "agent publish, push", "wrapper", "relay vision".
The agent and the wrapper are a shell and the program that it has just started (mv, sync, mkdir, cat): both are killed
at once, the program before its call is done. The job's own command is no role of watchties: "command".
"""

import os
import re

from calls import command_line

RUN = re.compile(r"/runs/([a-z]+)-[0-9a-f]+-[0-9a-z]+$")

# what differs from job to job, and what it is called in a point
CHANGES = [
    (re.compile(r"/(runs/[a-z]+)-[0-9a-f]+-[0-9a-z]+(?=/|$)"), r"/\1"),
    (re.compile(r"/([0-9]+)\.[0-9a-f]{12}(?=/|$)"), "/ATTEMPT"),
    (re.compile(r"/(claim|intent)\.[^/]+$"), r"/\1.RUN"),
    (re.compile(r"/begun\.[^/]+$"), "/begun.WRAPPER"),
    (re.compile(r"/\.(?!watchties\.)(.+)\.[A-Za-z0-9]{6}$"), r"/.\1.XXXXXX"),  # rsync's
    (re.compile(r"(/\.watchties\.coming/[^/]+)/(.+)\.[A-Za-z0-9]{6}$"), r"\1/\2.XXXXXX"),
    (re.compile(r"/(\.?)[^/]+\.[0-9]+\.[0-9a-f]{12}\.eml"), r"/\1LETTER.eml"),
    (re.compile(r"/(\.?)notice-[0-9a-f]+"), r"/\1notice-N"),
    (re.compile(r"\.slow\.[0-9]+$"), ".slow.PID"),
    (re.compile(r"/listener-[^/]+$"), "/listener"),
    (re.compile(r"/notices/[^/.]+"), "/notices/N"),
]


def parents(pid):
    """Yield (pid, argv, cwd) of a process and its ancestors, up to what was not started by watchties."""
    while pid > 1:
        argv = command_line(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
            cwd = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return
        yield pid, argv, cwd
        pid = parent


def role_of(pid):
    """Return (role, the processes that are killed with this one: a shell of which it is a part, the outermost first)."""
    role, whole, below = "", [], []
    for number, argv, cwd in parents(pid):
        word = _word(argv, cwd)
        if word in ("command", "wrapper", "daemon", "forkserver") or word.startswith(("relay", "hook")):
            if word == "wrapper":
                below.append(number)
                whole = below
                role = word
                continue  # up to the outermost of its shells
            if role == "wrapper":
                break
            return _joined(role, word), whole[::-1]
        if role == "wrapper":
            break
        if word == "rsync" and not role:
            role = word
        elif word.startswith("agent") and role in ("", word):
            role, whole = word, [*below, number]
        below.append(number)
    return role or "orphan", [one for one in whole[::-1] if one != pid]


def _joined(role, owner):
    if not role:
        return owner
    return f"{role} {owner[5:]}" if role == "rsync" else f"{role}, {owner[5:]}"


def _word(argv, cwd):
    """Return what a process is by itself, or "" if only its parents tell."""
    words = " ".join(argv[:3])
    for at, word in enumerate(argv[:3]):
        if word.endswith("scripts/agent.sh"):
            return "wrapper" if argv[at + 1 : at + 2] == ("wrapper",) else f"agent {' '.join(argv[at + 1 : at + 2])}"
        if word.endswith("scripts/relay.py"):
            return f"relay {cwd.split('/')[-2] if cwd.endswith('/compties') else ''}"
    if found := RUN.search(cwd):
        if os.path.basename(argv[0] if argv else "") == "rsync":
            return "rsync"
        return f"hook {found[1]}"
    if os.path.basename(argv[0] if argv else "") == "rsync":
        return "rsync"
    if argv[-1:] == ("run",) and argv[-2].endswith("/watchties"):
        return "daemon"
    if "multiprocessing.forkserver" in " ".join(argv):
        return "forkserver"
    if "./command" in words:
        return "command"
    return ""


def kind_of(path, base):
    """Return what a path is, the same for each job: below `base`, without names of jobs, runs and attempts; "" if not there."""
    if not path.startswith(f"{base}/"):
        return ""
    kind = path[len(str(base)) :].removesuffix(" (deleted)")
    kind = re.sub(r"^(/(?:vision/compties|b01/compties|v11)/user_data)/([^/.][^/]*)/([^/]+)(?=/|$)", r"\1/JOB", kind)
    kind = re.sub(r"^(/(?:vision/compties|b01/compties|v11)/user_data)/([^/.][^/]*)$", r"\1/USER", kind)
    for pattern, name in CHANGES:
        kind = pattern.sub(name, kind)
    return kind[1:].replace("vision/compties/user_data", "web").replace("b01/compties/user_data", "compute").replace("v11/user_data", "mirror")
