"""What `watchties check` finds on the hosts: all are asked at the same time, each call ends in time. One line each, with a remedy.

Knows: how a host is asked, what ssh's last words mean.
Must not know: what its answers mean (hostanswers.py); the command line; what is needed on this machine (checks.py).

Three calls a host: GREET, before which nothing may come out, as a login that prints there breaks rsync (rsync(1),
DIAGNOSTICS); ASK; and a look for the marks that ASK has left in the data directories of all hosts, which are then removed.
"""

import asyncio
import dataclasses
import os
import re
import shlex
import time

from watchties import calls, children, schedulers, ssh
from watchties.checks import Finding
from watchties.errors import WatchtiesError
from watchties.hostanswers import judged, loud, number
from watchties.keys import no_key
from watchties.model import depth

TIMEOUT = 30.0  # seconds for one call; ssh itself gives up a connection after ssh.CONNECT
MARK = ".watchties.check."
MOST_NOISE = 1 << 20  # bytes before it is no greeting any more

# Asked for the time only when it has been heard: so what a new connection takes is no part of what is measured.
GREET = "echo {nonce}; read -r go; date +%s.%N"

# NAME TAB ANSWER. $1 our mark's name; then DEPTH DIRECTORY pairs, the word --, directories of ours, --, commands, --, the setup,
# and the scheduler's commands, which are looked for as the agent finds them: after the setup, which may end its shell.
ASK = r"""t=$(printf '\t'); mark=$1; shift
echo "agent$t$(sh scripts/agent.sh version 2>&1 | tail -n 1)"
echo "relay$t$(sed -n 's/^VERSION = //p' scripts/relay.py 2>/dev/null)"
echo "rsync$t$(rsync --version 2>/dev/null | sed -n 1p)"
echo "python$t$(python3 -c 'import sys; print(sys.version.split()[0])' 2>/dev/null)"
echo "find$t$(find --version 2>/dev/null | sed -n 1p)"
left() { df "$1" -- "$2" 2>/dev/null | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*%.*/\1/p'; }
least() { cat "/proc/sys/fs/inotify/max_user_$1" "/proc/sys/user/max_inotify_$1" 2>/dev/null | sort -n | sed -n 1p; }
for n in watches instances; do echo "$n$t$(least "$n")"; done
directories=0
while [ "$1" != -- ]; do
    if [ ! -d "$2" ]; then echo "missing$t$2"; shift 2; continue; fi
    [ "$(id -u)" != 0 ] || echo "owner$t$(stat -c %U -- "$2")$t$2"
    echo "free$t$(left -Pk "$2")$t$2"
    echo "files$t$(left -Pi "$2")$t$2"
    echo "kind$t$(df -PT -- "$2" 2>/dev/null | sed -n '2s/^[^ ]*  *\([^ ]*\) .*/\1/p')$t$2"
    if ! said=$( (: >"$2/$mark") 2>&1); then echo "closed$t$2$t$said"
    else
        find "$2" -maxdepth 1 -name '.watchties.check.*' -mmin +60 -exec rm -f {} + 2>/dev/null
        held=$(find "$2" -maxdepth $(($1 + 1)) ! -type l ! -writable -print 2>/dev/null | sed -n '1p')
        [ -z "$held" ] || echo "held$t$held"
        directories=$((directories + $(find "$2" -maxdepth "$1" -type d 2>/dev/null | wc -l)))
    fi
    shift 2
done; shift
echo "directories$t$directories"
while [ "$1" != -- ]; do [ -d "$1" ] || echo "missing$t$1"; shift; done; shift
lacking() { w=$1; shift; for c; do command -v "$c" >/dev/null 2>&1 || echo "$w$t$c"; done; }
while [ "$1" != -- ]; do lacking lacking "$1"; shift; done; shift
setup=$1; shift
read_setup() { eval "$setup" </dev/null; }
found=$( (read_setup >/dev/null 2>&1; echo ready; t=$(printf '\t'); lacking queue "$@") )
if [ -n "$found" ]; then printf '%s\n' "$found" | sed 1d
else echo "setup$t$( (read_setup 2>&1 >/dev/null) | tail -n 1)"; fi"""

