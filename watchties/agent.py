"""Calling agent.sh on a host and reading its answers.

Knows: the agent's commands, the lines it takes and gives (far/agent.sh, header).
Must not know: what the answers mean for a job, or what any scheduler says.

Lines are fields between TABs. A line that begins with a TAB belongs to the answer before it: x and an exit code, o
and a line of standard output, e and one of standard error.
"""

import re
import shlex
from dataclasses import dataclass, field

from watchties import retry, shell, ssh
from watchties.errors import AGAIN, CommandFailed, NotNow, Unreachable
from watchties.model import RECORD_DIR, one_line
from watchties.transfer import data_of

SCRIPT = "scripts/agent.sh"
NO_SCRIPT, NO_DATA = 68, 66  # exit codes: our own for a missing agent, the agent's for a missing DATA
NOT_WRITABLE = (71, 73)  # the agent cannot write or sync there
BASE, PER_JOB = 120, 10  # seconds for a call: publish waits 60 for its lock, a scheduler may take 10 for each job
NONE = "-"
CODE = re.compile(r"[0-9]{1,3}")  # an exit code


@dataclass
class Answer:
    """What the agent says of one job: a word, details (fields after it), and a stored reply if one followed."""

    word: str
    details: list
    code: int | None = None
    out: list = field(default_factory=list)
    err: list = field(default_factory=list)

    @property
    def values(self):
        """The k=v among the details; those of one detail are separated by spaces (no value of the agent's has any)."""
        return dict(pair.split("=", 1) for detail in self.details for pair in detail.split(" ") if "=" in pair)

    def detail(self):
        return " ".join(self.details) or self.word

    def reply(self):
        """Return the scheduler's (exit code, standard output, standard error), as text."""
        return self.code or 0, "\n".join(self.out), "\n".join(self.err)


