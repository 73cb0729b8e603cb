"""A machine loses its power at any call that changes its disk: what was not synced is gone, or half there; no job is lost, none runs twice.

One undisturbed job is traced, with what is lasting at each step: no marker, record or list is renamed before it and what it promises
is. Then each point has a life of its own, for each of three ways in which a disk may look afterwards: all processes of the
machine are killed while the call is held, its disk is made what it may be (disk_kit.py), and it is switched on again. The other two go on.
"""

import os
import queue
import random
import re
import signal
import threading
import time
from pathlib import Path

import calls
import pytest
from crash_kit import CrashSite, is_lasting
from disk_kit import WAYS, Disk
from roles import kind_of, parents, role_of

COMMAND = "echo run >> runs.log\nmkdir '{ledger}/busy' || echo twice >> '{ledger}/twice'\necho \"$PWD\" >> '{ledger}/runs'\nsleep 0.3\n" \
          "cat in.txt > out.txt\nrmdir '{ledger}/busy'\n"  # fmt: skip
MACHINES = {"v11": ("v11", "state"), "vision": ("vision",), "b01": ("b01",)}
BOOT_ID = "/proc/sys/kernel/random/boot_id"
BEATS = 'grace = "1s"\nheartbeat = "2s"'  # after some cuts one upon another a relay of 15 s would count as one that does not run
LANES = 3  # sites at once: most of a life is waiting
TRIES = 12  # lives for one point: which calls fall together, and when a notice is sent, differs a little from life to life
A_SITE = 8  # lives: the longer a site lives, the more there is to look at
SHORT = 36.0  # seconds of new lives in the short form
PROMISED = {"in.txt", "command"}
MADE = {"out.txt", "runs.log", "remote_ties_run.res", "remote_ties_run.err"}

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