# $1 the beginning of our marks, then directories: PLACE-OF-THE-DIRECTORY TAB MARK for each that is seen there.
SEEN = r"""b=$1; shift; n=0
for d; do for f in "$d/$b"*; do [ -f "$f" ] && printf '%s\t%s\n' "$n" "${f##*/}"; done; n=$((n + 1)); done; :"""

REMEDIES = (  # what ssh says last, what to do about it
    ("Host key verification failed", "unknown or changed: is it the right host? Then: ssh-keygen -R {host}, and log in once: {ssh}"),
    ("Permission denied", "put our key there: ssh-copy-id {host}"),
    ("by the gate", "its key may not be checked (contrib/ssh); look at that host with a login of your own"),
    ("Could not resolve", "correct `ssh` in [host.{name}], or the name service"),
)

NO_USER = re.compile("unknown user|does not exist", re.IGNORECASE)  # sudo(8), runuser(1)


@dataclasses.dataclass(frozen=True)
class Host:
    """One host that is looked at. data: tree -> (directory, pattern); mark: the name of the file that is put there for a moment."""

    far: ssh.Far
    config: object
    data: dict
    mark: str

    @property
    def where(self):
        return f"host {self.far.name}"


async def hosts(config):
    """Return what is found on all hosts, in their order; no call lasts longer than TIMEOUT."""
    from watchties.config import plain

    as_dict, nonce = plain(config), ssh.new_nonce()
    begin, asked = f"{MARK}{nonce}.", []
    for index, (name, host) in enumerate(config.host.items()):
        data = {tree.name: (tree.path[name], tree.jobs) for tree in config.tree.values() if name in tree.hosts()}
        asked.append(Host(ssh.from_config(as_dict, name), host, data, f"{begin}{index}"))
    try:
        found = await asyncio.gather(*(one_host(host) for host in asked))
        answering = [host for host, (answers, _) in zip(asked, found, strict=True) if answers]
        shared = [list(seen_here(config, asked)), *await asyncio.gather(*(seen_on(host, begin, asked) for host in answering))]
    finally:
        await asyncio.gather(*(tidy(host) for host in asked), return_exceptions=True)
    findings = [finding for _, findings in found for finding in findings]
    return findings + list(dict.fromkeys(finding for findings in shared for finding in findings))


async def one_host(host):
    """Return (whether it answers, Findings)."""
    words = ["sh", "-c", ASK, "check", host.mark, *(w for path, jobs in host.data.values() for w in (str(depth(jobs)), path))]
    words += ["--", "scripts", "bin", "--", "flock", *(["setsid"] if host.config.scheduler == "shell" else [])]
    words += ["--", host.config.setup or "", *(schedulers.get(host.config.scheduler).COMMANDS if host.config.scheduler else ())]
    greeting, answer = await asyncio.gather(greet(host.far), _call(host.far, shlex.join(words)))
    if isinstance(answer, WatchtiesError):
        return False, [await unreachable(host, answer)]
    answers = [line.split("\t") for line in answer.split("\n") if "\t" in line]  # a setup may leave a trap that says something
    return True, [*loud(host.where, greeting.noise), *judged(host.where, host.far.name, host.config, answers), *clock(host.where, greeting)]


async def _call(far, command):
    """Return what a command in a host's root printed, or the error."""
    try:
        return (await calls.call(far, command, timeout=TIMEOUT))[0]
    except WatchtiesError as error:
        return error


@dataclasses.dataclass(frozen=True)
class Greeting:
    """What a bare login said: what it printed before we were greeted; its clock minus ours, and the most that is wrong by, in seconds."""

    there: bool = False
    noise: bytes = b""
    ahead: float | None = None
    within: float = 0.0


async def greet(far):
    """Run GREET as rsync runs its far side; return a Greeting."""
    null, pipe, nonce = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE, ssh.new_nonce()
    argv = ssh.argv(far, GREET.format(nonce=nonce))
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=null)
    try:
        async with asyncio.timeout(TIMEOUT):
            noise, before = await _heard(process.stdout, nonce.encode()), time.time()
            if noise is None:
                return Greeting()
            out, _ = await process.communicate(b"\n")
            return measured(noise, out, before, time.time())
    except TimeoutError:
        return Greeting()
    finally:
        await children.end(process)


