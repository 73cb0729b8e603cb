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

from watchties.schedulers import NAME, NotNow, QueryFailed, Refused, Submitted, Unknown

WRAPPER = 'setsid sh "$WT_AGENT" wrapper "$WT_JOB" "$WT_ATTEMPT" "$WT_TOKEN"'
HAS_PROC = "[ -r /proc/self/cmdline ] || { echo 'no /proc to look into' >&2; exit 3; }"
BUSY = re.compile(r"fork|resource|memory|process", re.IGNORECASE)  # dash: "Cannot fork", bash: "fork: retry: Resource temporarily unavailable"


def submit_command(job, resources, options):
    """Return the text that starts the wrapper and says its process number; resources and options mean nothing here."""
    return f"{WRAPPER} </dev/null >/dev/null 2>&1 & echo $!"


def parse_submit(code, out, err):
    """Return Submitted with the number on the last line, which alone is ours: the login may print before it."""
    said = err.strip() or out.strip() or "nothing"
    last = (out.strip().splitlines() or [""])[-1].strip()
    if code == 0:
        return Submitted(last) if last.isdigit() else Unknown(f"no process number in {said!r}")
    return NotNow(said) if BUSY.search(said) else Refused(f"exit code {code}: {said}")


def find_command(names):
    """Return the text that prints NAME PID for each process that has the name's token among its arguments.

    The first character stands in brackets, so that neither grep nor the shell that runs this finds itself.
    """
    asked = [f"grep -ls -e {shlex.quote(_not_itself(name))} /proc/[0-9]*/cmdline | sed 's|^/proc/\\([0-9]*\\)/.*|{name} \\1|'" for name in names]
    return "; ".join([HAS_PROC, *asked, "exit 0"])


def _not_itself(name):
    token = re.sub(r"([][\\.*^$])", r"\\\1", name.removeprefix(NAME))
    return f"[{token[0]}]{token[1:]}"


def parse_find(code, out, err):
    """Return {name: id}; of a wrapper and its subshells the lowest number is taken. Raises QueryFailed."""
    found = {}
    for name, pid in _rows(code, out, err, 2):
        found[name] = str(min(int(pid), int(found.get(name, pid))))
    return found


def query_command(ids):
    """Return the text that prints those of the process numbers that are a wrapper of ours."""
    files = " ".join(f"/proc/{pid}/cmdline" for pid in ids if pid.isdigit())
    return f"{HAS_PROC}; grep -ls wrapper {files} /dev/null | cut -d/ -f3; exit 0" if files else ""


def parse_query(code, out, err):
    """Return {id: "running"} for those that run; raise QueryFailed."""
    return {pid: "running" for (pid,) in _rows(code, out, err, 1)}


def _rows(code, out, err, columns):
    if code != 0:
        raise QueryFailed(f"looking for processes ended with {code}: {err.strip() or out.strip() or 'nothing said'}")
    rows = [line.split() for line in out.splitlines()]
    return [row for row in rows if len(row) == columns and row[-1].isdigit()]


def cancel_command(id, name):
    """Return "": the agent ends the wrapper's session by itself."""
    return ""
