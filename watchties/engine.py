"""One pass after another over the jobs in hand: take in what runs have said, decide, write, start runs.

Knows: how decisions become plans on disk and runs in lanes, and that a record is durable before what depends on it.
Must not know: inotify, relays, signals, the command line. The daemon tells it which jobs to look at.

A pass gathers the plans of all jobs that need one and carries them out together, in a thread: a thousand jobs
wait for one syncfs. Records change in passes only, one pass at a time.
"""

import asyncio
import contextlib
import itertools
import logging
import time

from watchties import decide, record, steps
from watchties.dispatch import Dispatch
from watchties.errors import MAY_PASS
from watchties.hearing import DISK_AGAIN, Hearing
from watchties.intake import Intake
from watchties.model import SUBMITTED, one_line
from watchties.roots import TreeGone
from watchties.seen import Step, World

AT_ONCE = 1000  # jobs that one pass looks at, so that no pass takes long
GATHER = 0.1  # seconds that the journal may lag behind

log = logging.getLogger("watchties")


class Engine(Hearing):
    """The daemon's work. tell: a Teller for what is to be told to logs, journal, administrator."""

    def __init__(self, config, runner, dirs, hooks, tell, clock=time.time):
        super().__init__(config, dirs.state, tell, clock)
        self.config, self.dirs = config, dirs
        self.rules, self.trees = {rule.name: rule for rule in config.rule}, config.tree
        self.polls = {name: host.poll for name, host in config.host.items()}
        self.dispatch = Dispatch(config, self.jobs, runner, dirs, hooks, tell, self._again)
        self._intake = Intake(config, self.dispatch, tell, self._take, clock)
        self.starting, self.halted, self._flush, self._rests = True, False, None, False

    # ---- the pass ----

    def halt(self):
        """Start nothing more; the pass under way is the last."""
        self.starting = self.halted = True
        self.kick.set()

    async def run(self):
        """Make passes until halted."""
        while not self.halted:
            await self._until_something()
            self.kick.clear()
            try:
                await self.one_pass()
            except OSError as error:  # this machine is short of something; what was to be taken in or looked at still is
                if error.errno not in MAY_PASS:
                    raise
                self.tell.problem("daemon", str(error))
                await asyncio.sleep(DISK_AGAIN)

    def is_at_rest(self):
        """Return whether no run is at work and nothing is to be looked at: what is left waits for an event, or for its time."""
        return self._rests and not (self.dirty or self.ended or self.dispatch.tasks or self.kick.is_set())

    async def _until_something(self):
        if self.dirty or self.ended:
            return
        self._rests = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._alarms.seconds(self.clock())):  # not wait_for: in 3.11 it can lose a cancellation
                await self.kick.wait()
        self._rests = False
        self.dirty |= dict.fromkeys(self._alarms.due(self.clock()))

    async def one_pass(self):
        """Take in outcomes, look at what is dirty, write, start. What a pass that breaks off was about is the next one's."""
        if self.dispatch.broken:
            raise self.dispatch.broken
        ended, dirty = list(self.ended), dict(self.dirty)
        try:
            await self._one_pass()
        except OSError:
            self.ended += [one for one in ended if one not in self.ended]
            self.dirty = dirty | self.dirty
            raise

    async def _one_pass(self):
        ended, self.ended = self.ended, []
        self.put_aside += [one for one in ended if self._is_away(one)]
        ended = [one for one in ended if not self._is_away(one)]
        plans = self._intake.plans(ended)
        batch = list(itertools.islice(self.dirty, AT_ONCE))
        for job_id in batch:
            del self.dirty[job_id]
        plans |= self._plans_of_decisions(j for j in batch if j not in plans)
        good = await self._carry_out(plans)
        for one in ended:
            if all(i in good for i in one.run.ids() if i in plans):
                self.tell.run_ended(one)
                self.dirty |= dict.fromkeys(self.dispatch.release(one.run))
            else:  # the disk did not take it: the run's directory stays, and is read again
                asyncio.get_running_loop().call_later(DISK_AGAIN, self._again, one)
        await self._start_runs()
        if self._flush is None:  # not now: what is to start starts first
            self._flush = asyncio.get_running_loop().call_later(GATHER, self.flush)

    def flush(self):
        """Write what has gathered to the journal."""
        self._flush = None
        self.tell.flush()

    def _again(self, ended):
        """A run has ended, or its outcome is to be taken in once more."""
        self.ended += [ended] if ended else []
        self.kick.set()

    async def _carry_out(self, plans):
        """Write what is planned, all of it together; return the jobs whose plan succeeded."""
        if not plans:
            return set()
        results = await asyncio.get_running_loop().run_in_executor(None, self.roots.carry_out, plans)
        good = set()
        for job_id, result in results.items():
            job = self.jobs.get(job_id)
            if isinstance(result, TreeGone):
                self.tell.waiting(job, str(result))  # it is looked at again when the tree is back
                continue
            if isinstance(result, OSError):
                self._disk_error(job, result)
                continue
            good.add(job_id)
            if result is None:
                self._at_rest(job)
                continue
            self._changed(job, result)
            self.dirty[job_id] = None
        return good

    def _changed(self, job, new):
        if new != job.record:
            before = job.record
            self.jobs.update(job, new)
            if new.phase == SUBMITTED and before.phase != SUBMITTED:
                job.polled, job.missed = 0.0 if job.missed else self.clock(), False
            self.tell.changed(job, before)

    def _disk_error(self, job, error, what="mirror", where=""):
        text = f"the {what} cannot be written: {error.strerror or error} "
        self.tell.waiting(job, one_line(f"{text}({error.filename or where or job.dir})"))
        self.tell.problem("disk", one_line(f"{text}({where or self.jobs.roots[job.id.tree]})"))
        self._alarms.set(job.id, self.clock() + DISK_AGAIN)

    def _at_rest(self, job):
        self.tell.changed(job, job.record)
        if job.id not in self.dirty:  # nothing was heard of it while its flag was taken down
            self.jobs.drop(job.id)

    # ---- decisions ----

    def _plans_of_decisions(self, batch):
        plans = {}
        for job_id in batch:
            job = self._take(job_id)
            decision = self._decide(job) if job else None
            if decision:
                if decision.step:
                    plans[job_id] = self._plan(job, decision.step)
                else:
                    self._queue(job, decision)
        return plans

    def _decide(self, job):
        """Return the decision for a job, or None if its directory cannot be read: then it is looked at again soon.

        Nothing that a record or a marker holds may end the daemon: what is not understood costs its job alone.
        """
        tree = job.id.tree
        if tree in self.roots.gone:  # what seems to stand there is none of the job's
            self.tell.waiting(job, self.roots.gone[tree])
            return None
        try:
            blocked, held = self.blocked.get(tree, ""), self.dispatch.held
            return decide.decide(job.seen(), World(self.trees[tree], self.rules, self.clock(), self.down, blocked, self.polls, held))
        except OSError as error:
            self._disk_error(job, error)
        except Exception as error:
            log.exception("%s cannot be decided", job.id)
            self.tell.refuse(job.id, f"{job.dir}: what stands there cannot be understood ({error!r}); see: watchties explain {job.id}")
        return None

    def _plan(self, job, step):
        if step.what == "close":
            return self._close(job) if job.opened else steps.nothing(None)
        if step.what == "remake":
            log.warning("%s: %s; it was %s", job.id, step.reason, job.record.phase or "not yet here")
        return steps.perform(job, step, steps.new_token)

    def _close(self, job):
        yield from steps.perform(job, Step("close", ""), steps.new_token)
        return None

    def _queue(self, job, decision):
        held = [why for start in decision.starts if (why := self.dispatch.offer(job, start))]
        for wait in decision.waits:
            if wait.until:
                self._alarms.set(job.id, wait.until)
        self.tell.waiting(job, "; ".join(held) or decision.reason)

    # ---- starting ----

    async def _start_runs(self):
        """Begin a run in each free slot for which something waits: first what the record must hold, then the hook."""
        if self.starting:
            return
        batches = self.dispatch.batches(self._still_due)
        good = await self._carry_out({i: plan for batch in batches for i, plan in batch.plans.items()})
        for batch in batches:
            try:
                self.dispatch.start(batch, good)
            except OSError as error:
                await self._undo(batch, good)
                for job_id in batch.begun:
                    self._disk_error(self.jobs.get(job_id), error, "state directory", self.dirs.state)

    async def _undo(self, batch, good):
        """Take back that a host was to be contacted for the first time: it was not, and another one may still have these jobs."""
        first = [self.jobs.get(i) for i in batch.plans if i in good] if batch.lane.rule == "submit" else []
        await self._carry_out({job.id: steps.save(job, record.release(job.record)) for job in first})
        for job in first:
            self.dirty.pop(job.id, None)  # not at once: the disk is as full as before

    def _still_due(self, job_id, lane):
        """Return the Start that a queued job is waiting for, if it is still to begin; else have it looked at."""
        job = self.jobs.get(job_id)
        decision = self._decide(job) if job else None
        if decision:
            for start in decision.starts:
                if (start.rule, start.host) == (lane.rule, lane.host):
                    return start
            self.touch(job_id)
        return None

    # ---- after a crash ----

    async def recover(self):
        """Take in what runs of an earlier daemon have left; those still at work keep their jobs busy until they end."""
        self.dispatch.take_over(self._take)
        while self.ended:
            await self.one_pass()
        self.starting = False
        self.kick.set()
