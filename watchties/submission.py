"""Handing jobs to a scheduler exactly once: what follows from the agent's claim and from what the scheduler said.

Knows: the order claim, inputs, submit; when to ask by name, and when to submit again.
Must not know: a scheduler's words (schedulers/), rsync's options, the attempt's files on the host.

    claim says       so
    new, held        nothing was submitted: manifest, inputs, submit            [claim_first]
                     of a job that was here before, its directory may have been removed meanwhile, with all that tells of a
                     submission: the scheduler is asked by name first, but where it was put off under this claim
    unknown          it may have been submitted: ask the scheduler by name; submit again only when a query that
                     succeeded found nothing, twice, a grace period apart
    begun, done      it was submitted: the id stands in the answer
    cancelled        it never will be
"""

import time
from datetime import UTC, datetime

from watchties import batches, manifest, resources, retry, schedulers, shell, transfer
from watchties.agent import Agent
from watchties.errors import Rejected, Unreachable, Unsafe
from watchties.schedulers import NotNow, QueryFailed, Refused, Submitted


def knock(run):
    """Call at the host before anything of its new jobs is there. If nobody opens, those that may go elsewhere are free to: it holds no
    claim of theirs. Once a claim has been on its way nobody can say so. Raises Unreachable."""
    may_go = [job for job in run.jobs if job.first and elsewhere(run, job)]
    if not may_go:
        return
    try:
        retry.network(shell.far, Agent.of(run.config, may_go[0].tree, run.host).far, "true")
    except Unreachable as error:
        run.settle((job, "retry", str(error), {"host_down": True, "untouched": 1}) for job in may_go)
        raise


def elsewhere(run, job):
    """Return whether another compute host may have the job."""
    tree = run.config["tree"][job.tree]
    return tree.get("failover") and len(tree["compute"]) > 1 and not job.fields.get("cpu_server")


