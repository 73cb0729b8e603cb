"""A site whose daemon, hooks, shells and programs can be killed at one chosen call, and what must hold after that.

Knows: how a life of a job goes: dropped, its point reached, the daemon started again if it was it, waited for, looked at.
Must not know: which points there are, how many of them a test takes.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from typing import NamedTuple

from calls import LASTING, NETWORK, SYNCS, Calls
from roles import kind_of, role_of
from site_kit import Site
from trouble_kit import quick

RULES = ["pull", "submit", "report", "poll", "fetch", "push", "mail", "cancel", "notice"]
# one that tells when two are at work at once, and lasts until its state was reported and asked for
COMMAND = "mkdir busy || echo twice >> twice.log\necho run >> runs.log\nsleep 1.3\ncat in.txt data.bin > out.txt\nrmdir busy\n"
HOLD = "mkdir busy || echo twice >> twice.log\necho run >> runs.log\nsleep 100\n"  # until it is stopped
ROLES = re.compile(r"(daemon|hook \w+|rsync \w+|agent \w+, \w+|wrapper|relay \w+|forkserver)$")
BULK = re.compile(r"(^daemon\.out|^state/(log|alive|told|fork)\b.*|/(out|err)|/[^/]+\.XXXXXX|^(web|mirror|compute)/JOB/(?!\.watchties)[a-z_.]+)$")
STREAMS, STREAM = re.compile(r"socket:|pipe:|anon_inode:inotify"), "stream"
PAUSE = 0.05


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


def is_traffic(point):
    """Return whether a point is a call on a socket, a pipe or a queue of events, or a write of many bytes."""
    if not (ROLES.match(point.role)):
        return False
    return point.call in NETWORK and point.kind == STREAM or point.call == "write" and bool(BULK.search(point.kind))


class CrashSite(Site):
    """A site on which one process at a time is killed. names: of the calls that are held; data: of every job; more: for Site."""

    def __init__(self, base, names=LASTING, data=b"data", change=lambda text: text, **more):
        base.mkdir(exist_ok=True)
        quicker = lambda text: change(text.replace("[host.b01]", '[host.b01]\npoll = "1s"'))  # noqa: E731
        super().__init__(base, **{"daemon": 'grace = "1s"', "edit": quick(*RULES), "change": quicker} | more)
        self.calls, self.points = Calls(self._look, names, lambda name, path: name != "read" or not path.startswith("/")), None
        self.aim, self.hits, self.kills, self.spoil, self.seen, self.data = None, [], 1, None, None, data
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
        kinds = [STREAM if STREAMS.match(path) else kind_of(path, self.base) for path in call.paths]
        call.role, shells = self._role(call)
        owner = (shells or [call.pid])[0] if call.role != "daemon" else 0
        key = (call.role, call.name, *(kinds + ["", ""])[:2])
        self._counts[owner, key] += 1
        point = Point(*key, self._counts[owner, key])
        if self.points is not None:
            self.points.setdefault(point, call)
        if self.seen:
            self.seen(point)
        if self.aim and len(self.hits) < self.kills and self.aim(point):
            self.hits.append(point)
            self._strike(call, shells)

    def _strike(self, call, shells):
        """Do to the site what is done at the point."""
        call.kill(*shells)
        if self.spoil and call.role != "daemon":
            self.spoil(self)

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

    @property
    def hit(self):
        """The Point of the last kill of this life, or None."""
        return self.hits[-1] if self.hits else None

    def begin(self, aim=None, points=None, spoil=None, kills=1):
        """Begin a life: nothing is counted yet. aim(point): whether it is one to be killed at; points: a dict that takes all.

        spoil(site): called after each kill, while the daemon is dead if it was the daemon, else beneath it. kills: how many, at most.
        """
        self._counts.clear()
        self._known.clear()
        self.points, self.hits, self.aim, self.spoil, self.kills = points, [], aim, spoil, kills
        return self.new_name()

    def has_hit(self, role):
        return any(point.role == role for point in self.hits)

    def new_name(self):
        self._jobs += 1
        return f"user{self._jobs % 7}/Exp {self._jobs:04d}"

    def revive(self):
        """Start the daemon again if it was killed; whatever else has ended it is a defect."""
        if self.process.poll() is None:
            return
        if not (self.has_hit("daemon") and self.process.returncode == -9):
            raise AssertionError(f"the daemon has ended ({self.process.returncode}) at {self.where()}\n{self.said()}")
        self.process.wait()
        if self.spoil:
            self.spoil(self)
        self.start().wait_ready()

    def put(self, job, command=COMMAND):
        """Drop a job."""
        self.drop(job, command, {"data.bin": self.data})

    def follow(self, job, seconds=150):
        """Wait until a job is at its end and all is quiet; return (state, fields) on the web host."""
        end = time.monotonic() + seconds
        while True:
            self.revive()
            state, fields = self.marker(job)
            if state in ("DONE", "FAILED") and self.rests(job):
                return state, fields
            if time.monotonic() > end:
                raise AssertionError(f"{job} does not end after {self.where()}: {state} {fields}\n{self.explain(job)}\n{self.said()}")
            time.sleep(PAUSE)

    def rests(self, job):
        """Return whether nothing is at work or open for a job, and the daemon that was started last has taken in everything."""
        open_flag = self.mirror / job / ".watchties.open"
        return not open_flag.exists() and not any((self.state / "runs").iterdir()) and self.process.poll() is None

    def where(self):
        """Return the points at which something was killed, as text."""
        return " and ".join(map(str, self.hits)) or "no point"

    def explain(self, job):
        return self.watchties("explain", job, check=False).stdout
