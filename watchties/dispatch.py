"""From jobs that may go to runs at work: lanes, batches, what a hook is told, locks that outlive their daemon.

Knows: which rule has which lane, how many jobs a host may hold, the line a hook is given for a job.
Must not know: how a decision was reached, what an outcome means, when the record is durable (the engine asks and tells).
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace

from watchties import fire, record, recordfile, runs, steps
from watchties.lanes import Hold, Lane
from watchties.model import FINAL, MIRROR, WEB
from watchties.runner import KILL_AFTER
from watchties.runs import Ended

READ_AGAIN = 5.0  # seconds before results that could not be read are looked at again
HELD_TOLD_AT = 6  # runs of a lane that is held back until the administrator hears of it
ORPHAN_GLANCE = 0.2  # seconds between two looks at a lock that an orphan holds
ORPHAN_SIGNAL = 1.0  # seconds between two signals to an orphan whose time is over


@dataclass
class Batch:
    """A run that is about to begin. begun: JobId -> Start; plans: JobId -> the plan that must be on disk first."""

    lane: Lane
    slot: str
    run: str
    begun: dict
    plans: dict


class Dispatch:
    """The lanes of one daemon and the runs in their slots. on_end(Ended) is called when a run, and all it left, has ended."""

    def __init__(self, config, jobs, runner, dirs, hooks, tell, on_end):
        self.config, self.jobs, self.runner, self.dirs, self.hooks = config, jobs, runner, dirs, hooks
        self.tell, self.on_end = tell, on_end
        self.rules = {rule.name: rule for rule in config.rule}
        self.lanes, self.held, self.tasks, self.broken = {}, {}, set(), None  # broken: what no run should ever raise
        self.may = lambda job_id, rule: True  # whether a rule may be started for a job
        self.unread = set()  # trees whose jobs are not all in hand yet, so that nobody knows how many a host holds

    def lane(self, rule, host):
        """Return the lane of a rule for a host."""
        if (rule, host) not in self.lanes:
            its = self.rules[rule]
            self.lanes[rule, host] = Lane(rule, host, its.batch, its.parallel, its.alone_above)
        return self.lanes[rule, host]

    def offer(self, job, start):
        """Queue a job for the run that it may have; return why it cannot begin at once, or ""."""
        if not self.may(job.id, start.rule):
            return f"{start.rule} is left to the next pass"
        lane, bounded = self.lane(start.rule, start.host), needs_room(job, start)
        lane.offer(job.id, job.user, job.record.size, bounded)
        room = self._room(lane, Counter()) if bounded else None
        return f"{start.host} holds as many jobs as it may (max_running)" if room is not None and room <= 0 else ""

    def batches(self, still_due):
        """Return a Batch for each free slot for which something waits. still_due(JobId, lane) -> Start or None."""
        found, promised = [], Counter()
        for lane in list(self.lanes.values()):
            while next_batch := lane.next_batch(self._room(lane, promised)):
                begun = {i: start for i in next_batch[1] if (start := still_due(i, lane))}
                if begun:
                    batch = self._begin(lane, next_batch[0], begun)
                    promised[lane.host] += sum(needs_room(self.jobs.get(i), start) for i, start in begun.items())
                    found.append(batch)
        return found

    def _room(self, lane, promised):
        """Return how many more jobs a compute host may hold, or None."""
        host = self.config.host.get(lane.host)
        if lane.rule != "submit" or not host or host.max_running is None:
            return None
        if self.unread:
            return 0
        return host.max_running - self.jobs.attempts[lane.host] - promised[lane.host]

    def _begin(self, lane, slot, begun):
        """Take the slot and lock the places; return the Batch with the plans of what the records must hold first."""
        run_id, plans = self.dirs.new_id(lane.rule), {}
        lane.busy.add(slot)
        for job_id, start in begun.items():
            job = self.jobs.get(job_id)
            job.busy |= dict.fromkeys(fire.touches(self.rules[lane.rule]), run_id)
            if WEB in fire.touches(self.rules[lane.rule]):
                job.look_at_web()
            if lane.rule == "pull":
                plans[job_id] = steps.create(job, replace(job.record, pulling=run_id))
            elif lane.rule == "submit" and not job.record.contacted:
                plans[job_id] = steps.save(job, record.contact(job.record, start.host))
        return Batch(lane, slot, run_id, begun, plans)

    def start(self, batch, good):
        """Start the hook of a batch, for those jobs whose plan is on disk (`good`), or that needed none.

        Raises OSError, the jobs unlocked, if the state directory takes no run (a full disk).
        """
        failed = batch.plans.keys() - good
        self._unlock(failed, batch.run)
        begun = {i: start for i, start in batch.begun.items() if i not in failed}
        if not begun:
            batch.lane.busy.discard(batch.slot)
            return
        rule = self.rules[batch.lane.rule]
        lines = [self.line(self.jobs.get(i), start, batch.run, i in batch.plans) for i, start in begun.items()]
        try:
            run = self.dirs.prepare(batch.run, rule.name, batch.lane.host, batch.slot, lines, rule.timeout, self.hooks[rule.name],
                                    places=fire.touches(rule))  # fmt: skip
        except OSError:
            self._unlock(begun, batch.run)
            batch.lane.busy.discard(batch.slot)
            raise
        self._spawn(self._carry(run))

    def hold_back(self, ended, now):
        """Hold a lane back whose far side takes no more for now; let it go once a run brings jobs there and none is put off.

        A full disk holds back none, as small jobs may still fit; the administrator hears of it at once, and not of each job.
        """
        for whose, reason in {outcome.fields["full"]: outcome.reason for outcome in ended.settled.values() if outcome.fields.get("full")}.items():
            self.tell.notice(f"the disk of {whose} is full", f"{reason}\nWhat goes there waits, and goes on by itself when there is room.\n")
        rule, said = self.rules.get(ended.run.rule), ended.settled.values()
        key = ended.run.rule, ended.run.host
        reasons = [outcome.reason for outcome in said if outcome.outcome == "retry" and outcome.fields.get("later")]
        taken = any(outcome.outcome == "done" for outcome in said)
        if rule and reasons:
            hold = self.held.setdefault(key, Hold())
            if hold.refused(reasons[-1], taken, now, rule.retry) == HELD_TOLD_AT:
                self.tell.notice(f"{rule.name} is held back: {hold.reason}", f"run {ended.run.id}; it is tried again, and no job is lost")
        elif taken:
            self.held.pop(key, None)

    def release(self, run):
        """Let go of what a run has held, now that its outcome is on disk; return its jobs."""
        if run.rule in self.rules:
            self.lane(run.rule, run.host).busy.discard(run.slot)
        self._unlock(run.ids(), run.id)
        self.dirs.forget(run)
        return run.ids()

    def _unlock(self, job_ids, run_id):
        for job in filter(None, map(self.jobs.get, job_ids)):
            job.busy = {place: by for place, by in job.busy.items() if by != run_id}

    def line(self, job, start, run_id, first=False):
        """Return what the hook is told of a job; first: of a submit, that its host has never been contacted for this attempt."""
        rec, request = job.record, start.request
        old = rec.old if rec.old and start.attempt == rec.old.token != rec.token else None
        place = next((on.split(":")[0] for on in self.rules[start.rule].on), MIRROR)
        return {
            "tree": job.id.tree,
            "job": job.id.job,
            "dir": job.dir,
            "place": request.place if request else place,
            "marker": request.marker if request else start.marker or rec.phase,
            "attempt": old.attempt if old else rec.attempt,
            "token": old.token if old else rec.token,
            "host": old.host if old else rec.host,
            "identity": request.ns if request else "",
            "accepted": rec.accepted_at(WEB),
            "fields": {} if old else told_fields(job, start.rule),
            "ended": {k.split("@")[0]: how for k, how in rec.ended.items() if k.endswith(f"@{rec.phase}")},
            "run": run_id,
            "request": str(request) if request else "",
            "first": first and start.rule == "submit",
        }

    # ---- runs at work ----

    def _spawn(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():  # else its jobs would be busy for ever, and nobody would know
            self.broken = task.exception()
            self.on_end(None)

    async def _carry(self, run):
        """Carry one run to its end, and to the end of whatever it has left running."""
        await self._until_free(run)
        self.tell.run_begins(run)
        try:
            ended = await self.runner.run(run, lambda: self.tell.run_goes_on(run))
        except OSError as error:
            self.tell.problem(f"run {run.id}", str(error))
            ended = Ended(run, None, {}, "", 0.0)
        await self._until_free(run)
        self.on_end(ended if ended.code is not None else await self._collect(run))

    async def _collect(self, run):
        """Return what a run has left; while its results cannot be read they stay, and are read again."""
        while True:
            try:
                return self.dirs.collect(run, None)
            except OSError as error:
                self.tell.problem(f"run {run.id}", str(error))
            await asyncio.sleep(READ_AGAIN)

    async def _until_free(self, run):
        while not self._is_free(run):
            await asyncio.sleep(ORPHAN_GLANCE)

    def _is_free(self, run):
        """Return whether nobody holds the lock of a run; False if that cannot be seen now."""
        try:
            return self.dirs.is_free(run.lock)
        except OSError as error:
            self.tell.problem("runs", str(error))
            return False

    async def _end_orphan(self, run):
        """End whatever still holds the lock of a run, which is what it is known by."""
        kill_at = time.monotonic() + KILL_AFTER
        while not self._is_free(run):
            for pid in self._holders(run):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM if time.monotonic() < kill_at else signal.SIGKILL)
            await asyncio.sleep(ORPHAN_SIGNAL)

    @staticmethod
    def _holders(run):
        with contextlib.suppress(OSError):
            return runs.holders(run.lock)
        return []

    def take_over(self, take):
        """Take in what runs of an earlier daemon have left; those still at work keep their jobs busy. take(JobId): to have it in hand."""
        for run in self.dirs.left_over():
            if run.rule not in self.rules and self.dirs.is_free(run.lock):
                self.dirs.forget(run)
            else:
                for job_id in run.ids():
                    take(job_id)
                self._lock(run)  # also where it has ended: until its outcome is on disk, nothing is done as if there were none
                if not (self._is_free(run) and self._taken_in(run)):
                    self._spawn(self._await_orphan(run))

    def _taken_in(self, run):
        """Return whether what a run has left could be read; if not it stays, and is read again."""
        try:
            self.on_end(self.dirs.collect(run, None))
        except OSError as error:
            self.tell.problem(f"run {run.id}", str(error))
            return False
        return True

    def _lock(self, run):
        """Take the slot and lock the places of a run of an earlier daemon."""
        known = run.rule in self.rules  # its hook goes on where the rule is gone: what it touches stays locked
        if known:
            self.lane(run.rule, run.host).busy.add(run.slot)
        else:
            self.tell.problem(f"run {run.id}", f"there is no rule {run.rule} any more; its hook is at work still, and is waited for")
        places = run.places or (fire.touches(self.rules[run.rule]) if known else ())
        for job in filter(None, map(self.jobs.get, run.ids())):
            job.busy |= dict.fromkeys(places, run.id)

    async def _await_orphan(self, run):
        left = min(run.timeout, max(0.0, run.started + run.timeout - time.time()))  # the clock may have been set back
        try:
            async with asyncio.timeout(left):
                await self._until_free(run)
        except TimeoutError:  # its daemon would have ended it
            self.tell.problem(f"run {run.id}", f"it took longer than {run.timeout:g} s, begun by an earlier daemon, and is ended")
            await self._end_orphan(run)
        self.on_end(await self._collect(run))


def needs_room(job, start):
    """Return whether this start makes the host hold one more job."""
    return start.rule == "submit" and not job.record.contacted


def told_fields(job, rule):
    """Return the fields a hook is given: what the marker says, what earlier tries left; for pull what it must spare."""
    rec = job.record
    fields = {**steps.marker_fields(rec), **rec.fields, **rec.tries.get(rule, {}).get("fields", {})}
    if rule == "pull" and pull_spares(rec):
        fields["spare"] = os.path.join(recordfile.directory(job.dir), f"made.{rec.attempt}")
    return fields


def pull_spares(rec):
    """Return whether the attempt has made something that is not pushed yet, which a pull must leave alone."""
    return rec.phase in FINAL and rec.ended_as("push") in ("", record.GAVE_UP)