class Submission:
    """The submission of one tree's jobs to one host."""

    def __init__(self, run, tree, clock=time.time):
        self.run, self.tree, self.clock, self.host = run, run.config["tree"][tree], clock, run.config["host"][run.host]
        self.route, self.agent = transfer.Route.of(run.config, tree, run.host), Agent.of(run.config, tree, run.host)
        self.scheduler = schedulers.get(self.host["scheduler"])
        self.options = self.host.get("submit_options") or []
        self.resources = {}  # job -> what it asks for
        self.unknown = {}  # job -> why it has to be asked by name
        self.replied = set()  # jobs whose claim came with a stored reply
        self.cut = []  # jobs that were claimed before: an earlier run was cut off, maybe while the inputs travelled
        self.refused = {}  # job -> why, of those the scheduler will never take as they are
        self.useless = []  # jobs whose stored reply is no submission: it must not be given again

    def carry_out(self, jobs):
        """Settle every job."""
        claims = self.agent.claim(jobs, self.run.id, self.evidence())
        for job, claim in claims.items():
            self.take_up(job, claim)
        fresh = [job for job in jobs if claims[job].word in ("new", "held")]
        doubted = [job for job in fresh if not job.first and not (claims[job].word == "held" and job.fields.get("clear"))]
        begun_there = self.begun_before(doubted)
        if fresh := [job for job in fresh if job not in begun_there]:
            with self.agent.begin_submit(self.run.id) as begun:  # not before: a run has one short channel at a time
                self.submit(self.bring_inputs(fresh), begun)
        self.submit(self.begun_anew(self.ask_by_name()))
        self.reject()
        self.agent.forget_reply(self.useless)
        for job, why in self.unknown.items():
            self.run.retry(job, f"not known whether it was submitted: {why}")

    def evidence(self):
        """Return the files that decide about success: those of an earlier attempt are moved aside by the claim."""
        success = self.tree.get("success") or {}
        return [*(success.get("require") or ()), *(success.get("forbid") or ())]

    def take_up(self, job, claim):
        """Settle what the claim alone decides, and remember what has to be asked."""
        if claim.word == "cancelled":
            self.run.done(job, state="FAILED", cause="cancelled", reason="cancelled before it began")
        elif claim.word == "begun":
            self.submitted(job, claim.values.get("id", ""))
        elif claim.word == "done":
            self.hear(job, *claim.reply())
            self.replied.add(job)
        elif claim.word == "unknown":
            self.unknown[job] = "an earlier run was cut off while it was submitting"
        elif claim.word == "held":
            self.cut.append(job)
        elif claim.word != "new":
            self.run.retry(job, f"{self.run.host} could not claim it: {claim.detail()}")

    def bring_inputs(self, jobs):
        """Write down what is sent, send it, and return the jobs that have arrived."""
        lists = {}
        for job in jobs:
            try:
                self.resources[job] = resources.of_job(job.dir, self.host, self.run.host)
                lists[job] = manifest.walk(job.dir)
            except (Rejected, Unsafe) as error:
                self.run.failed(job, error, cause="rejected")
            except OSError as error:  # one job's, and no other's
                self.run.retry(job, error)
        for job, error in manifest.write("manifest", lists).items():
            self.run.retry(job, error)
            del lists[job]
        names = {job: [job.job] for job in lists}
        sent = batches.carry(self.route, names, cut=self.cut, inward=False, timeout=self.run.timeout)
        failed = self.run.failures(sent)
        return [job for job in lists if job not in failed]

    def submit(self, jobs, begun=None):
        """Let the agent run the scheduler's command for each job, once, and take in what it said."""
        commands = {job: self.scheduler.submit_command(job, self.resources[job], self.options) for job in jobs}
        answers = self.agent.submit(commands, self.run.id, begun)
        with self.run.together():
            for job, answer in answers.items():
                self.unknown.pop(job, None)
                if answer.word == "replied":
                    self.hear(job, *answer.reply())
                elif answer.word == "later":
                    self.put_off(job, answer.detail())
                else:
                    self.run.retry(job, f"the agent on {self.run.host} did not submit it: {answer.detail()}", asked=0)

    def hear(self, job, code, out, err):
        """Settle a job by what the scheduler said, or remember that it said nothing of use."""
        said = self.scheduler.parse_submit(code, out, err)
        if isinstance(said, Submitted):
            self.submitted(job, said.id)
        elif isinstance(said, Refused):
            self.refused[job] = said.reason
        elif isinstance(said, NotNow):
            self.useless.append(job)
            self.put_off(job, said.reason)
        else:
            self.unknown[job] = said.reason

    def put_off(self, job, reason):
        """Have the lane held back: it is the scheduler that takes no more. What was asked before this submission counts no longer.

        clear: the claim that stands is one under which nothing was submitted; to ask each time would be much for a full scheduler.
        """
        self.run.retry(job, f"{self.run.host} takes no more for now: {reason}", later=True, asked=0, clear=1)

    def reject(self):
        """Fail the refused jobs, each when it is certain that nothing of it will ever begin.

        sbatch may refuse and leave a job of that name (BadConstraints, seen in 22.05).
        """
        commands = {job: self.scheduler.cancel_command("", schedulers.unique_name(job.token)) for job in self.refused}
        for job, answer in self.agent.cancel(commands, "rejected").items():
            if answer.word == "none":
                self.run.failed(job, self.refused[job], cause="rejected")
            else:
                self.run.retry(job, f"refused ({self.refused[job]}), and yet: {answer.detail()}")

    def submitted(self, job, number):
        self.run.done(job, id=number, submitted=datetime.now(UTC).isoformat(timespec="seconds"))

    def ask_by_name(self):
        """Settle the unknown jobs that the scheduler knows by name; return those that may be submitted again."""
        try:
            found = self.find_and_adopt(self.unknown)
        except QueryFailed as error:
            self.unknown = {job: f"{why}; {error}" for job, why in self.unknown.items()}
            return []
        for job in found:
            del self.unknown[job]
        return [job for job in list(self.unknown) if self.not_found_again(job)]

    def begun_before(self, jobs):
        """Settle those of the jobs that the scheduler knows by name, and all if it cannot be asked; return which."""
        if gone := [job for job in jobs if job.fields.get("clear")]:  # its claim went with its directory
            self.run.settle((job, "retry", f"its directory on {self.run.host} was removed", {"clear": 0}) for job in gone)
        try:
            return self.find_and_adopt(jobs) if jobs else set()
        except QueryFailed as error:
            for job in jobs:
                self.run.retry(job, f"not known whether an earlier run has submitted it, of which {self.run.host} has no trace: {error}")
            return set(jobs)

    def find_and_adopt(self, jobs):
        """Settle as submitted those of the jobs that the scheduler knows; return them. Raises QueryFailed."""
        names = {schedulers.unique_name(job.token): job for job in jobs}
        found = {names[name]: number for name, number in self.find(names).items()}
        self.agent.adopt(found, self.run.id)
        for job, number in found.items():
            self.submitted(job, number)
        return set(found)

    def find(self, names):
        """Return name -> id of those the scheduler knows; raise QueryFailed if it could not be asked."""
        found = {}
        for some in shell.chunks(list(names)):
            found |= self.scheduler.parse_find(*self.agent.query(self.scheduler.find_command(some)), some)
        return {name: number for name, number in found.items() if name in names}

    def not_found_again(self, job):
        """Return whether this is the second query, a grace period after the first, that succeeded and found nothing."""
        now = self.clock()
        asked = min(float(job.fields.get("asked") or 0), now)  # the clock may have been set back
        twice = asked and now - asked >= self.run.grace
        if twice and job not in self.replied:
            return True
        if twice:
            self.useless.append(job)
        self.run.retry(job, f"the scheduler on {self.run.host} does not know it; it is asked once more", asked=asked or now)
        del self.unknown[job]
        return False

    def begun_anew(self, jobs):
        """Note, durably, that the two queries are used up: a submit that is now cut off is asked for twice again."""
        for job in jobs:  # it is not there, and what it asks for now may be more than it may
            try:
                self.resources[job] = resources.of_job(job.dir, self.host, self.run.host)
            except Rejected as error:
                self.refused[job] = str(error)  # not FAILED yet: its intent stands, and an entry of it may come late
                del self.unknown[job]
            except OSError as error:
                self.unknown[job] = str(error)
        jobs = [job for job in jobs if job in self.resources]
        if jobs:
            self.run.settle((job, "retry", "it was being submitted again", {"asked": 0}) for job in jobs)
        return jobs
