"""What the engine is told: which jobs to look at, what stands on hosts, which hosts and trees are there.

Knows: that a hint of a job counts only once its record was read, from a tree that is certainly there.
Must not know: what is done about it (engine.py), inotify, relays.
"""

import asyncio

from watchties import record, recordfile
from watchties.errors import WatchtiesError
from watchties.jobs import Jobs
from watchties.lanes import Alarms
from watchties.model import PENDING, SUBMITTED
from watchties.roots import Roots, TreeGone

DISK_AGAIN = 5.0  # seconds before a job whose plan met an error of the disk is looked at again


class Hearing:
    """The jobs in hand, and what is known of hosts and trees. put_aside: runs that have ended, whose tree is gone."""

    def __init__(self, config, state, tell, clock):
        self.tell, self.clock = tell, clock
        places = {name: tree.root for name, tree in config.tree.items()}
        self.jobs, self.roots = Jobs(places), Roots(state, places)
        self.down, self.blocked, self.dirty, self.ended, self.put_aside = {}, {}, {}, [], []
        self.kick, self._alarms = asyncio.Event(), Alarms()

    def touch(self, job_id):
        """Have a job looked at in the next pass."""
        self.dirty[job_id] = None
        self.kick.set()

    def read(self, job_id, look=True):
        """Have a job counted from now on as one that its host holds and, if so wished, looked at."""
        if self._take(job_id) and look:
            self.touch(job_id)

    def has_read(self, tree):
        """All jobs of a mirror are counted."""
        self.dispatch.unread.discard(tree)
        self.kick.set()

    def has_left(self, job_id):
        """Return whether a job's directory was removed, and it is not in hand any more. Raises TreeGone."""
        return not self.jobs.get(job_id) and not self.roots.has(job_id, "")

    def touch_all(self):
        """Have every job in hand looked at."""
        self.dirty |= dict.fromkeys(job.id for job in self.jobs)
        self.kick.set()

    def hear_web(self, job_id, **what):
        """Take note of a request that stands on a web host."""
        job = self._take(job_id)
        if job:
            job.hear(**what)
            self.touch(job_id)

    def hear_compute(self, job_id, marker, token):
        """Take note of DONE or FAILED on a compute host; it counts for the current attempt only."""
        job = self.jobs.get(job_id)
        if job and job.record.token == token and job.record.phase in (PENDING, SUBMITTED):
            job.compute = marker
            self.touch(job_id)

    def ask_again(self, host):
        """Have the scheduler of a host asked now for all that runs there, or is just being submitted: its end may have been missed."""
        for job in self.jobs:
            if job.record.host == host and job.record.phase in (PENDING, SUBMITTED):
                job.polled, job.missed = 0.0, True
                self.touch(job.id)

    def host_is(self, host, reason=""):
        """Take note that a host is down, and why, or up again."""
        before = self.down.pop(host, "")
        if reason:
            self.down[host] = reason
        if before != reason:
            self.touch_all()

    def tree_is_back(self, tree):
        """A tree is there again: what was in hand is read anew, and what runs have left meanwhile is taken in first."""
        for job in [job for job in self.jobs if job.id.tree == tree]:
            try:
                self.jobs.update(job, recordfile.load(job.dir))
            except (WatchtiesError, OSError) as error:
                self.tell.refuse(job.id, str(error))
        self.ended, self.put_aside = self.ended + self.put_aside, []
        self.touch_all()

    def _is_away(self, ended):
        """Return whether the tree of a run's jobs is gone, so that its outcome can neither be judged nor written."""
        return any(job.tree in self.roots.gone for job in ended.run.ids())

    def _take(self, job_id):
        """Return a job, in hand from now on; None if its tree is gone, or it is refused."""
        known = self.jobs.get(job_id)
        if known or job_id.tree not in self.roots.roots:  # the latter: a run of an earlier daemon, which had another configuration
            return known
        try:
            job = self.jobs.take(job_id)
            if job.record == record.Record() and self.roots.has(job_id, recordfile.PATH):  # the tree has just come back
                self.jobs.drop(job_id)
                job = self.jobs.take(job_id)
            return job
        except TreeGone:
            self.jobs.drop(job_id)
        except WatchtiesError as error:
            self.tell.refuse(job_id, str(error))
        except OSError as error:
            self.tell.problem("disk", str(error))
            self._alarms.set(job_id, self.clock() + DISK_AGAIN)
        return None