class PowerSite(CrashSite):
    """A site of three machines, each of which can lose its power. Its letters, and the ledger of runs, are on none of them."""

    def __init__(self, base):
        super().__init__(base, daemon=BEATS)
        self.ledger = base / "ledger"
        self.ledger.mkdir()
        self.disk, self.machine, self.way, self.draw, self.job, self.boots = None, "", "", None, "", 0
        self.wrong = []
        for host in "vision", "b01":
            script = base / host / "compties/scripts/agent.sh"
            script.write_text(script.read_text().replace(BOOT_ID, str(base / f"{host}.boot")))
            (base / f"{host}.boot").write_text("boot-0\n")

    def start(self, *_):
        """Start the daemon; after a power cut, on a machine that has just booted."""
        popen = self.calls.popen
        if self.boots and self.machine == "v11":
            since = int(time.clock_gettime(time.CLOCK_BOOTTIME))
            self.calls.popen = lambda argv, **how: popen(["unshare", "--time", "--boottime", str(5 - since), *argv], **how)
        try:
            return super().start()
        finally:
            self.calls.popen = popen

    def ask(self, machine, aim=None, way="", draw=None, points=None):
        """Drop a job on a machine's disk that is watched from here on; return its name."""
        self.job = job = self.begin(None, points)
        self.machine, self.way, self.draw = machine, way, draw
        where = self.web / job
        where.mkdir(parents=True)
        (where / "in.txt").write_text(f"input of {job}\n")
        (where / "command").write_text(COMMAND.format(ledger=self.ledger))
        (where / ".request").write_text("")
        if self.disk:
            self.disk.close()
        self.disk = Disk([self.base / root for root in MACHINES[machine]], self._at_rest)
        if machine == "vision":  # what the web application writes is its own concern
            self.disk.names[str(where / "PENDING")] = self.disk.names.pop(str(where / ".request"))
        self.aim = aim
        os.rename(where / ".request", where / "PENDING")
        return job

    def _at_rest(self, path):
        """Return whether a path is another job's directory."""
        found = re.search(r"/user_data/([^/.][^/]*/[^/]+)$", path)
        return bool(found) and found[1] != self.job

    # ---- in the calls' thread ----

    def _look(self, call):
        super()._look(call)  # what is held at the cut is not done, above all no sync
        if self.disk and self.points is not None:  # before the disk is watched no job of ours is there
            self.wrong += [f"{call.role}: {what}" for what in self._too_soon(call)]
        if self.disk and not self.hit and (self.aim or self.points is not None):
            self.disk.before(call)

    def _strike(self, call, shells):
        """Take the power from the machine, and give it back with what its disk may hold."""
        daemon = self.process.pid
        call.killed = True
        if self.machine != "v11":
            os.kill(daemon, signal.SIGSTOP)
        for pid in {call.pid, *self._of_machine()}:
            _end(pid)
        self.disk.rewind(self.way, self.draw)
        self.boots += 1
        if self.machine == "b01" and (self.ledger / "busy").exists():  # what was at work is not any more
            (self.ledger / "busy").rmdir()
        if self.machine == "v11":
            return
        (self.base / f"{self.machine}.boot").write_text(f"boot-{self.boots}\n")
        os.kill(daemon, signal.SIGCONT)

    def _of_machine(self):
        """Return the pids of all processes of the machine."""
        for entry in filter(str.isdigit, os.listdir("/proc")):
            line = list(parents(int(entry)))
            if not line or int(entry) == os.getpid():
                continue
            told = " ".join(line[0][1]) + " " + line[0][2]
            ours = str(self.base) in told or any(pid == self.process.pid for pid, *_ in line)
            far = next((host for host in ("vision", "b01") if f"{self.base}/{host}" in told), "")
            role = role_of(int(entry))[0] if ours else ""
            if ours and (self.machine == far or self.machine == "v11" and role not in ("wrapper", "command")):
                yield int(entry)

    def _too_soon(self, call):
        """Yield what a rename publishes although a power cut now would take it, or what it promises, away."""
        if call.name != "rename" or not self.disk.holds(call.target):
            return
        kind, at = kind_of(call.target, self.base), os.path.dirname(call.target)
        if re.search(r"/JOB/(DONE|FAILED|SUBMITTED)$|/record\.json$|/(made|manifest|spared)\.[0-9]+$", kind) and call.role != "wrapper":
            if not self.disk.has_lasting_content(call.path):
                yield f"{kind} is published before its content is lasting"
        for place, names in (("web/JOB/DONE", MADE), ("mirror/JOB/DONE", MADE), ("mirror/JOB/PENDING", PROMISED)):
            if kind == place:
                yield from (f"{kind} before {name} is lasting" for name in names if not self.disk.is_lasting(f"{at}/{name}"))

    def revive(self):
        if self.process.poll() is None:
            return
        assert self.hit and self.machine == "v11", f"the daemon has ended ({self.process.returncode})\n{self.said()}"
        self.start().wait_ready()

    # ---- what must hold ----

    def wrongs(self, job, state, fields):
        """Return what is wrong at the end of a job, in words."""
        ledger = self.ledger / "runs"
        runs = (ledger.read_text() if ledger.exists() else "").splitlines().count(str(self.compute / job))
        lost = state == "FAILED" and fields.get("cause") == "lost" and self.machine == "b01"
        wrong = [f"{state} {fields}"] if state != "DONE" and not lost else []
        wrong += [f"{runs} runs"] if runs != 1 and not (lost and runs == 0) else []
        wrong += ["two at once"] if (self.ledger / "twice").exists() else []
        for tree in (self.web, self.mirror) if state == "DONE" else ():
            found = {p.name: p.read_bytes() for p in (tree / job).iterdir() if p.is_file() and not p.name.startswith(".")}
            if found.keys() != {"DONE"} | PROMISED | MADE or (found["out.txt"], found["runs.log"]) != (f"input of {job}\n".encode(), b"run\n"):
                wrong.append(f"{tree}: {found}")
        letters = [text for text in self.letters() if f"Experiment:  {job.partition('/')[2]}\n" in text]
        ids = {re.search("^Message-ID: *(.*)$", text, re.M)[1] for text in letters}
        if len(ids) != 1 or len(letters) > (2 if self.machine == "v11" else 1):
            wrong.append(f"{len(letters)} letters, {len(ids)} different")
        hidden = [p.name for tree in (self.web, self.mirror, self.compute) if (tree / job).is_dir() for p in (tree / job).iterdir()]
        return wrong + [f"left: {name}" for name in hidden if name.startswith(".") and name != ".watchties"]


