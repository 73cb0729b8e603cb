"""What `watchties check` finds on the hosts: all are asked at the same time, each call ends in time. One line each, with a remedy.

Knows: what watchties needs far away, how a host is asked, what its answers and ssh's last words mean.
Must not know: the command line; what is needed on this machine (checks.py); how a wrong thing is put right by itself.

Three calls a host: a bare `true`, whose standard output must be empty, as a login that prints there breaks rsync
(rsync(1), DIAGNOSTICS); ASK; and a look for the marks that ASK has left in the data directories of all hosts, which are then removed.
"""

import asyncio
import dataclasses
import os
import re
import shlex

from watchties import deploy, relays, ssh
from watchties.checks import Finding, numbers, rsync
from watchties.errors import WatchtiesError
from watchties.model import depth

TIMEOUT = 30.0  # seconds for one call; ssh itself gives up a connection after ssh.CONNECT
PYTHON_NEEDED = (3, 6)
MIN_FREE = 1 << 30  # bytes on a host; less is worth a word
SPARE = 1.5  # what is asked of max_user_watches, times the directories there are
MARK = ".watchties.check."

# NAME TAB ANSWER. $1 our mark's name; then DEPTH DIRECTORY pairs, the word --, directories of ours, --, commands.
ASK = r"""t=$(printf '\t'); mark=$1; shift
echo "agent$t$(sh scripts/agent.sh version 2>&1 | tail -n 1)"
echo "relay$t$(sed -n 's/^VERSION = //p' scripts/relay.py 2>/dev/null)"
echo "rsync$t$(rsync --version 2>/dev/null | sed -n 1p)"
echo "python$t$(python3 -c 'import sys; print(sys.version.split()[0])' 2>/dev/null)"
echo "find$t$(find --version 2>/dev/null | sed -n 1p)"
echo "free$t$(df -Pk . 2>/dev/null | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*%.*/\1/p')"
for n in watches instances; do echo "$n$t$(cat /proc/sys/fs/inotify/max_user_$n 2>/dev/null)"; done
directories=0
while [ "$1" != -- ]; do
    if [ ! -d "$2" ]; then echo "missing$t$2"
    elif ! (: >"$2/$mark") 2>/dev/null; then echo "closed$t$2"
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
for c; do command -v "$c" >/dev/null 2>&1 || echo "lacking$t$c"; done"""

# $1 the beginning of our marks, then directories: PLACE-OF-THE-DIRECTORY TAB MARK for each that is seen there.
SEEN = r"""b=$1; shift; n=0
for d; do for f in "$d/$b"*; do [ -f "$f" ] && printf '%s\t%s\n' "$n" "${f##*/}"; done; n=$((n + 1)); done; :"""

REMEDIES = (  # what ssh says last, what to do about it
    ("Host key verification failed", "unknown or changed: is it the right host? Then: ssh-keygen -R {host}, and log in once: {ssh}"),
    ("Permission denied", "put our key there: ssh-copy-id {host}"),
    ("by the gate", "its key may not be checked (contrib/ssh); look at that host with a login of your own"),
    ("Could not resolve", "correct `ssh` in [host.{name}], or the name service"),
)


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
    for number, (name, host) in enumerate(config.host.items()):
        data = {tree.name: (tree.path[name], tree.jobs) for tree in config.tree.values() if name in tree.hosts()}
        asked.append(Host(ssh.from_config(as_dict, name), host, data, f"{begin}{number}"))
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
    silent, answer = await asyncio.gather(bare(host.far), _call(host.far, shlex.join(words)))
    if isinstance(answer, WatchtiesError):
        return False, [await unreachable(host, answer)]
    answers = [line.partition("\t")[::2] for line in answer.splitlines()]
    return True, [*loud(host.where, silent[1]), *judged(host.where, host.far.name, host.config, answers)]


async def _call(far, command):
    """Return what a command in a host's root printed, or the error."""
    try:
        return (await relays.call(far, command, timeout=TIMEOUT))[0]
    except WatchtiesError as error:
        return error


async def bare(far):
    """Run `true` as rsync runs its far side; return (exit code, standard output), (None, b"") if it took too long."""
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*ssh.argv(far, "true"), stdin=null, stdout=pipe, stderr=null)
    try:
        async with asyncio.timeout(TIMEOUT):
            out, _ = await process.communicate()
            return process.returncode, out
    except TimeoutError:
        return None, b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def loud(where, out):
    """Yield what is wrong with a login whose `true` printed something."""
    if out:
        text = ascii(out.decode("utf-8", "replace").strip()[:60])
        remedy = "make its .bashrc (or what else its shell reads) silent: first line [[ $- == *i* ]] || return"
        yield Finding(where, False, f"its login prints {text} before a command's own output, so that rsync fails", remedy)


async def unreachable(host, error):
    """Return the Finding on a host that gave no answer: become is refused, or ssh's last words and what to do about them."""
    far, said = host.far, str(error).removeprefix(f"{host.where} ")
    if far.become and "compties directory" not in said and (await bare(dataclasses.replace(far, become="")))[0] == 0:
        user = far.ssh.rpartition("@")[0] or "LOGIN"
        remedy = f"put into its sudoers: {user} ALL=({far.become}) NOPASSWD: ALL, or log in as root or {far.become}"
        return Finding(host.where, False, f"answers, but its login may not become {far.become}: {said.rpartition(': ')[2]}", remedy)
    return Finding(host.where, False, said, remedy_for(said, far))


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


# ---- what the answers mean ----


def judged(where, name, host, answers):
    """Yield Findings from a host's answers, pairs of a word and a text."""
    said, deploy_it = dict(answers), f"run: watchties deploy {name}"
    all_said = lambda wanted: [text for word, text in answers if word == wanted]  # noqa: E731
    if said.get("agent") == deploy.version():
        yield Finding(where, True, f"answers, {said['agent']}")
    else:
        yield Finding(where, False, f"its agent is not ours ({said.get('agent') or 'none'}, not {deploy.version()})", deploy_it)
    if missing := all_said("missing"):
        yield Finding(where, False, f"{', '.join(missing)} not there", deploy_it)
    if closed := all_said("closed"):
        yield Finding(where, False, f"{', '.join(closed)} cannot be written to by the login", "chown it there, or set become in [host]")
    if held := all_said("held"):
        yield Finding(where, False, f"{ascii(held[0])[1:-1]} cannot be written to by the login", "chown it there, or set become in [host]")
    yield rsync(where, said.get("rsync", ""))
    if host.trigger == "relay":
        yield from relay(where, said, deploy_it)
    if host.role == "web" and "GNU" not in said.get("find", ""):
        yield Finding(where, False, "its find is not GNU find", "install findutils there")
    if lacking := all_said("lacking"):
        yield Finding(where, False, f"{', '.join(lacking)} not there", "install util-linux there")
    free = number(said.get("free")) << 10
    yield Finding(where, True if free >= MIN_FREE else None, f"{free >> 20} MB free", "" if free >= MIN_FREE else "make room there")


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
    text = f"{needed} directories to watch, fs.inotify.max_user_watches is {limit}"
    if "watches" in said and needed * SPARE > limit:
        yield Finding(where, False, text, f"run there as root: sysctl fs.inotify.max_user_watches={max(2 * needed, 2 * limit)}")
    elif "watches" in said:
        yield Finding(where, True, text)
    if "instances" in said and number(said["instances"]) < 8:
        text = f"fs.inotify.max_user_instances is {number(said['instances'])}"
        yield Finding(where, False, text, "run there as root: sysctl fs.inotify.max_user_instances=128")
