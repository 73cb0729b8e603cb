"""A site whose daemon, hooks, shells and programs can be killed at one chosen call, and what must hold after that.

Knows: how a life of a job goes: dropped, its point reached, the daemon started again if it was it, waited for, looked at.
Must not know: which points there are, how many of them a test takes.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from calls import LASTING, SYNCS, Calls
from roles import kind_of, parents, role_of
from site_kit import Site
from trouble_kit import quick

RULES = ["pull", "submit", "report", "poll", "fetch", "push", "mail", "cancel", "notice"]
# one that tells when two are at work at once, and lasts until its state was reported and asked for
COMMAND = "mkdir busy || echo twice >> twice.log\necho run >> runs.log\nsleep 1.3\ncat in.txt > out.txt\nrmdir busy\n"
RESULTS = ["command", "in.txt", "out.txt", "remote_ties_run.err", "remote_ties_run.res", "runs.log"]
ROLES = re.compile(r"(daemon|hook \w+|rsync \w+|agent \w+, \w+|wrapper|relay \w+|forkserver)$")
BULK = re.compile(r"(^daemon\.out|^state/(log|alive|told|fork)\b.*|/(out|err)|/[^/]+\.XXXXXX|^(web|mirror|compute)/JOB/(?!\.watchties)[a-z_.]+)$")
PAUSE = 0.02


class Point(NamedTuple):
    """The n-th call of this name, on paths of this kind, of one process of this role."""

    role: str
    call: str
    kind: str
    target: str = ""
    number: int = 1

    def __str__(self):
        return f"{self.role}: {self.call} {self.kind}{f' to {self.target}' if self.target else ''}, {self.number}."


def is_lasting(point):
    """Return whether a point is one of those that all have their turn: what makes a marker, a record, a claim, the journal."""
    if not ROLES.match(point.role) or point.role == "forkserver" or not (point.kind or point.call in SYNCS):
        return False
    return point.call not in ("write", "create", "truncate") or not BULK.search(point.kind)


class CrashSite(Site):
    """A site on which one process at a time is killed. names: of the calls that are held; more: for Site."""

    def __init__(self, base, names=LASTING, change=lambda text: text, **more):
        base.mkdir(exist_ok=True)
        quicker = lambda text: change(text.replace("[host.b01]", '[host.b01]\npoll = "1s"'))  # noqa: E731
        super().__init__(base, **{"daemon": 'grace = "1s"', "edit": quick(*RULES), "change": quicker} | more)
        self.calls, self.points = Calls(self._look, names), None
        self.aim, self.hit, self.on_hit, self.late = None, None, None, ""
        self._counts, self._known, self._jobs = Counter(), {}, 0

    def start(self):
        argv = [os.path.join(os.path.dirname(sys.executable), "watchties"), "run"]
        with open(self.base / "daemon.out", "ab") as out:
            self.process = self.calls.popen(argv, env=self.environment(), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        return self

    def __enter__(self):
        """Watch, without a daemon yet."""
        self.calls.__enter__()
        return self

    def __exit__(self, *what):
        try:
            self.aim = None
            self.stop()
        finally:
            self.calls.__exit__(*what)

    # ---- what the calls' thread does ----

    def _look(self, call):
        kinds = [kind_of(path, self.base) for path in call.paths]
        call.role, shells = self._role(call)
        owner = (shells or [call.pid])[0] if call.role != "daemon" else 0
        key = (call.role, call.name, *(kinds + ["", ""])[:2])
        self._counts[owner, key] += 1
        point = Point(*key, self._counts[owner, key])
        if self.points is not None:
            self.points.setdefault(point, call)
        if self.aim and not self.hit and self.aim(point):
            self.hit = point
            call.kill(*shells)
            if self.on_hit:
                self.on_hit()

    def _role(self, call):
        """Return role_of, remembered: of an orphan nobody could tell later whose it was."""
        try:
            key = call.pid, call.argv, os.readlink(f"/proc/{call.pid}/cwd")
        except OSError:
            key = call.pid, call.argv, ""
        if key not in self._known:
            self._known[key] = role_of(call.pid)
        return self._known[key]

    # ---- a life ----

    def begin(self, aim=None, points=None):
        """Begin a life: nothing is counted yet. aim(point): whether it is the one to be killed at; points: a dict that takes all."""
        self._counts.clear()
        self._known.clear()
        self.points, self.hit, self.aim = points, None, aim
        self._jobs += 1
        return f"user{self._jobs % 7}/Exp {self._jobs:04d}"

    def revive(self):
        """Start the daemon again if it was killed; whatever else has ended it is a defect."""
        if self.process.poll() is None:
            return
        if not (self.hit and self.hit.role == "daemon" and self.process.returncode == -9):
            raise AssertionError(f"the daemon has ended ({self.process.returncode}) at {self.hit}\n{self.said()}")
        self.start().wait_ready()

    def follow(self, job, seconds=150):
        """Wait until a job is at its end and all is quiet; return (state, fields) on the web host."""
        end = time.monotonic() + seconds
        while True:
            self.revive()
            state, fields = self.marker(job)
            if state in ("DONE", "FAILED") and self.rests(job):
                return state, fields
            if time.monotonic() > end:
                raise AssertionError(f"{job} does not end after {self.hit}: {state} {fields}\n{self.explain(job)}\n{self.said()}")
            time.sleep(PAUSE)

    def rests(self, job):
        """Return whether nothing is at work or open for a job, and the daemon that was started last has taken in everything."""
        open_flag = self.mirror / job / ".watchties.open"
        return not open_flag.exists() and not any((self.state / "runs").iterdir()) and self.process.poll() is None

    def explain(self, job):
        return self.watchties("explain", job, check=False).stdout


def expected(site, job, state, runs=(1,)):
    """Return what is wrong with a job that has ended, in words: how often it ran, its results in all trees, its letters."""
    wrong = []
    if site.runs(job) not in runs or (site.compute / job / "twice.log").exists():
        wrong.append(f"ran {site.runs(job)} times, not {runs}; two at once: {(site.compute / job / 'twice.log').exists()}")
    if state == "DONE":
        for tree in site.web, site.mirror:
            found = {p.name: p.read_bytes() for p in (tree / job).iterdir() if p.is_file() and not p.name.startswith(".")}
            if sorted(found) != sorted([*RESULTS, "DONE"]):
                wrong.append(f"{tree}: {sorted(found)}")
            elif found["out.txt"] != f"input of {job}\n".encode() or found["runs.log"] != b"run\n" * site.runs(job):
                wrong.append(f"{tree}: results are not whole: {found}")
    letters = [text for text in site.letters() if f"Experiment:  {job.partition('/')[2]}\n" in text]
    if len(letters) != 1:
        wrong.append(f"{len(letters)} letters")
    return wrong


# ---- nothing is left ----

HIDDEN = {"web": set(), "mirror": {".watchties"}, "compute": {".watchties"}}
RECORD = re.compile(r"record\.json|(manifest|made|spared)\.[0-9]+")
ATTEMPT = re.compile(r"begun|begun\..+|exit|reply|intent\..+|killed")
ROOTS = {".watchties.lock", ".watchties.coming"}


def left_over(site, job):
    """Return what should not be there any more: names, locks, processes."""
    return [*_names_left(site, job), *_state_left(site), *_processes_left(site)]


def _names_left(site, job):
    wrong = []
    for place in "web", "mirror", "compute":
        tree = getattr(site, place)
        hidden = {p.name for p in (tree / job).iterdir() if p.name.startswith(".")}
        wrong += [f"{place}: {job}/{name}" for name in hidden - HIDDEN[place]]
        wrong += [f"{place}: {p.name}" for p in tree.iterdir() if p.name.startswith(".") and p.name not in ROOTS]
    wrong += [f"mirror: {p}" for p in (site.mirror / job / ".watchties").iterdir() if not RECORD.fullmatch(p.name)]
    for attempt in (site.compute / job / ".watchties").glob("[0-9]*"):
        wrong += [f"compute: {p}" for p in attempt.iterdir() if not ATTEMPT.fullmatch(p.name)]
    coming = site.mirror / ".watchties.coming"
    return wrong + [f"mirror: {p}" for p in (coming.iterdir() if coming.exists() else ())]


def _state_left(site):
    wrong = [f"{p}" for p in site.state.iterdir() if p.name.endswith((".new", ".tmp"))]
    wrong += [f"{p}" for p in site.mail.iterdir() if p.name.startswith(".")] if site.mail.exists() else []
    wrong += [f"{p}" for p in (site.state / "fork").iterdir()][1:]
    for lock in [*(site.state / "locks").iterdir(), *site.base.glob("*/compties/user_data/.watchties.lock")]:
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wrong.append(f"{lock} is held")
    return wrong


def _processes_left(site):
    """Return zombies of ours and processes that have to do with the site, but the daemon, its forkserver and one relay a host."""
    found, zombies = defaultdict(list), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        line = list(parents(int(entry.name)))
        if line and any(pid == site.process.pid for pid, *_ in line):
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                zombies.append(f"zombie {entry.name}")
            found[role_of(int(entry.name))[0]].append(f"{entry.name} {' '.join(line[0][1])[:200]}")
        elif line and (str(site.base) in " ".join(line[0][1]) or line[0][2].startswith(str(site.base))):
            found["orphan"].append(f"{entry.name} {' '.join(line[0][1])[:200]}")
    usual = {"daemon": 2, "forkserver": 1, "relay vision": 1, "relay b01": 1}  # daemon: and multiprocessing's resource tracker
    return zombies + [f"{role}: {pids}" for role, pids in found.items() if len(pids) > usual.get(role, 0)]


def wait_clean(site, job, seconds=10):
    """Return what is still left over after so many seconds: something may just be ending."""
    end = time.monotonic() + seconds
    while True:
        try:
            wrong = left_over(site, job)
        except OSError as error:  # it went while we looked
            wrong = [str(error)]
        if not wrong or time.monotonic() > end:
            return wrong
        time.sleep(0.1)