def _end(pid):
    """Kill a process and wait until it is gone, or but a zombie."""
    try:
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while time.monotonic() < end and (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            time.sleep(0.002)
    except (ProcessLookupError, FileNotFoundError):
        pass


def of_machine(point, machine):
    """Return whether a call changes this machine's disk, or makes it lasting."""
    first = {"vision": ("web", "vision"), "b01": ("compute", "b01"), "v11": ("mirror", "v11", "state")}[machine]
    return is_lasting(point) and point.kind.partition("/")[0] in first


def traced(folder, machine, jobs=1):
    """Return the points of each of some undisturbed jobs on a machine, in their order, and what was published too soon."""
    found = []
    with PowerSite(folder) as site:
        site.start().wait_ready()
        for _ in range(jobs):
            points = {}
            job = site.ask(machine, points=points)
            state, fields = site.follow(job)
            assert not (wrong := site.wrongs(job, state, fields)), wrong
            site.points = None
            found.append([point for point in points if of_machine(point, machine)])
        return found, site.wrong


def all_points(folder, machine):
    """Return {point: whether only the first job of a site meets it}, of what jobs have in common: the rest is how threads took turns."""
    (first, *later), (again,) = traced(folder / "traced", machine, 3)[0], traced(folder / "again", machine)[0]
    common = {point: False for point in later[0] if point in later[1]}
    return common | {point: True for point in first if point in again and point not in common}


@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_is_published_before_it_would_survive_a_power_cut(tmp_path, machine):
    (points,), wrong = traced(tmp_path / "site", machine)
    assert not wrong, "\n".join(wrong)
    assert any(re.search("/JOB/(DONE|SUBMITTED)|exit", point.target) for point in points), points


class Lane(threading.Thread):
    """Takes points from a queue and gives each a life, on a site that is new every few lives."""

    def __init__(self, folder, waiting, machine, seed, end):
        super().__init__()
        self.folder, self.waiting, self.machine, self.seed, self.end = folder, waiting, machine, seed, end
        self.cut, self.missed, self.wrong, self.lives, self.site = 0, [], [], 0, None

    def run(self):
        while time.monotonic() < self.end:
            try:
                turn = self.waiting.get_nowait()
            except queue.Empty:
                break
            point, way, *_ = turn
            try:
                self._live(*turn)
            except Exception as error:
                self.wrong.append(f"{point}, {way}: {error!r}"[:5000])
                self._leave()
        self._leave()

    def _live(self, point, way, fresh, tries):
        if fresh or self.lives % A_SITE == 0:
            self._leave()
        if not self.site:
            self.site = PowerSite(self.folder / f"{self.name}.{self.lives}").__enter__()
            self.site.start().wait_ready()
        self.lives += 1
        site, draw = self.site, random.Random(f"{self.seed} {point} {way}")
        boots = site.boots
        job = site.ask(self.machine, lambda found: found == point, way, draw)
        site.follow(job)
        if site.boots == boots:
            self.waiting.put((point, way, fresh, tries - 1)) if tries > 1 else self.missed.append(f"{point}, {way}")
            return
        self.cut += 1
        self.wrong += [f"{point}, {way}: {what}" for what in site.wrongs(job, *site.follow(job))]

    def _leave(self):
        site, self.site = self.site, None
        try:
            if site:
                site.__exit__()
        except Exception as error:
            self.wrong.append(f"at the end of a site: {error!r}")


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_a_power_cut_at_any_call_loses_nothing_and_repeats_nothing(tmp_path, machine, seed, long, figure):
    points = all_points(tmp_path, machine)
    lives, waiting = [(point, way, fresh) for point, fresh in points.items() for way in WAYS], queue.SimpleQueue()
    for life in random.Random(seed).sample(lives, len(lives)):
        waiting.put((*life, TRIES))
    end = time.monotonic() + (float("inf") if long else SHORT / len(MACHINES))
    lanes = [Lane(tmp_path, waiting, machine, seed, end) for _ in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    cut, missed, wrong = sum(lane.cut for lane in lanes), [m for lane in lanes for m in lane.missed], [w for lane in lanes for w in lane.wrong]
    figure(f"{machine}: {cut} power cuts at {len(points)} points in {len(WAYS)} ways, {len(missed)} not reached; {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
    assert cut and not missed, missed
