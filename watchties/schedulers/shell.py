"""A plain host: the wrapper itself, in a session of its own, is the job; its id is its process number.

Knows: setsid(1), /proc/PID/cmdline (proc(5)), what a POSIX shell says when it cannot start a process.
Must not know: how a command reaches the host.

| step | command | answer |
|---|---|---|
| submit | setsid sh agent.sh wrapper ... & | the process number on the last line |
| find | the token among the arguments of all processes | NAME PID |
| query | is it a wrapper still | PID |
| cancel | none: the agent ends the session | |

Queues, limits and resources there are none: the daemon keeps to the host's `max_running`.
"""

import re
import shlex

from watchties.schedulers import NAME, Entry, NotNow, QueryFailed, Refused, Submitted, Unknown

WRAPPER = 'setsid sh "$WT_AGENT" wrapper "$WT_JOB" "$WT_ATTEMPT" "$WT_TOKEN"'
LOOK = "grep -ls -e wrapper /proc/self/cmdline"  # finds itself: so it is known that it could look
SELF = "/proc/self/cmdline"
BUSY = re.compile(r"fork|resource|memory", re.IGNORECASE)  # dash: "Cannot fork", bash: "fork: retry: Resource temporarily unavailable"
NOT_RUN = (126, 127)  # a POSIX shell's codes for what it cannot execute, and cannot find; the agent's for a directory it cannot enter
COMMANDS = ()  # of a queue: it has none
LATE = 0  # it has no account


def submit_command(job, resources, options):
    """Return the text that starts the wrapper and says its process number; resources and options mean nothing here."""
    return f"{WRAPPER} </dev/null >/dev/null 2>&1 & echo $!"


def parse_submit(code, out, err):
    """Return Submitted with the number on the last line, which alone is ours: the login may print before it.

    Refused only if the shell says by its exit code that nothing was run; one that was killed, say, may have begun the wrapper.
    """
    said = err.strip() or out.strip() or "nothing"
    last = (out.strip().splitlines() or [""])[-1].strip()
    if code == 0:
        return Submitted(last) if last.isdigit() else Unknown(f"no process number in {said!r}")
    if BUSY.search(said):
        return NotNow(said)
    return (Refused if code in NOT_RUN else Unknown)(f"exit code {code}: {said}")


def find_command(names):
    """Return the text that prints NAME and a path below /proc for each wrapper that has the name's token in its arguments.

    The token never stands there in one piece, so that neither grep nor the shell that runs this finds itself.
    """
    return "; ".join([LOOK, *map(_ask, names), "exit 0"])


def _ask(name):
    token = name.removeprefix(NAME)
    rest = re.sub(r"([][\\.*^$])", r"\\\1", token[1:])
    told = shlex.quote(NAME + token[0]) + "''" + shlex.quote(token[1:])  # the name, but not as grep would find it
    processes = f"grep -ls -e {shlex.quote(f'[{token[0]}]{rest}')} /proc/[0-9]*/cmdline"
    return f'{processes} | while read -r f; do grep -qs wrapper "$f" && echo {told} "$f"; done'


def parse_find(code, out, err, names):
    """Return {name: id}; of a wrapper and its subshells the lowest number is taken. Raises QueryFailed."""
    found = {}
    for name, pid in re.findall(r"^(\S+) /proc/(\d+)/cmdline$", _looked(code, out, err), re.MULTILINE):
        found[name] = str(min(int(pid), int(found.get(name, pid))))
    return found


def query_command(ids):
    """Return the text that prints a path below /proc for those of the process numbers that are a wrapper."""
    files = [f"/proc/{pid}/cmdline" for pid in ids if pid.isdigit()]
    return f"{' '.join([LOOK, *files])}; exit 0" if files else ""


def parse_query(code, out, err, ids):
    """Return {id: Entry} for those that run; raise QueryFailed."""
    return dict.fromkeys(re.findall(r"^/proc/(\d+)/cmdline$", _looked(code, out, err), re.MULTILINE), Entry("running"))


def _looked(code, out, err):
    if code != 0 or SELF not in out.splitlines():
        raise QueryFailed(f"looking for processes ended with {code} and no answer: {err.strip() or out.strip() or 'nothing said'}")
    return out


def cancel_command(id, name):
    """Return "": the agent ends the wrapper's session by itself."""
    return ""


def parse_said(text):
    """Return None: nobody but the job itself writes here."""
    return None
