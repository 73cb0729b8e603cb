"""A hook's side of the contract: what it is to do, and how it says what became of it.

Knows: the environment, the files and the exit codes of a hook (README, section on hooks).
Must not know: rsync, agents, schedulers; or why the hook was started.

    from watchties import hookkit

    def main(run):
        for job in run.jobs:
            run.done(job)

    if __name__ == "__main__":
        hookkit.main(main)
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field

from watchties import roots
from watchties.errors import AGAIN, FAILURE, MAY_PASS, OK, CommandFailed, NotNow, Unreachable, UserError, WatchtiesError
from watchties.model import one_line

FEW_TIMES = 5  # runs that may fail on a job's own files before it is given up


@dataclass(frozen=True, eq=False)
class Job:
    """One job of a run. dir: in the mirror. identity: of the request that started the rule, mtime in ns, or "".
    accepted: identities on the web host, ns. fields: for the next marker. ended: rule -> how it ended. first: see Dispatch.line."""

    tree: str
    job: str
    dir: str
    place: str = ""
    marker: str = ""
    attempt: int = 0
    token: str = ""
    host: str = ""
    identity: str = ""
    accepted: tuple = ()
    fields: dict = field(default_factory=dict)
    ended: dict = field(default_factory=dict)
    first: bool = False

    @property
    def id(self):
        return f"{self.tree}:{self.job}"

    @classmethod
    def parse(cls, line):
        """Return the job on one JSON line; keys of a newer watchties are passed over."""
        row = {key: value for key, value in json.loads(line).items() if key in cls.__dataclass_fields__ and value is not None}
        return cls(**row | {"identity": str(row.get("identity") or "")})


class Run:
    """One run of a hook: rule, host, id, config (plain dict), jobs; and what has been said of each job so far."""

    def __init__(self, rule, host, run_id, config, jobs, result):
        self.rule, self.host, self.id, self.config, self.jobs, self.result = rule, host, run_id, config, jobs, result
        self.settled, self._gathered = set(), None

    @classmethod
    def from_environment(cls, env=os.environ):
        """Return the run that the environment describes; raise UserError if this was not started as a hook."""
        try:
            config, jobs = _read(env["WATCHTIES_CONFIG"]), _read(env["WATCHTIES_JOBS"])
            names = [env.get(f"WATCHTIES_{key}", "") for key in ("RULE", "HOST", "RUN")]
            parsed = [Job.parse(line) for line in jobs.split("\n") if line.strip()]
            return cls(*names, json.loads(config), parsed, env["WATCHTIES_RESULT"])
        except KeyError as error:
            raise UserError(f"{error.args[0]} is not set: this is a hook; `watchties run-hook RULE JOB` starts it") from None

    @property
    def timeout(self):
        """Seconds that the rule gives one run."""
        return next((rule["timeout"] for rule in self.config["rule"] if rule["name"] == self.rule and rule.get("timeout")), 86400)

    @property
    def grace(self):
        """Seconds after which what is not seen is not there."""
        return (self.config.get("daemon") or {}).get("grace") or 60.0

    def by_tree(self):
        """Return (tree's name, its jobs in this run) for each tree. Raises NotNow if one is gone: what seems to stand there is not its."""
        for tree in dict.fromkeys(job.tree for job in self.jobs):
            root = os.path.join(self.config["home"], self.config["tree"][tree]["root"])
            if why := roots.trouble(os.path.join(self.config.get("trees") or "", tree), root):
                raise NotNow(why)
        return [(tree, [job for job in self.jobs if job.tree == tree]) for tree in dict.fromkeys(job.tree for job in self.jobs)]

    def done(self, job, **fields):
        self.settle([(job, "done", fields.get("reason", ""), fields)])

    def retry(self, job, reason, **fields):
        self.settle([(job, "retry", reason, fields)])

    def failed(self, job, reason, **fields):
        self.settle([(job, "failed", reason, fields)])

    @contextlib.contextmanager
    def together(self):
        """Have all that is settled within this context written and synced as one: for what is certain at the same moment."""
        self._gathered = []
        try:
            yield
        finally:
            rows, self._gathered = self._gathered, None
            self.settle(rows)

    def settle(self, rows):
        """Append (job, outcome, reason, fields) rows to the result file and sync it once: they count from now on."""
        rows = list(rows)
        if self._gathered is not None:
            self._gathered += rows
        elif rows:
            self._write(rows)
        self.settled.update(job for job, *_ in rows)

    def _write(self, rows):
        lines = [
            json.dumps({"tree": job.tree, "job": job.job, "outcome": outcome, "reason": _words(reason), "fields": fields})
            for job, outcome, reason, fields in rows
        ]
        with open(self.result, "ab") as file:
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        for job, outcome, reason, _ in rows:
            print(f"{job.id}: {outcome}" + (f": {_words(reason)}" if reason else ""))

    def unsettled(self):
        """Return the jobs of which nothing has been said yet."""
        return [job for job in self.jobs if job not in self.settled]

    def failures(self, carried):
        """Settle the jobs of a transfer (job -> what came, or the error it met) that failed; return them."""
        failed = {job: error for job, error in carried.items() if isinstance(error, Exception)}
        for job, error in failed.items():
            self.not_carried(job, error)
        return failed

    def not_carried(self, job, error):
        """Settle a job whose own files could not be carried: again a few times, then failed with the files' names."""
        times = int(job.fields.get("not_carried") or 0) + 1
        print("\n".join(error.details()) if isinstance(error, CommandFailed) else error)
        if getattr(error, "transient", True) or times < FEW_TIMES:
            full = getattr(error, "full", "")
            self.retry(job, error, not_carried=times, **({"full": full} if full else {}))
        else:
            self.failed(job, error, cause="infrastructure")


def _words(reason):
    """Return a reason, which may be an error, for people: of a file that cannot be used why, and its name, no number."""
    if isinstance(reason, OSError) and reason.strerror and reason.filename:
        return one_line(f"{reason.strerror}: {reason.filename}")
    return one_line(reason)


def _read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def main(function):
    """Run a hook's function and leave by SystemExit: 0 done, 75 again later, else failed; a settled job stays as it is.

    The last line on standard error is the reason shown to people.
    """
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _stop)
    run = None
    try:
        run = Run.from_environment()
        function(run)
        code = OK
    except Unreachable as error:
        run.settle((job, "retry", str(error), {"host_down": True}) for job in run.unsettled())
        code = _told(error, AGAIN)
    except CommandFailed as error:
        print("\n".join(error.details()), file=sys.stderr)
        code = _told(error, error.exit_code)
    except WatchtiesError as error:
        code = _told(error, error.exit_code)
    except OSError as error:
        traceback.print_exc()
        code = _told(error, AGAIN if error.errno in MAY_PASS else FAILURE)
    raise SystemExit(code)


def _told(error, code):
    sys.stdout.flush()
    print(one_line(error), file=sys.stderr, flush=True)
    return code


def _stop(number, frame):
    os.write(2, b"told to stop\n")  # not print: it may be what was interrupted
    raise SystemExit(AGAIN)
