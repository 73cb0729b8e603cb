"""Putting agent.sh and relay.py in place on a host, and making its directories, without harming what is not ours.

Knows: which files go where, how a file of ours is told from another's.
Must not know: what agent and relay do, the command line. The far side is plain POSIX sh: nothing of ours is there yet.

A file that is put there carries STAMP as its second line; only a file with that line, or with the very content of
ours, is ever overwritten. A file comes whole under a hidden name, its size is looked at, then it is renamed.
"""

import asyncio
import dataclasses
import shlex
from dataclasses import dataclass
from importlib import resources

from watchties import calls
from watchties.errors import WatchtiesError

STAMP = b"# Put here by `watchties deploy`, which overwrites it at the next call."
FILES = {"agent.sh": "agent.sh", "relay.py": "relay.py", "relay_ties_directories": "relay.py"}  # there -> here; the last is the older name

# $1 the compties directory, then names of files: tells for each new, ours or other. Changes nothing but for making directories.
LOOK = """root=$1; shift
make() {
    said=$(LC_ALL=C mkdir -p -- "$1" 2>&1) && return
    case $1 in /*) at=$1 ;; *) at=$PWD/$1 ;; esac
    case $said in *'ermission denied'*) said="$said; run there as root: install -d -o $(id -un) -g $(id -gn) '$at', then deploy again" ;; esac
    echo "$said"
    exit 1
}
for d in "$root" "$root/scripts" "$root/bin"; do make "$d"; done
while [ "$1" != -- ]; do case $1 in /*) d=$1;; *) d=$root/$1;; esac; make "$d"; shift; done; shift
for f; do
    p=$root/scripts/$f
    if [ ! -e "$p" ] && [ ! -L "$p" ]; then echo "new $f"
    elif [ -f "$p" ] && [ ! -L "$p" ] && [ "$(sed -n 2p "$p")" = "$stamp" ]; then echo "ours $f"
    else echo "other $f"; fi
done"""

# $1 the file, $2 its size in bytes: takes the content from standard input.
PUT = """new=${1%/*}/.watchties.deploy.$$
trap 'rm -f -- "$new"' EXIT
cat >"$new" || exit 1
[ "$(wc -c <"$new")" -eq "$2" ] || { echo "it came incomplete" >&2; exit 1; }
chmod 755 "$new" && { sync "$new" 2>/dev/null || :; } && mv -f -- "$new" "$1\""""


class Refused(WatchtiesError):
    """A file stands there that was not put there by us."""


@dataclass(frozen=True)
class Deployed:
    """What stands on a host now. root: its compties directory; files: name -> new, replaced or unchanged; agent: its version line."""

    host: str
    root: str
    files: dict
    agent: str


def source(name):
    """Return the content of a far program as it lies in the package."""
    return (resources.files("watchties.far") / name).read_bytes()


def stamped(content):
    """Return a script with STAMP as its second line."""
    first, _, rest = content.partition(b"\n")
    return first + b"\n" + STAMP + b"\n" + rest


def version():
    """Return the version line that `agent.sh version` prints for the agent of this package."""
    line = next(line for line in source("agent.sh").decode().splitlines() if line.startswith("AGENT_VERSION="))
    return f"agent {line.partition('=')[2]}"


async def deploy(far, directories):
    """Put everything in place on a host; return Deployed. directories: those of its trees, relative to its root.

    Raises Refused if a file stands there that we did not put there (no file is touched then), Unreachable, WatchtiesError
    with what the host said.
    """
    home = dataclasses.replace(far, root=".")  # the compties directory may not be there yet
    said = await _call(home, LOOK, [far.root, *directories, "--", *FILES])
    found = {name: kind for kind, _, name in (line.partition(" ") for line in said.splitlines())}
    paths = {name: f"{far.root}/scripts/{name}" for name in FILES}
    other = [name for name in FILES if found.get(name) not in ("new", "ours")]
    ours = await asyncio.gather(*(_holds(home, paths[name], source(FILES[name])) for name in other))
    if foreign := [paths[name] for name, same in zip(other, ours, strict=True) if not same]:
        raise Refused(f"host {far.name}: not put there by watchties, so left alone: {', '.join(foreign)}; move it away, then deploy again")
    done = await asyncio.gather(*(_put(home, paths[name], stamped(source(here)), found[name]) for name, here in FILES.items()))
    answer, code = await calls.call(far, "sh scripts/agent.sh version")
    if code or answer.strip() != version():
        raise WatchtiesError(f"host {far.name}: agent.sh is in place, but does not run: {answer.strip() or f'exit code {code}'}")
    return Deployed(far.name, far.root, dict(zip(FILES, done, strict=True)), answer.strip())


async def _put(home, path, content, kind):
    if kind == "ours" and await _holds(home, path, content):
        return "unchanged"
    await _call(home, PUT, [path, str(len(content))], content)
    return "new" if kind == "new" else "replaced"


async def _holds(home, path, content):
    """Return whether a file on a host has this very content."""
    return (await _call(home, 'cmp -s - "$1" && echo yes || :', [path], content)).strip() == "yes"


async def _call(far, script, args, stdin=b""):
    """Run a script in the home of a host with arguments; return what it printed; raise WatchtiesError if it failed."""
    words = ["sh", "-c", f"stamp={shlex.quote(STAMP.decode())}; {script}", "deploy", *args]
    out, code = await calls.call(far, f"{shlex.join(words)} 2>&1", stdin)
    if code:
        raise WatchtiesError(f"host {far.name}: {(out.strip().splitlines() or [f'exit code {code}'])[-1]}")
    return out
