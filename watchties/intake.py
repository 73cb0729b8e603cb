"""Taking in what runs have said of their jobs: the records as they are after it, ready to be written.

Knows: which rule and tree a run was for, what is told to whom of an outcome.
Must not know: what an outcome means for a record (outcomes.py), when anything is written.
"""

from watchties import outcomes, steps
from watchties.model import JobId


class Intake:
    """For one engine. take: JobId -> the Job in hand, or None."""

    def __init__(self, config, dispatch, tell, take, clock):
        self.dispatch, self.tell, self.take, self.clock = dispatch, tell, take, clock
        self.rules, self.trees, self.reconcile = {rule.name: rule for rule in config.rule}, config.tree, config.daemon.reconcile

    def plans(self, ended):
        """Return JobId -> the plan that makes durable what these runs have said of a job, all of them together."""
        new, held = {}, {}
        for one in ended:
            rule = self.rules.get(one.run.rule)  # None: it was taken out of the configuration meanwhile
            self.dispatch.hold_back(one, self.clock())
            for told in one.run.jobs if rule else ():
                job = self.take(JobId(told["tree"], told["job"]))
                if job:
                    held[job.id], new[job.id] = job, self._outcome(job, new.get(job.id, job.record), rule, told, one)
        return {i: self._plan(held[i], rec) for i, rec in new.items()}

    @staticmethod
    def _plan(job, rec):
        if rec == job.record:
            return steps.nothing(rec)
        try:
            return steps.save_removed(job, rec) if job.is_removed() else steps.save(job, rec)
        except OSError:  # the tree is away
            return steps.save(job, rec)

    def _outcome(self, job, rec, rule, told, ended):
        """Return the record after what a run said of one job, and hear what it saw by the way."""
        outcome, now, again = ended.outcome(job.id), self.clock(), self.trees[told["tree"]].resubmit_lost
        taken = outcomes.take_in(rec, rule, told, outcome, now, steps.new_token(), self.reconcile, again)
        if taken.notice:
            self.tell.notice(f"{job.id}: {taken.notice}", f"run {ended.run.id}; see: watchties logs {job.id}")
        if outcome:
            if outcome.fields.get("host_down"):
                self.tell.host_failed(ended.run.host, outcome.reason)
            job.seen_by_run(**outcomes.web_hints(rule.name, outcome.fields))
            if told["token"] == rec.token and outcomes.says_how_it_stands(rule, outcome.fields):
                job.seen_at_host(outcome.fields.get("seen"), self.clock())
        return taken.record
