"""Thousands of jobs through the three trees of one site, with faults all the while: who drops them, who breaks things, who counts.

Knows: what a job of the soak is, which processes are killed, what must be true of each job and of the daemon at the end.
Must not know: how it is started and shown (soak.py, test_soak.py).

The daemon is killed, and its journal deleted, in the first half only: in the second it lives, and what it holds must not
grow. Hooks, rsync, agent, relay and the forkserver are killed, and the configuration reloaded, from the first job to the last.
A wrapper is never killed here: a job whose wrapper dies is lost by design, and the crash sweep looks at that.
"""

import contextlib
import ctypes
import os
import random
import re
import resource
import signal
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from site_kit import Site

SUBREAPER = 36  # prctl(2): orphans become our children, so that the processor time of all is known when they have ended
A_USER = 40  # jobs
COMMAND = "echo run >> runs.log\ncat in.txt > out.txt\n"
LONG = "echo run >> runs.log\nexec sleep 600\n"
REQUEUED, CANCELLED = 0.05, 0.02  # shares of the jobs
DAEMON = 'grace = "2s"\nreconcile = "20s"\njournal_keep = "1m"\n'
VICTIM = re.compile(r"(rsync) |agent\.sh (?!wrapper)|(relay)\.py|multiprocessing\.(forkserver)")
FILES = {"DONE", "command", "in.txt", "out.txt", "remote_ties_run.err", "remote_ties_run.res", "runs.log"}


@dataclass
class Job:
    """One job of the soak. wanted: how often its command is to run; asked: how often it has been asked for so far."""

    name: str
    requeue: bool
    cancel: bool
    asked: int = 1

    @property
    def wanted(self):
        return 2 if self.requeue else 1


@dataclass
class Row:
    """What was measured when so many jobs had ended. Memory in MB, cost in ms of processor a job since the row before."""

    jobs: int
    seconds: float
    cost: float
    memory: float
    descriptors: int
    threads: int
    journal_mb: float
    history: int
    state_files: int
    log_mb: float
    faults: int


