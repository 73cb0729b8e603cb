"""What the tests of agent.sh share: shells, hostile names, one way to call it, rules taken out, commands that kill their caller.

Knows: how the agent is called and what its answers look like.
Must not know: what any command of it is expected to do.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

AGENT = Path(__file__).resolve().parents[2] / "watchties" / "far" / "agent.sh"
SHELLS = [["dash"], ["busybox", "sh"]] + [[s] for s in ("bash", "mksh") if shutil.which(s)]
every_shell = pytest.mark.parametrize("sh", SHELLS, ids=lambda argv: argv[0])
one_shell = pytest.mark.parametrize("sh", SHELLS[:1], ids=lambda argv: argv[0])

HOSTILE = [
    "a user/an experiment",
    "$(touch pwned)/`touch pwned`",
    "semi;colon/and & more | > pwned",
    "it's/a \"quote\"",
    "*/?[a]",
    "back\\slash/\\n\\t",
    "āĂ/é 字 😀",
    "#hash/~tilde=x",
    "!/%s %d",
]

UNPROTECTED = {  # rule -> body of its function with which the agent does what an agent without that rule would do
    "far_lock": ":",
    "restore_hidden": ":",
    "back_over_accepted": "return 1",
    "state_rank": "return 1",
    "fenced": ': >"$a/intent.$run"',
    "begun_is_one_name": '[ ! -e "$a/begun" ] && sleep 0.5 && cp "$1" "$a/begun"',
    "cancel_waits": "scan_processes; living && signal_living TERM; sessions=' '",
}


def without(rule, tmp_path):
    """Return a copy of agent.sh in which the function `rule` has its unprotected body."""
    body = f"{rule}() {{\n{UNPROTECTED[rule]}\n}}"
    text, found = re.subn(rf"^{rule}\(\) \{{\n.*?^\}}$", lambda _: body, AGENT.read_text(), flags=re.M | re.S)
    assert found == 1, f"agent.sh has no function {rule}"
    scripts = tmp_path / f"without_{rule}" / "scripts"
    scripts.mkdir(parents=True, exist_ok=True)
    (scripts / "agent.sh").write_text(text)
    return scripts / "agent.sh"


class Agent:
    """The agent in one shell, with one data directory."""

    def __init__(self, sh, data, script=AGENT, env=None):
        self.sh, self.data, self.script = sh, Path(data), script
        self.env = {**os.environ, **(env or {})}

    def argv(self, command, *args):
        """Return the argument vector of one call."""
        return [*self.sh, str(self.script), command, str(self.data), *args]

    def start(self, command, *args, lines=(), **options):
        """Return the running agent, its input given and closed."""
        process = subprocess.Popen(self.argv(command, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=self.env, cwd=self.data, **options)
        with contextlib.suppress(BrokenPipeError):  # an agent that ends at once reads nothing
            process.stdin.write("".join("\t".join(map(str, line)) + "\n" for line in lines))
            process.stdin.close()
        process.stdin = None
        return process

    def run(self, command, *args, lines=(), code=0, **options):
        """Return the answers: a list of fields a line; a continuation line begins with an empty field."""
        process = self.start(command, *args, lines=lines, **options)
        out, self.err = process.communicate(timeout=60)
        assert process.returncode == code, (process.returncode, out, self.err)
        return [line.split("\t") for line in out.splitlines()]

    def publish(self, *lines, **options):
        return self.run("publish", lines=lines, **options)

    def one(self, command, *args, line, **options):
        """Return the answer's fields after the job's name, for one job."""
        [answer] = [a for a in self.run(command, *args, lines=[line], **options) if a[0]]
        assert answer[0] == line[0]
        return answer[1:]


def marker(job, state="SUBMITTED", attempt=1, token="t1", accepted="-", **fields):
    """Return an input line of `publish`, its content as the caller is to give it."""
    fields = {"state": state, "attempt": attempt, "token": token, **fields}
    return [job, state, attempt, token, accepted, *(f"{k}={v}" for k, v in fields.items())]


def make_job(data, job, **files):
    """Return the directory of a new job with these files in it."""
    path = Path(data) / job
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def request(path, ns=None, name="PENDING"):
    """Touch a request in a job's directory and return its identity as the agent writes it."""
    (path / name).touch()
    if ns:
        os.utime(path / name, ns=(ns, ns))
    return str(os.lstat(path / name).st_mtime_ns)


def states(path):
    """Return the names of the markers and hidden files that stand in a job's directory."""
    return {p.name for p in path.iterdir() if p.name.isupper() or p.name.startswith(".watchties.")}


def wait_for(what, seconds=10):
    """Wait until `what()` is true and return it; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def shims(directory, body, tools=("mv", "ln", "sync", "rm")):
    """Return a directory for the head of PATH with commands that run `body`, shell text in which $real is the real one."""
    directory.mkdir(parents=True, exist_ok=True)
    for tool in tools:
        path = directory / tool
        path.write_text(f"#!/bin/sh\nreal={shutil.which(tool)}\ntool={tool}\nhere={directory}\n{body}\n")
        path.chmod(0o755)
    return directory


KILLER = """
n=$(cat "$here/count" 2>/dev/null || echo 0)
n=$((n + 1))
echo $n >"$here/count"
[ "$n" = "$KILL_AT" ] && [ "$KILL_WHEN" = before ] && kill -9 $PPID && exit 1
"$real" "$@"; code=$?
[ "$n" = "$KILL_AT" ] && [ "$KILL_WHEN" = after ] && kill -9 $PPID
exit $code
"""


def killers(directory, nth, when):
    """Return an environment in which the n-th call of mv, ln, sync or rm kills its caller, before or after it did its work."""
    shims(directory, KILLER)
    return {"PATH": f"{directory}:{os.environ['PATH']}", "KILL_AT": str(nth), "KILL_WHEN": when}
