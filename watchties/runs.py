"""Runs on disk: the directory of a run, its results file, the lock of its slot.

Knows: what a run leaves in the state directory, and how it is read, also by a daemon that did not start it.
Must not know: processes, records, rules.
"""

import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass, field

from watchties.errors import AGAIN, UserError
from watchties.model import OUTCOMES, JobId, Outcome, one_line

MAX_RESULT_LINE = 1 << 20
FULL = 1 << 16  # bytes


@dataclass
class Run:
    """One execution of a hook. jobs: what the hook is told of each, as dicts; started: seconds since 1970. places: what it locks."""

    id: str
    rule: str
    host: str
    slot: str
    hook: str
    dir: str
    jobs: list
    timeout: float = 3600.0
    started: float = 0.0
    notice: str = ""
    lock: str = ""
    places: tuple = ()
    timed_out: bool = field(default=False, compare=False)

    def path(self, name):
        return os.path.join(self.dir, name)

    def ids(self):
        """Return the JobId of each job of the run."""
        return [JobId(j["tree"], j["job"]) for j in self.jobs]


@dataclass
class Ended:
    """How a run ended: its exit code (None if nobody saw it), an outcome for each job it settled, the reason."""

    run: Run
    code: int | None
    settled: dict
    reason: str
    seconds: float

    def outcome(self, job):
        """Return the Outcome of one job, or None if the run was interrupted before it said anything of it."""
        if job in self.settled:
            return self.settled[job]
        if self.code is None:
            return None
        if self.code == 0:
            return Outcome("done")
        retry = self.code == AGAIN or self.code < 0 or self.run.timed_out
        return Outcome("retry" if retry else "failed", self.reason)


class RunDirs:
    """The runs and slot locks of a state directory."""

    def __init__(self, state):
        self.state, self._count, self._stay = state, 0, []
        for name in "runs", "locks":
            os.makedirs(os.path.join(state, name), mode=0o700, exist_ok=True)

    def new_id(self, rule):
        """Return a name for a run that no run had before."""
        self._count += 1
        return f"{rule}-{time.time_ns() // 1_000_000:x}-{self._count:x}"

    def prepare(self, run_id, rule, host, slot, jobs, timeout, hook, notice="", places=()):
        """Return the Run, with its directory written: what it is (run.json), its jobs, room for results."""
        where = os.path.join(self.state, "runs", run_id)
        lock = os.path.join(self.state, "locks", f"{rule}.{host or '-'}.{slot}")
        run = Run(run_id, rule, host, slot, hook, where, jobs, timeout, time.time(), notice, lock, tuple(sorted(places)))
        os.mkdir(where, 0o700)
        try:
            self._write(run, notice)
        except OSError:
            self.forget(run)
            raise
        return run

    @staticmethod
    def _write(run, notice):
        with open(run.path("jobs"), "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(json.dumps(job, ensure_ascii=False) + "\n" for job in run.jobs)
        if notice:
            with open(run.path("notice"), "w", encoding="utf-8") as file:
                file.write(notice)
        for name in "result", "out", "err":  # a hook that cannot say anything has failed: there must be room for that
            open(run.path(name), "ab").close()
        with open(run.path("run.json.new"), "w", encoding="utf-8") as file:
            json.dump(vars(run) | {"jobs": None}, file)
        os.rename(run.path("run.json.new"), run.path("run.json"))

    def collect(self, run, code):
        """Return Ended from what the run left on disk."""
        settled = read_results(run.path("result"), run.jobs)
        if run.timed_out:
            reason = f"{run.rule} took longer than {run.timeout:g} s and was ended"
        else:
            reason = last_line(run.path("err")) or (f"{run.rule} ended with {code}{self._full()}" if code else "")
        return Ended(run, code, settled, reason, time.time() - run.started)

    def _full(self):
        """Return the most likely reason for a hook that failed and said nothing: it could not write what it had to say."""
        return f"; the disk of {self.state} is full: make room" if shutil.disk_usage(self.state).free < FULL else ""

    def forget(self, run):
        """Remove the directory of a run whose outcome is in the records; now or, where that cannot be done now, with a later one's."""
        self._stay.append(run.dir)
        for folder in self._stay:
            shutil.rmtree(folder, ignore_errors=True)
        self._stay = [folder for folder in self._stay if os.path.exists(folder)]

    def left_over(self):
        """Return the runs that an earlier daemon left behind. One that was never whole goes: its hook has not been started.

        Raises OSError where one cannot be read for another reason: its hook may be at work.
        """
        runs, folder = [], os.path.join(self.state, "runs")
        for name in sorted(os.listdir(folder)):
            where = os.path.join(folder, name)
            try:
                with open(os.path.join(where, "run.json"), encoding="utf-8") as file:
                    plain = json.load(file)
                with open(os.path.join(where, "jobs"), encoding="utf-8", errors="surrogateescape") as file:
                    plain["jobs"] = [json.loads(line) for line in file]
                runs.append(Run(**plain))
            except (FileNotFoundError, ValueError, TypeError):
                shutil.rmtree(where, ignore_errors=True)
        return runs

    def is_free(self, lock):
        """Return whether nobody holds a slot's lock: hook and all it started have ended."""
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)


def holders(path):
    """Return the pids of our user's processes that have a file open, without this one."""
    wanted, found = os.stat(path), []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # another user's, or it has just ended
            continue
        found += [pid] if any(_is_file(wanted, f"/proc/{pid}/fd/{name}") for name in names) else []
    return found


def _is_file(wanted, path):
    try:
        return os.path.samestat(wanted, os.stat(path))
    except OSError:
        return False


def read_results(path, jobs):
    """Return JobId -> Outcome from a results file; the last line for a job counts, junk and torn lines do not."""
    known, settled = {(j["tree"], j["job"]) for j in jobs}, {}
    trees = {j["job"]: j["tree"] for j in jobs}
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return settled
    for line in lines:
        try:
            told = json.loads(line[:MAX_RESULT_LINE])
            key = told.get("tree") or trees.get(told["job"]), told["job"]
            if key in known and told["outcome"] in OUTCOMES:
                fields = told.get("fields") or {}
                settled[JobId(*key)] = Outcome(told["outcome"], one_line(told.get("reason") or ""), dict(fields))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return settled


def last_line(path):
    """Return the last line with anything in it of a hook's standard error, for people."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return one_line(lines[-1]) if lines else ""


def find_hook(name, folders):
    """Return the path of a hook: the first of the folders that has it; an absolute path is itself."""
    paths = [name] if os.path.isabs(name) else [os.path.join(folder, name) for folder in folders]
    for path in paths:
        if os.path.isfile(path):
            if not os.access(path, os.X_OK):
                raise UserError(f"hook {path} may not be executed; run: chmod +x '{path}'")
            return path
    raise UserError(f"hook {name} is not in {' nor in '.join(folders)}; put it there (chmod 755), or correct `hook` in its rule")


def write_config(plain, state):
    """Write the configuration (a plain dict) for hooks to read, for nobody else's eyes; return its path."""
    path = os.path.join(state, "config.json")
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(plain, file, ensure_ascii=False)
    os.rename(path + ".new", path)
    return path
