"""The far hosts of the simulation: real directories, real calls of agent.sh that can be stopped and killed anywhere, a
scheduler whose queue is a file, and executions that go on until they are told to end.

Knows: how the agent is called, how a process group is stopped at its n-th external command.
Must not know: the daemon, the hooks' order of steps, what must hold.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from watchties import agent
from watchties.errors import Unreachable

STOPPABLE = ("mv", "rm", "ln", "sync", "mkdir", "find")
SHIM = """#!/bin/sh
n=$(($(cat "$SIM_COUNT") + 1))
echo $n >"$SIM_COUNT"
[ $n != "$SIM_STOP" ] || kill -STOP 0
exec {real} "$@"
"""
COMMAND = """#!/bin/sh
mkfifo "$COMPTIES_HOME/gate.$PPID" || exit 9
printf 'start %s %s %s %s\\n' "$PPID" $$ "$(cat one)" "$(cat two)" >>"$COMPTIES_HOME/log"
read code <"$COMPTIES_HOME/gate.$PPID"
printf 'end %s %s %s\\n' "$PPID" "$(cat one)" "$(cat two)" >>"$COMPTIES_HOME/log"
echo "$PPID" >result
exit "$code"
"""
PATIENCE = 60  # seconds for what takes milliseconds


class Host:
    """One far host: root/scripts/agent.sh, root/user_data, and for a scheduler root/queue and root/log."""

    def __init__(self, base, name, script):
        self.name, self.root, self.up, self.entries = name, Path(base) / name, True, 0
        self.data = self.root / "user_data"
        for directory in self.data, self.root / "scripts", self.root / "bin", self.root / "shims":
            directory.mkdir(parents=True)
        shutil.copy(script, self.root / "scripts" / "agent.sh")
        (self.root / "queue").touch()
        (self.root / "log").touch()
        for tool in STOPPABLE:
            path = self.root / "shims" / tool
            path.write_text(SHIM.format(real=shutil.which(tool)))
            path.chmod(0o755)
        self.executions = []

    def queue(self):
        """Return [(attempt, token, id)] of the entries that wait."""
        return [tuple(line.split("\t")) for line in (self.root / "queue").read_text().splitlines()]

    def submit_command(self, lost):
        """Return shell text that queues an entry and says its number, or is killed before anybody hears it."""
        self.entries += 1
        text = f"printf '%s\\t%s\\t{self.entries}\\n' \"$WT_ATTEMPT\" \"$WT_TOKEN\" >>'{self.root}/queue'"
        return text + ("; kill -9 0" if lost else f"; echo {self.entries}")

    def cancel_command(self, number):
        """Return shell text that takes an entry out of the queue, "-" if its number is not known."""
        queue = f"{self.root}/queue"
        return f"grep -v '[^0-9]{number}$' '{queue}' >'{queue}.new'; mv '{queue}.new' '{queue}'" if number else "-"

    def knows(self, token):
        """Return whether the scheduler has an entry of this token, or something of it runs."""
        return any(t == token for _, t, _ in self.queue()) or any(e.token == token and e.alive() for e in self.executions)

    def start_entry(self, index, job):
        """Take an entry out of the queue and start its wrapper; return the Execution, or None if the wrapper refused."""
        entries = self.queue()
        attempt, token, number = entries.pop(index)
        (self.root / "queue").write_text("".join("\t".join(e) + "\n" for e in entries))
        process = subprocess.Popen(
            ["sh", self.root / "scripts" / "agent.sh", "wrapper", self.data / job, attempt, token, number],
            cwd=self.root, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        said = wait_for(lambda: self.said("start", process.pid) or (process.poll() is not None and [[]]))[-1]
        if not said:
            return None
        execution = Execution(self, int(attempt), token, process, int(said[0]), tuple(said[1:]))
        self.executions.append(execution)
        return execution

    def said(self, word, pid):
        """Return what the executions of a wrapper have written into the log, as lists of words."""
        lines = [line.split() for line in (self.root / "log").read_text().splitlines()]
        return [words[2:] for words in lines if words[:2] == [word, str(pid)]]


@dataclass
class Execution:
    """One time that a job's command ran. inputs: what it found at its start."""

    host: Host
    attempt: int
    token: str
    process: subprocess.Popen
    pid: int
    inputs: tuple

    def alive(self):
        """Return whether wrapper or command still run."""
        return self.process.poll() is None or is_running(self.pid)

    def end(self, code):
        """Let the command end with an exit code, and wait for its wrapper; return the inputs it saw last, or () if it was killed."""
        gate = self.host.root / f"gate.{self.process.pid}"
        fd = wait_for(lambda: _open_for_writing(gate) or (not is_running(self.pid) and -1))
        if fd > 0:
            os.write(fd, b"%d\n" % code)
            os.close(fd)
        self.process.wait(PATIENCE)
        said = self.host.said("end", self.process.pid)
        return tuple(said[-1]) if said else ()

    def kill(self):
        """The node goes down: wrapper and command are gone, and no word of it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        wait_for(lambda: not is_running(self.pid))


def _open_for_writing(path):
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0


def is_running(pid):
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(what):
    """Return `what()` as soon as it is true."""
    end = time.monotonic() + PATIENCE
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return value


class Call:
    """One call of the agent for one job: not begun, stopped in the middle, or ended."""

    locks = property(lambda self: self.command in ("publish", "claim"))

    def __init__(self, host, command, *args, line):
        self.host, self.command, self.args, self.line, self.process = host, command, args, line, None
        self.label = f"agent {command}"

    def begin(self, stop_at=0):
        """Begin; return True when it has ended, False when it has been stopped at its n-th external command."""
        self.out, given = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        given.write("\t".join(map(str, self.line)) + "\n")
        given.seek(0)
        env = dict(os.environ)
        if stop_at:
            count = self.host.root / "count"
            count.write_text("0\n")
            env |= {"SIM_COUNT": str(count), "SIM_STOP": str(stop_at), "PATH": f"{self.host.root}/shims:{env['PATH']}"}
        self.process = subprocess.Popen(
            ["sh", "scripts/agent.sh", self.command, "user_data", *self.args], cwd=self.host.root, env=env,
            stdin=given, stdout=self.out, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        given.close()
        return self._ended()

    def go_on(self):
        """Let it go on to its end, from wherever it is."""
        if not self.process:
            return self.begin()
        os.killpg(self.process.pid, signal.SIGCONT)
        return self._ended()

    def kill(self):
        """End it where it is, without a trace."""
        if self.process and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self._ended()

    @property
    def stopped(self):
        return self.process is not None and self.process.returncode is None

    def _ended(self):
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.out.seek(0)
        self.said = self.out.read()
        self.out.close()
        return True

    def answer(self):
        """Return the agent's Answer; raise Unreachable if it was killed."""
        answers = agent.parse(self.said)
        if self.process.returncode != 0 or not answers:
            raise Unreachable(f"the agent on {self.host.name} ({self.command}) ended with {self.process.returncode}")
        return answers[0][1]