@dataclass(frozen=True)
class Agent:
    """The agent of a host, for one tree."""

    far: ssh.Far
    data: str
    setup: str = ""

    @classmethod
    def of(cls, config, tree, host):
        """Return the agent for a tree's name and a host's name in a plain configuration."""
        return cls(ssh.from_config(config, host), data_of(config, tree, host), config["host"][host].get("setup") or "")

    # ---- one method a command; jobs in, job -> Answer out ----

    def begin(self, command, *args):
        """Start a call now whose jobs follow later, while something else is under way; a context that gives what the method takes."""
        return shell.begun(self.far, self._text(command, args))

    def begin_submit(self, run):
        return self.begin("submit", run, *self._setup())

    def identify(self, jobs, begun=None):
        """Return job -> (PENDING, CANCEL, leftover, attempt), three identities and the latest attempt whose state stands there, as text,
        "" for none; an Answer where it refuses."""
        found = self.ask("identify", {job: [] for job in jobs}, begun=begun)
        return {job: answer if answer.word in ("error", "missing") else _identities(answer) for job, answer in found.items()}

    def publish(self, contents, begun=None):
        """Publish each job's marker on the web host; `contents`: job -> its fields. Details: PENDING, CANCEL that stand.

        A call that was begun with a transfer is never tried again here: the host may have lost its power in between, and with it what
        the transfer has brought. The next run carries it again.
        """
        rows = {
            job: [job.marker, str(job.attempt), job.token, ",".join(map(str, job.accepted)), *pairs(fields)]
            for job, fields in contents.items()
        }
        return self.ask("publish", rows, begun=begun, once=begun is not None)

    def claim(self, jobs, run, evidence):
        return self.ask("claim", {job: [*_attempt(job), *evidence] for job in jobs}, run)

    def submit(self, commands, run, begun=None):
        """Run a submit command (shell text) for each job: never tried again here, as the first call may be at work still."""
        rows = {job: [*_attempt(job), command] for job, command in commands.items()}
        return self.ask("submit", rows, run, *self._setup(), once=True, begun=begun)

    def _setup(self):
        return [self.setup] if self.setup else []

    def forget_reply(self, jobs):
        """Move aside the stored reply of jobs that the scheduler has not taken: the next claim then says unknown.

        Without this the agent would give that reply for ever, as it submits nothing twice.
        """
        places = [shlex.quote(f"{self.data}/{job.job}/{RECORD_DIR}/{job.attempt}.{job.token}/reply") for job in jobs]
        for some in shell.chunks([f"mv -f -- {place} {place}.refused" for place in places]):
            retry.network(shell.far, self.far, "; ".join(some))

    def adopt(self, texts, run):
        return self.ask("adopt", {job: [*_attempt(job), text] for job, text in texts.items()}, run)

    def cancel(self, commands, why=""):
        """Stop each job; `commands`: job -> what the scheduler is told. why: lost or rejected, for a tombstone, where it has not begun."""
        rows = {job: [*_attempt(job), self.with_setup(command)] for job, command in commands.items()}
        return self.ask("cancel", rows, *([why] if why else []))

    def status(self, jobs, query=""):
        """Return (job -> Answer, Answer of the scheduler query or None if there was none)."""
        found, rest = self.ask_all("status", {job: _attempt(job) for job in jobs}, *([self.with_setup(query)] if query else []))
        return found, next((answer for answer in rest if answer.word == "query"), None)

    def query(self, text):
        """Return what shell text that asks the scheduler says: exit code and both streams. Raises Unreachable if that is not whole."""
        said = parse(retry.network(self._call, "status", [self.with_setup(text)], "", BASE))
        answer = next((answer for _, answer in said if answer.word == "query"), None)
        if answer is None:
            raise Unreachable(f"the agent on {self.far.name} did not tell what the scheduler said")
        return answer.reply()

    # ---- how a call is made ----

    def with_setup(self, text):
        """Return shell text that finds the scheduler's commands: bsub is not on the PATH of a plain login."""
        return f"eval {_on_one_line(self.setup)} >/dev/null 2>&1; {text}" if self.setup and text else text

    def ask(self, command, rows, *args, **how):
        return self.ask_all(command, rows, *args, **how)[0]

    def ask_all(self, command, rows, *args, once=False, begun=None):
        """Return (job -> Answer, other answers) of one call. `rows`: job -> fields after its name. begun: the call, if it is begun.

        Raises Unreachable, NotNow (the agent asks to come back), CommandFailed (it is not there, or broken).
        """
        if not rows:
            return {}, []
        call = self._call if once else lambda *all_args: retry.network(self._call, *all_args)
        text = call(command, args, "".join(_line(job.job, fields) for job, fields in rows.items()), BASE + PER_JOB * len(rows), begun)
        return self._matched(command, rows, parse(text))

    def _text(self, command, args):
        return f"[ -r {SCRIPT} ] || exit {NO_SCRIPT}; exec {shlex.join(['sh', SCRIPT, command, self.data, *args])}"

    def _call(self, command, args, lines, timeout, begun=None):
        result = begun.finish(lines, timeout) if begun else None
        code, out, err = result or shell.far(self.far, self._text(command, args), stdin=lines, timeout=timeout)
        if code:
            raise self._failure(command, code, out, err)
        return out

    def _failure(self, command, code, out, err):
        """Return the error for a call that was not answered: most are the host's business, and no job's fault."""
        name, said = self.far.name, one_line((err.strip().splitlines() or ["nothing said"])[-1])
        if code == NO_SCRIPT:
            return Unreachable(f"host {name} has no {SCRIPT}: run `watchties deploy {name}`")
        if code == NO_DATA:
            return Unreachable(f"host {name}: {said}; is its disk mounted?")
        if code == AGAIN or code in NOT_WRITABLE:
            return NotNow(f"host {name} asks to come back later: {said}")
        failure = CommandFailed(["agent.sh", command], code, out, err, f"on {name}")
        print("\n".join(failure.details()))
        return Unreachable(f"host {name}: {failure}")  # killed, or broken: what befalls it as a whole costs no job its attempt

    def _matched(self, command, rows, answers):
        by_name = {job.job: job for job in rows}
        found = {by_name[name]: answer for name, answer in answers if name in by_name}
        if missing := [job.id for job in rows if job not in found]:
            raise Unreachable(f"the agent on {self.far.name} ({command}) said nothing of {missing[0]} ({len(missing)} of {len(rows)} jobs)")
        return found, [answer for name, answer in answers if name not in by_name]


def parse(text):
    """Return [(job, Answer)] of the agent's lines; what the scheduler query says has the job "" and the word "query".

    A line that is none of the agent's is passed over: whoever waits for it finds that nothing was said.
    """
    answers = []
    for line in text.split("\n"):
        name, *fields = line.split("\t")
        if name and fields:
            answers.append((name, Answer(fields[0], fields[1:])))
        elif fields[:1] == ["query"] and CODE.fullmatch("".join(fields[1:2])):
            answers.append(("", Answer("query", [], int(fields[1]))))
        elif fields and answers:
            _continue(answers[-1][1], fields[0], "\t".join(fields[1:]))
    return answers


def _continue(answer, kind, text):
    if kind == "x" and CODE.fullmatch(text):
        answer.code = int(text)
    elif kind == "o":
        answer.out.append(text)
    elif kind == "e":
        answer.err.append(text)


def _on_one_line(text):
    """Return a shell word for `text` that has no newline in it, as a command line has none."""
    if "\n" not in text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return f"\"$(printf %b {shlex.quote(escaped)})\""


def _identities(answer):
    return identities((answer.word, *answer.details, *[NONE] * 3)[:4])


def identities(words):
    """Return identities as text, "" for none."""
    return tuple("" if word == NONE else word for word in words)


def _attempt(job):
    return [str(job.attempt), job.token]


def _line(name, fields):
    """Return one line of input; no field is empty or breaks the line."""
    return "\t".join([name, *(_word(text) for text in fields)]) + "\n"


def _word(text):
    return text.replace("\t", " ").replace("\n", " ") or NONE


def pairs(fields):
    """Return a marker's content as k=v words, empty values left out."""
    return [f"{key}={one_line(value)}" for key, value in fields.items() if value not in (None, "")]
