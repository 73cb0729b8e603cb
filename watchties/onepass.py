"""One pass: all that can be done now is done, then it ends. The daemon without what goes on for ever.

Knows: when nothing more can be done now; jobs that are to be looked at by name, and what came of them.
Must not know: the command line, locks, where names come from; what a marker means.

Every host is asked once, every mirror read once, and what submitted jobs do is asked once. What runs then is waited for, and
what follows from it. It ends when no run is at work and what is left waits: for a job that runs, for the time of its next
try, for a host that is down, for room. All of that is on disk, and the next pass, or the daemon, goes on with it.
"""

import asyncio
import os
from collections import Counter

from watchties import recordfile, systemd
from watchties.daemon import Daemon
from watchties.errors import BadJobName, WatchtiesError
from watchties.model import PENDING, JobId, check_job_name, printable

GLANCE = 0.05  # seconds between two looks whether all is done
TO_SUBMIT = ("pull", "submit", "report", "cancel")  # cancel: an attempt that is overtaken must be ended before the next begins


class OnePass(Daemon):
    """A pass over all jobs. more(): names (JOB or TREE:JOB) that have come since the last call."""

    def __init__(self, config, state, hooks, more=lambda: ()):
        super().__init__(config, state, hooks)
        self.more, self.named, self.wanted, self.did = more, {}, set(), Counter()
        self._unheard, self._once_more = set(self.links), set()
        self.teller.on_phase = lambda job: self.did.update([job.record.phase])
        for link in self.links.values():
            link.trigger, link.poll = "poll", None  # its markers are listed, and then again when a name comes
            link.listener.down = self._down

    # ---- what a pass does not do ----

    def _watch(self, tree, watch):
        """Nothing is watched: the mirror is read once."""

    def _go_on(self):
        self._spawn(self._until_done())

    # ---- when it ends ----

    async def _until_done(self):
        """Have the pass end when nothing more can be done now."""
        while self._take_names() or not self._is_done():
            await asyncio.sleep(GLANCE)
        await self._notices.send_gathered()
        self.stop.set()

    def _is_done(self):
        reads = [scan for scan in self._scans.values() if not scan.done()]
        return not (self._unheard or reads or self.journal.fresh) and self.engine.is_at_rest()

    def _listed(self, host):
        super()._listed(host)
        self._heard(host)

    def _heard(self, host):
        """Take note that a host was listed; one for which a name has come meanwhile is listed once more."""
        if host in self._once_more:
            self._once_more.discard(host)
        else:
            self._unheard.discard(host)

    def _down(self, host, reason):
        self.engine.host_is(host, reason)
        self._unheard.discard(host)
        self._once_more.discard(host)

    # ---- jobs by name ----

    def _take_names(self):
        """Have jobs looked at whose names have come; return whether there were any."""
        new = {name: self._jobs_called(name) for name in self.more()}
        self.named |= new
        jobs = {job for found in new.values() if not isinstance(found, str) for job in found}
        self.wanted |= jobs
        for job in jobs:
            if os.path.isdir(self.engine.jobs.directory(job)):
                self.engine.touch(job)
        for host in {self.config.tree[job.tree].web for job in jobs} - self.engine.down.keys():
            (self._once_more if host in self._unheard else self._unheard).add(host)
            self.links[host].list_again()
        return bool(new)

    def _jobs_called(self, name):
        """Return the JobIds that a name may mean, or why it is refused."""
        tree, _, rest = name.partition(":")
        wanted = {tree: rest} if tree in self.config.tree and rest else dict.fromkeys(self.config.tree, name)
        found, why = [], ""
        for tree, job in wanted.items():
            try:
                found.append(JobId(tree, check_job_name(job, self.config.tree[tree].jobs)))
            except BadJobName as error:
                why = str(error)
        return found or why

    def told(self):
        """Return (name, good, text) for each name that has come: what the disk says of its job by now."""
        return [(printable(name), *self._told_of(found)) for name, found in self.named.items()]

    def _told_of(self, found):
        if isinstance(found, str):
            return False, found
        known = [text for job in found if (text := self._stands(job))]
        webs = ", ".join(dict.fromkeys(self.config.tree[job.tree].web for job in found))
        down = [self.engine.down[self.config.tree[job.tree].web] for job in found if self.config.tree[job.tree].web in self.engine.down]
        return (True, known[0]) if known else (False, down[0] if down else f"no PENDING stands for it, on {webs} or in the mirror")

    def _stands(self, job):
        """Return how a job stands in its mirror, "" if nothing was ever asked for there."""
        try:
            rec = recordfile.load(self.engine.jobs.directory(job))
        except (WatchtiesError, OSError) as error:
            return str(error)
        held = self.engine.jobs.get(job)
        waits = f"; {held.reason}" if held and held.reason else ""
        if not rec.attempt:
            return f"not brought here yet{waits}" if rec.pulling or (held and held.web.pending) else ""
        where = f" on {rec.host}" if rec.host else ""
        return f"{rec.phase or 'accepted'}, attempt {rec.attempt}{where}{waits if rec.phase == PENDING else ''}"

    def summary(self):
        """Return one line: what came about in this pass, and how it stands."""
        did = ", ".join(f"{count} {phase}" for phase, count in sorted(self.did.items()))
        return f"{did or 'nothing new'}; {systemd.how_it_stands(self.engine)}"


class Submitting(OnePass):
    """A pass over the jobs that are named, to SUBMITTED and no further."""

    looks_at_all = False  # the others are counted: their hosts hold them

    def __init__(self, config, state, hooks, more):
        super().__init__(config, state, hooks, more)
        self.engine.dispatch.may = lambda job, rule: rule in TO_SUBMIT and job in self.wanted

    def _announced(self, said):
        self._take_names()  # a name may have come after the listing had begun
        if JobId(said.tree, said.job) in self.wanted:
            super()._announced(said)

    def _listed(self, host):
        """Nobody is asked how jobs stand."""
        self._heard(host)
