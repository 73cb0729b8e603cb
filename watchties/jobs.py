"""The jobs in hand: those that something is left to do for, as the daemon holds them in memory.

Knows: a job's cached record, what was last heard of it, which places runs have locked; how many attempts each host has.
Must not know: what is to be done. Everything here can be dropped at any moment and read again from the disk.
"""

import errno
import os
from collections import Counter
from dataclasses import dataclass, field, replace

from watchties import markers, record, recordfile
from watchties.errors import Unsafe
from watchties.model import PENDING, RECORD_DIR, SUBMITTED, JobId, user_of
from watchties.seen import Seen, WebHint


@dataclass
class Job:
    """One job in hand.

    heard: what of `web` was announced since a run last began to look there. busy: place -> run. polled: when its
    scheduler was last asked. missed: its end may have been, as nobody watched its host. opened: its flag is known to stand.
    lies_on: what lies_on() said of it when it was taken in hand.
    """

    id: JobId
    dir: str
    record: record.Record
    web: WebHint = WebHint()
    heard: frozenset = frozenset()
    compute: str = ""
    busy: dict = field(default_factory=dict)
    polled: float = 0.0
    missed: bool = False
    reason: str = ""
    opened: bool = False
    lies_on: tuple = ()

    @property
    def user(self):
        return user_of(self.id.job)

    def hear(self, **what):
        """Take note of what stands on the web host, as it was announced just now."""
        self.web, self.heard = replace(self.web, **what), self.heard.union(what)

    def look_at_web(self):
        """A run begins that will say what stands on the web host: from now on an announcement may be newer than what it says."""
        self.heard = frozenset()

    def seen_by_run(self, **what):
        """Take note of what a run has seen on the web host, but for what was announced since it began."""
        self.web = replace(self.web, **{key: value for key, value in what.items() if key not in self.heard})

    def seen_at_host(self, what, now):
        """Take note of how a run has seen the attempt: "lost" or "" overtakes an earlier "lost", but no end that was announced meanwhile."""
        self.polled, self.compute = now, what or ("" if self.compute == "lost" else self.compute)

    def seen(self):
        """Return the job as it stands now, for decide()."""
        standing = markers.look(self.dir)
        self.opened = standing.open
        busy, removed = frozenset(self.busy), self.is_removed()
        return Seen(self.id, self.record, standing, self.web, self.compute, busy, self.polled, removed)

    def is_removed(self):
        """Return whether somebody has removed the record, or the whole directory, that stood in the mirror.

        Raises OSError where not the job is gone, but its tree, or a disk that was mounted there.
        """
        rec = self.record
        if not (rec.accepted or rec.pulling) or os.path.lexists(os.path.join(recordfile.directory(self.dir), recordfile.FILE)):
            return False
        if not self.lies_on or lies_on(self.root, self.dir) != self.lies_on:
            raise OSError(errno.ENODEV, "another disk lies there than before; is it mounted?", self.dir)
        self.opened = False
        return True

    @property
    def root(self):
        return self.dir[: -len(self.id.job) - 1]


class Jobs:
    """The jobs in hand by JobId. roots: tree -> the mirror's root."""

    def __init__(self, roots):
        self.roots, self._jobs = roots, {}
        self.attempts = Counter()  # host -> attempts that it may hold

    def __len__(self):
        return len(self._jobs)

    def __iter__(self):
        return iter(self._jobs.values())

    def get(self, job_id):
        """Return a job in hand, or None."""
        return self._jobs.get(job_id)

    def take(self, job_id):
        """Return a job, read from the disk if it is not in hand. Raises Unsafe for a damaged record or a link."""
        job = self._jobs.get(job_id)
        if job is None:
            where = self.directory(job_id)
            refuse_links(self.roots[job_id.tree], job_id.job)
            job = self._jobs[job_id] = Job(job_id, where, recordfile.load(where), lies_on=lies_on(self.roots[job_id.tree], where))
            self._count(job.record, 1)
        return job

    def directory(self, job_id):
        """Return where a job lies in the mirror."""
        return os.path.join(self.roots[job_id.tree], job_id.job)

    def update(self, job, new):
        """Give a job its new record, which is on disk."""
        self._count(job.record, -1)
        if new.token != job.record.token:
            job.compute, job.polled, job.missed = "", 0.0, False  # DONE of a short job is heard before its submit has ended: kept
        job.record, job.lies_on = new, job.lies_on or lies_on(job.root, job.dir)
        self._count(new, 1)

    def drop(self, job_id):
        """Forget a job that is at rest."""
        job = self._jobs.pop(job_id, None)
        if job:
            self._count(job.record, -1)

    def _count(self, rec, step):
        if rec.contacted and rec.phase in (PENDING, SUBMITTED):
            self.attempts[rec.host] += step
        if rec.old:
            self.attempts[rec.old.host] += step


def lies_on(root, job_dir):
    """Return what tells a removed job from a tree that is not mounted: (device and inode of the root, device of the job); () if neither is there."""
    try:
        top, path = os.stat(root), job_dir
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        return top.st_dev, top.st_ino, os.lstat(path).st_dev
    except OSError:
        return ()


def refuse_links(root, job):
    """Raise Unsafe if a job's directory, one above it in the tree, or that of its record is a symbolic link: it would leave the tree."""
    path = root
    for part in (*job.split("/"), RECORD_DIR):
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise Unsafe(f"{path} is a symbolic link; a job, and its record, must be a real directory: remove the link")