async def _heard(stream, nonce):
    """Return what came before the line that ends with the nonce, None if it does not come."""
    noise = b""
    while len(noise) < MOST_NOISE and (line := await _line(stream)):
        if line.rstrip(b"\n").endswith(nonce):
            return noise + line.rstrip(b"\n").removesuffix(nonce)
        noise += line
    return None


async def _line(stream):
    try:
        return await stream.readline()
    except ValueError:  # longer than the stream's limit: that is no login's greeting
        return b""


def measured(noise, out, before, after):
    """Return the Greeting for a time that was told between two moments of ours; where date knows no nanoseconds, it is a second wide."""
    seconds, _, fraction = out.decode("ascii", "replace").strip().partition(".")
    if not seconds.isdecimal():
        return Greeting(True, noise)
    exact = fraction.isdecimal()
    there, half = (float(f"{seconds}.{fraction}"), 0.0) if exact else (int(seconds) + 0.5, 0.5)
    return Greeting(True, noise, there - (before + after) / 2, (after - before) / 2 + half)


def clock(where, greeting):
    """Yield what is wrong with a host's clock; no two clocks are ever compared by us, but people compare times."""
    if greeting.ahead is not None and abs(greeting.ahead) - greeting.within > 1:
        way = "ahead of" if greeting.ahead > 0 else "behind"
        text = f"its clock is {abs(greeting.ahead):.0f} s {way} this machine's"
        yield Finding(where, False, text, "have both kept right: systemd-timesyncd or chrony, there and here")


async def unreachable(host, error):
    """Return the Finding on a host that gave no answer: become is refused, or ssh's last words and what to do about them."""
    far, said = host.far, str(error).removeprefix(f"{host.where} ")
    if far.become and "compties directory" not in said and (await greet(dataclasses.replace(far, become=""))).there:
        if NO_USER.search(said):
            return Finding(host.where, False, f"answers, but has no user {far.become}", f"correct `become` in [host.{far.name}]")
        user = far.ssh.rpartition("@")[0] or "LOGIN"
        remedy = f"put into its sudoers: {user} ALL=({far.become}) NOPASSWD: ALL, or log in as root or {far.become}"
        return Finding(host.where, False, f"answers, but its login may not become {far.become}: {said.rpartition(': ')[2]}", remedy)
    return Finding(host.where, False, said, (await no_key(far) if "Permission denied" in said else "") or remedy_for(said, far))


def remedy_for(said, far):
    """Return what to do about a host that gave no answer."""
    if "compties directory" in said:
        return f"run: watchties deploy {far.name}"
    if not far.ssh:
        return "run it by hand: watchties deploy " + far.name
    by_hand = f"try: {shlex.join(ssh.login(far))} true"
    words = {"host": far.ssh, "name": far.name, "ssh": shlex.join(["ssh", *far.options, far.ssh])}
    return next((remedy.format(**words) for word, remedy in REMEDIES if word in said), by_hand)


# ---- two logins, one directory ----


def seen_here(config, asked):
    """Yield Findings on hosts whose marks are seen in a mirror."""
    for name, tree in config.tree.items():
        for host in asked:
            if os.path.exists(os.path.join(tree.root, host.mark)):
                text = f"its data lie in {tree.root}, the mirror of tree {name}"
                yield Finding(host.where, False, text, "give it a user_data of its own")


async def seen_on(host, begin, asked):
    """Return Findings on the marks of other hosts, or of other trees' directories, that are seen where this host has its data."""
    marks, found = {other.mark: other for other in asked}, []
    paths = [path for path, _ in host.data.values()]
    answer = await _call(host.far, shlex.join(["sh", "-c", SEEN, "check", begin, *paths]))
    for place, _, mark in (line.partition("\t") for line in ([] if isinstance(answer, WatchtiesError) else answer.splitlines())):
        other = marks.get(mark)
        if other and other is not host and number(place) < len(paths):
            names = sorted((host.far.name, other.far.name))
            text = f"{paths[number(place)]} is one and the same directory for hosts {' and '.join(names)}"
            remedy = "give each login a user_data of its own: another root, or [tree.NAME.path]"
            found.append(Finding(f"host {names[0]}", False, text, remedy))
    return found


async def tidy(host):
    """Remove our marks from a host."""
    paths = [os.path.join(path, host.mark) for path, _ in host.data.values()]
    if paths:
        await _call(host.far, shlex.join(["rm", "-f", "--", *paths]))
