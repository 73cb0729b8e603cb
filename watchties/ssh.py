"""Argument vectors and sentinel framing for commands on any host. Pure; shared by both halves.

Knows: how ssh(1), runuser(1) and sudo(8) are called, and how an answer is told from a banner.
Must not know: how a process is started (the daemon and the hooks each do that in their way).

A host without `ssh` is this machine: the same command text is given to `sh -c` instead of to ssh. Everything a
far command says stands between two lines with a nonce, the exit code in the last one. So a banner, a .bashrc
that prints, or ssh's own 255 is never taken for an answer (ert #8774, aiida #6278).
"""

import posixpath
import re
import secrets
import shlex
from dataclasses import dataclass

from watchties.errors import NotLetIn, Unreachable
from watchties.model import printable

NO_ROOT = 69  # EX_UNAVAILABLE: the host answers but its compties directory cannot be entered


# The last words of ssh(1) where a host is there, and it or we want nothing to do with each other.
KEPT_OUT = re.compile(r"Permission denied \(|Host key verification failed|Too many authentication failures")

# ServerAliveInterval in seconds and CountMax: no slow link is declared dead while bytes move.
ALIVE = {"short": (15, 4), "bulk": (30, 4)}
ALIVE_OWN = (15, 4)  # sooner than bulk: the daemon does not know of it, and ends it not when it sees that the host is cut off
OWN = "own"  # no shared connection: what is large travels on one of its own, or all that goes beside it would wait for it
LAST_WORDS = 500  # characters that are told of them
CONNECT = 20  # seconds for a new connection

# Runs "$@" as the user $u, in that user's home as HOME: by runuser if we are root, by sudo if not, as we are if it is us.
BECOME = (
    '[ "$(id -un)" = "$u" ] && exec "$@"; '
    "set -- sh -c 'eval HOME=~$(id -un); export HOME; exec \"$@\"' become \"$@\"; "
    '[ "$(id -u)" = 0 ] && exec runuser -u "$u" -- "$@"; exec sudo -n -u "$u" -- "$@"'
)


@dataclass(frozen=True)
class Far:
    """What it takes to run a command on a host.

    ssh: what ssh(1) takes, "" for this machine; root: its compties directory; options: words for ssh; control: where the
    daemon's shared connections to it are, without what tells the two apart, "" for none.
    """

    name: str
    ssh: str = ""
    root: str = "compties"
    become: str = ""
    options: tuple = ()
    control: str = ""


def from_config(config, name):
    """Return the Far of a host, from a plain configuration (a dict); raise KeyError if there is no such host.

    What runs here as ourselves needs no home of its own: its root is made absolute.
    """
    host = config["host"][name]
    root, here = host.get("root") or "compties", not host.get("ssh") and not host.get("become")
    words = [word for line in host.get("ssh_options") or () for word in option_words(line)]
    control = posixpath.join(config["control"], name) if config.get("control") and host.get("ssh") else ""
    root = posixpath.join(config["home"], root) if here else root
    return Far(name, host.get("ssh") or "", root, host.get("become") or "", tuple(words), control)


def option_words(line):
    """Return ssh's words for one of the host's `ssh_options`: "Port=22" as it stands in ssh_config, or "-p 22"."""
    return shlex.split(line) if line.startswith("-") else ["-o", line]


def login(far, kind="short"):
    """Return the words that reach a host; what follows them is joined and read by a shell there.

    kind: short or bulk, the shared connection that is used if the daemon holds it; it is never made here; or OWN. The
    host's own options come first, as ssh takes the first value it finds.
    """
    path = "none" if kind == OWN else control_path(far, kind)
    shared = ["-o", "ControlMaster=no", "-o", f"ControlPath={path}"] if far.control else []
    return ["ssh", "-T", *far.options, *shared, *_words(kind), "--", far.ssh]


def master(far, kind):
    """Return the argument vector of a shared connection: it lives as long as this process."""
    shared = ["-M", "-N", "-o", f"ControlPath={control_path(far, kind)}", "-o", "ControlPersist=no"]
    return ["ssh", "-T", *shared, *far.options, *_words(kind), "--", far.ssh]


def end_master(far, kind):
    """Return the argument vector that ends a shared connection, whoever has opened it."""
    return ["ssh", "-O", "exit", "-o", f"ControlPath={control_path(far, kind)}", *far.options, "--", far.ssh]


def control_path(far, kind):
    """Return the socket of a shared connection. In ControlPath % begins a token, so it is doubled."""
    return f"{far.control}.{kind}".replace("%", "%%")


def _words(kind):
    interval, count = ALIVE_OWN if kind == OWN else ALIVE[kind]
    settings = "BatchMode=yes", f"ConnectTimeout={CONNECT}", f"ServerAliveInterval={interval}", f"ServerAliveCountMax={count}"
    return [word for setting in settings for word in ("-o", setting)]


def argv(far, text, kind="short"):
    """Return the argument vector that runs the shell text `text` in the home of the user who works on a host; kind: as in `login`."""
    words = become(far) + ["sh", "-c", "cd 2>/dev/null; " + text]
    return [*login(far, kind), shlex.join(words)] if far.ssh else words


def become(far):
    """Return the words before a command that make it run as the host's `become` user, or none."""
    return ["sh", "-c", f"u={shlex.quote(far.become)}; {BECOME}", "become"] if far.become else []


def new_nonce():
    """Return a word that no banner holds."""
    return secrets.token_hex(8)


def frame(nonce, root, command):
    """Return shell text that runs `command` in the directory `root`, between sentinel lines with its exit code."""
    return (
        f"printf '\\n=%s begin\\n' {nonce}; "
        f"(cd -- {shlex.quote(root)} || exit {NO_ROOT}; {command}); "
        f"printf '\\n=%s end %d\\n' {nonce} $?"
    )


def unframe(nonce, host, out, err=""):
    """Return (payload, exit code) of a framed command; raise Unreachable if the answer is not whole.

    `out` and `err` are what the command wrote, as text.
    """
    begin, end = f"\n={nonce} begin\n", f"\n={nonce} end "  # no pattern: each would be compiled, and kept
    began, ended = out.find(begin) + len(begin), out.rfind(end)
    code, whole, _ = out[ended + len(end) :].partition("\n")
    said = printable((err.strip().splitlines() or ["no answer"])[-1], LAST_WORDS)  # of a stranger, for logs and terminals
    if not (len(begin) <= began <= ended and whole and code.isdecimal()):
        raise (NotLetIn if KEPT_OUT.search(said) else Unreachable)(f"host {host} did not answer: {said}")
    if int(code) == NO_ROOT:
        raise Unreachable(f"host {host} is there, but its compties directory is not: {said}")
    return out[began:ended], int(code)