class Soak:
    """count: jobs; every: seconds between two faults; at_once: jobs under way; each: jobs between two rows; tell: is given each Row."""

    def __init__(self, base, count, seed, *, every=0.7, at_once=60, each=2000, tell=lambda row: None):
        self.count, self.every, self.at_once, self.each, self.tell = count, every, at_once, each, tell
        self.draw = random.Random(seed)
        self.site = Site(base, max_running=40, daemon=DAEMON)
        self.under_way, self.ended, self.faults, self.rows = {}, [], Counter(), []
        self.dropped, self.began, self.spent = 0, 0.0, 0.0

    def run(self):
        """Let all jobs go their way; return the breaches, one line each."""
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        self.began = time.monotonic()
        self.site.start()
        try:
            self._all_end()
            self.site.wait(self.site.quiet, 120, "all at rest")
            self._row()
            self.site.wait_ready()
            code = self.site.stop()
            self.site.process = None
            return [*([f"the daemon ended with {code}"] if code else []), *self.breaches()]
        finally:
            self.site.stop()
            ctypes.CDLL(None).prctl(SUBREAPER, 0, 0, 0, 0)

    # ---- what goes on ----

    def _all_end(self):
        fault_at, moved = time.monotonic() + self.every, time.monotonic()
        while len(self.ended) < self.count:
            while self.dropped < self.count and len(self.under_way) < self.at_once:
                self._drop()
            before = len(self.ended)
            for job in list(self.under_way.values()):
                self._look(job)
            now = time.monotonic()
            if now > fault_at:
                self._fault()
                fault_at = now + self.every * self.draw.uniform(0.5, 1.5)
            if len(self.ended) // self.each > before // self.each and len(self.ended) < self.count:
                self._row()
            moved = now if len(self.ended) > before else moved
            if now - moved > 120:
                raise AssertionError(f"nothing has ended for two minutes; such as {list(self.under_way)[:5]}\n{self.site.said()}")
            _reap(self.site.process.pid)
            time.sleep(0.03)

    def _drop(self):
        self.dropped += 1
        kind = self.draw.random()
        job = Job(f"user{self.dropped // A_USER}/E{self.dropped}", kind < REQUEUED, REQUEUED <= kind < REQUEUED + CANCELLED)
        self.site.drop(job.name, command=LONG if job.cancel else COMMAND)
        self.under_way[job.name] = job

    def _look(self, job):
        """Take a job that has ended from those under way; ask once more for one that is to be requeued; cancel one that runs."""
        state, fields = self.site.marker(job.name)
        if job.cancel:
            if state == "SUBMITTED" and self.site.runs(job.name) and job.asked == 1:
                job.asked += 1
                self.site.touch(job.name, "CANCEL")
            over = state == "FAILED"
        else:
            over = state == "FAILED" or (state == "DONE" and fields.get("attempt") == str(job.asked))
        if over and state == "DONE" and job.asked < job.wanted:
            job.asked += 1
            self.site.touch(job.name)
        elif over:
            self.ended.append(self.under_way.pop(job.name))

    # ---- what is broken ----

    def _fault(self):
        first_half = len(self.ended) < self.count / 2
        kinds = {"a process": 8, "reload": 1, **({"daemon": 1, "journal": 0.3} if first_half else {})}
        kind = self.draw.choices(list(kinds), list(kinds.values()))[0]
        if kind == "a process":
            if found := self._victims():
                what = self.draw.choice(sorted(found))
                self.faults[what] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.draw.choice(found[what]), signal.SIGKILL)
        elif kind == "reload":
            self.faults[kind] += 1
            self.site.wait_ready()  # before that, SIGHUP has its default
            self.site.process.send_signal(signal.SIGHUP)
        else:
            self.faults[kind] += 1
            self.site.kill()
            self._journal_goes(kind)
            self.site.start()

    def _journal_goes(self, kind):
        for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm") if kind == "journal" else ():
            (self.site.state / name).unlink(missing_ok=True)

    def _victims(self):
        """Return {what it is: pids} of the processes of this site that may be killed."""
        found = {}
        for pid, words, cwd in _processes():
            if str(self.site.base) not in words + cwd or pid == self.site.process.pid:
                continue
            if said := VICTIM.search(words):
                found.setdefault(next(filter(None, said.groups()), "agent"), []).append(pid)
            if hook := re.search(r"/runs/([a-z]+)-", cwd):
                found.setdefault(f"hook {hook[1]}", []).append(pid)
        return found

    # ---- what is measured ----

    def _row(self):
        pid, state = self.site.process.pid, self.site.state
        cost, before = self._processor(), self.spent
        jobs = len(self.ended) - (self.rows[-1].jobs if self.rows else 0)
        self.spent = cost
        files = [path for path in state.rglob("*") if path.is_file()]
        log = sum(path.stat().st_size for path in files if path.parent.name == "log")
        self.rows.append(Row(
            len(self.ended), time.monotonic() - self.began, 1000 * (cost - before) / max(1, jobs), _memory(pid),
            len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), _size(state.glob("journal.sqlite*")),
            _history(state / "journal.sqlite"), len(files), log / 1e6, self.faults.total(),
        ))  # fmt: skip
        self.tell(self.rows[-1])

    def _processor(self):
        """Return the processor seconds of all that this process has started, and what those have."""
        ours = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ours.ru_utime + ours.ru_stime + sum(_used(pid) for pid, words, cwd in _processes() if str(self.site.base) in words + cwd)

    # ---- what must be true ----

    def breaches(self):
        """Return what is not as it must be, a line each."""
        return [*self._jobs(), *self._mails(), *self._leftovers(), *self._growth()]

    def _jobs(self):
        for job in self.ended:
            state, fields = self.site.marker(job.name)
            ran, there = self.site.runs(job.name), {path.name for path in (self.site.web / job.name).iterdir()}
            if job.cancel:
                if (state, fields.get("cause")) != ("FAILED", "cancelled") or ran != 1:
                    yield f"{job.name}: cancelled, but {state} {fields.get('cause')}, {ran} runs"
            elif (state, ran) != ("DONE", job.wanted) or there != FILES:
                yield f"{job.name}: {state} {fields.get('cause', '')}, {ran} runs for {job.wanted} asked for, {sorted(there)}"
            elif (self.site.web / job.name / "out.txt").read_text() != f"input of {job.name}\n":
                yield f"{job.name}: the result is not whole"

    def _mails(self):
        """One mail for each job's last attempt, and for one before it unless that was overtaken; a repeat has the same Message-ID."""
        sent = {}  # experiment -> Message-ID -> how often
        for text in self.site.letters():
            about, number = (re.search(f"^{word}: *(.*)$", text, re.M)[1] for word in ("Experiment", "Message-ID"))
            sent.setdefault(about, Counter())[number] += 1
        for job in self.ended:
            if not 1 <= len(ids := sent.get(job.name.partition("/")[2], {})) <= job.wanted:
                yield f"{job.name}: {len(ids)} different mails for {job.wanted} attempts"
        again = sum(ids.total() - len(ids) for ids in sent.values())
        killed = sum(self.faults[what] for what in ("hook mail", "forkserver", "daemon", "journal"))
        if again > killed:
            yield f"{again} repeated mails, {killed} kills that may have caused one"

    def _leftovers(self):
        for tree in self.site.web, self.site.mirror, self.site.compute:
            hidden = [path for path in tree.rglob(".*") if not path.name.startswith(".watchties") or path.name == ".watchties.open"]
            yield from (f"left over: {path}" for path in hidden)
        yield from (f"left over: {path}" for path in (self.site.state / "runs").iterdir())
        end = time.monotonic() + 20
        while (left := [(p, w) for p, w, cwd in _processes() if str(self.site.base) in w + cwd and p != os.getpid()]) and time.monotonic() < end:
            time.sleep(0.1)
            _reap(0)
        yield from (f"still runs: {pid} {words}" for pid, words in left)

    def _growth(self):
        """The second half, in which the daemon lives: its second row beside its last one. A short soak has no such rows."""
        rows = [row for row in self.rows if row.jobs > self.count / 2]
        if len(rows) < 4 or self.each < 500:
            return
        first, last = rows[1], rows[-1]
        thousands = (last.jobs - first.jobs) / 1000
        for name, grown, most in (
            ("memory of the daemon, MB per 1,000 jobs", (last.memory - first.memory) / thousands, 0.5),
            ("descriptors", last.descriptors - first.descriptors, 4),
            ("threads", last.threads - first.threads, 2),
            ("journal, MB per 1,000 jobs (a row of the index for each)", (last.journal_mb - first.journal_mb) / thousands, 0.5),
            ("files in the state directory", last.state_files - first.state_files, 20),
            ("cost of a job", sum(r.cost for r in rows[-2:]) / sum(r.cost for r in rows[:2]), 1.15),
        ):
            if grown > most:
                yield f"{name}: grew by {grown:.2f}, at most {most} is flat"


def _processes():
    """Return [(pid, command line, working directory)] of all processes."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(entry), words, os.readlink(f"/proc/{entry}/cwd")))
    return found


def _used(pid):
    """Return the processor seconds of a process and of its children that it has waited for."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _memory(pid):
    return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024 / 1e6


def _size(paths):
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total / 1e6


def _history(path):
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM history").fetchone()[0]


def _reap(daemon):
    """Wait for orphans that became our children and have ended; the daemon is Popen's to wait for."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != daemon:
            os.waitpid(ended.si_pid, 0)
