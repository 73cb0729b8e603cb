"""Disks that fill up, go read-only, go away and come back; processes with limits: what the tests of resources share.

Mounts are made in a mount namespace of the test's own process, so that nothing is left of them when it is killed.
"""

import contextlib
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from site_kit import Site
from trouble_kit import told

CLONE_NEWNS = 0x00020000
KNOWN = re.compile(r"\.watchties(\.(tree|lock|coming)|/.*)?$")  # hidden names of ours that may stay
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def own_mounts():
    """Give this process a mount namespace of its own for one test."""
    if os.geteuid():
        pytest.skip("only root may mount disks of the test's own")
    home, before = os.getcwd(), os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNS) or subprocess.run(["mount", "--make-rprivate", "/"]).returncode:
            pytest.skip("no mount namespace is to be had here")
        yield
    finally:
        libc.setns(before, CLONE_NEWNS)
        os.close(before)
        os.chdir(home)


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


class Disk:
    """A small disk (tmpfs) below a directory, which can get into every trouble."""

    def __init__(self, where, size="48m", inodes=20_000):
        self.where, self.covered = Path(where), False
        self.where.mkdir(parents=True, exist_ok=True)
        self.store = self.where.parent / f".disk.{self.where.name}"
        self.store.mkdir()
        mount("-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes},mode=755", "tmpfs", self.store)
        self.sealed = self.where.parent / f".sealed.{self.where.name}"
        self.sealed.mkdir()
        mount("--bind", self.store, self.sealed)
        mount("-o", "remount,bind,ro", self.sealed)
        self.plug()

    def plug(self):
        """Mount it."""
        mount("--bind", self.store, self.where)

    def unplug(self):
        """Unmount it: an empty mount point is left."""
        subprocess.run(["umount", "-l", self.where], check=True)

    def full(self):
        """Not a byte more goes on it."""
        with open(self.store / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)
        with open(self.store / "ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x")

    def no_inodes(self):
        """Not a file more can be made on it."""
        (self.store / "many").mkdir()
        with contextlib.suppress(OSError):
            for number in range(1_000_000):
                os.close(os.open(self.store / f"many/{number}", os.O_CREAT))

    def read_only(self):
        """Nothing on it can be changed by its path: a second mount covers it, as no disk with a file that is being written becomes
        read-only unless it breaks. That mount is read-only from its first moment on, for the same reason."""
        mount("--bind", self.sealed, self.where)
        self.covered = True

    def well(self):
        """All is over."""
        if self.covered:
            self.unplug()
            self.covered = False
        with contextlib.suppress(FileNotFoundError):
            (self.store / "ballast").unlink()
        if (self.store / "many").exists():
            subprocess.run(["rm", "-rf", self.store / "many"], check=True)


class Place(Site):
    """A site whose parts may lie on Disks. prefix: the words before the daemon's; environ: more for it."""

    def __init__(self, base, *, prefix=(), environ=None, disks=(), sizes=None, **more):
        places = {"web": "vision/compties/user_data", "mirror": "v11/user_data", "compute": "b01/compties/user_data", "state": "state"}
        self.prefix, self.environ = list(prefix), environ or {}
        self.disks = {}
        super().__init__(base, **more)
        for name in disks:
            self.disks[name] = Disk(Path(base) / places[name], **(sizes or {}))

    def environment(self):
        return super().environment() | self.environ

    def start(self):
        argv = [*self.prefix, os.path.join(os.path.dirname(sys.executable), "watchties"), "run"]
        with open(self.base / "daemon.out", "ab") as out:
            self.process = subprocess.Popen(argv, env=self.environment(), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        return self

    def status(self):
        return self.watchties("status", check=False).stdout

    def says(self, *words, seconds=60):
        """Wait until one line of `watchties status` has all these words; return it."""
        def line():
            return next((line for line in self.status().splitlines() if all(word in line for word in words)), None)

        return self.wait(line, seconds, f"status has a line with {words}: {self.status()}")

    def all_end(self, jobs, seconds=120, runs=1):
        """Wait until jobs are DONE and all is quiet; nothing lost, nothing twice, nothing half left."""
        left = set(jobs)

        def over():
            left.difference_update([job for job in left if self.marker(job)[0] == "DONE" and self.runs(job) >= runs])
            return not left

        self.wait(over, seconds, f"{len(left)} of {len(jobs)} not DONE, such as {sorted(left)[:1]}")
        self.wait(self.quiet, 60, "quiet")
        assert {job: self.runs(job) for job in jobs} == dict.fromkeys(jobs, runs)
        for job in jobs:
            assert (self.web / job / "out.txt").read_text() == f"input of {job}\n"
        self.wait(lambda: not self.left_over(), 20, "nothing half left")

    def left_over(self):
        """Return what no run should leave behind in the trees: hidden names of ours, rsync's temporary files."""
        found = []
        for tree in self.web, self.mirror, self.compute:
            for path in tree.rglob(".*"):
                name = str(path.relative_to(tree))
                inside = ".watchties" + name.partition("/.watchties/")[2] if "/.watchties/" in name else "/".join(name.split("/")[-1:])
                if "/.watchties/" not in name and not KNOWN.fullmatch(inside):
                    found.append(str(path))
                if path.name == ".watchties.coming":
                    found += [str(room) for room in path.iterdir()]
        return found

    def told_once(self):
        """Assert that the administrator was told nothing twice."""
        lines = [line for line in told(self) if line and not line.endswith(" more)")]
        news = [line for line in lines if " takes " in line or " gave up" in line or " has failed " in line or " is held back" in line]
        assert len(news) == len(set(news)), news


def job_names(count, what="e"):
    return [f"user{number % 5}/{what}{number}" for number in range(count)]


def children_of(pid):
    """Return the pids of all processes below one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]
