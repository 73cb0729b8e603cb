"""The daemon of the simulation: the real decide, steps and outcomes for one job, one barrier at a time.

Knows: what the engine does with a decision, an outcome, an announcement; that a crash leaves nothing but the disk.
Must not know: how a hook does its steps, what people do, what must hold.
"""

import os
from types import SimpleNamespace

from watchties import decide, fire, jobs, markers, outcomes, record, recordfile, steps
from watchties.dispatch import Dispatch
from watchties.model import CANCEL, COMPUTE, DONE, FAILED, FINAL, MIRROR, PENDING, SUBMITTED, TAKEN, WEB, JobId
from watchties.seen import WebHint, World

import sim_hooks
from sim_far import Call
from sim_runs import Active

TREE, JOB = "ties", "it's a user/job $(1); *"
ID = JobId(TREE, JOB)
RETRY = SimpleNamespace(first=5.0, maximum=60.0, give_up_after=1e9)
ON = {"pull": [f"{WEB}:{PENDING}"], "submit": [f"{MIRROR}:{PENDING}"], "report": [f"{MIRROR}:{SUBMITTED}"],
      "poll": [f"{MIRROR}:{SUBMITTED}"],
      "fetch": [f"{COMPUTE}:{DONE}", f"{COMPUTE}:{FAILED}"], "push": [f"{MIRROR}:{DONE}", f"{MIRROR}:{FAILED}"],
      "mail": [f"{MIRROR}:{DONE}", f"{MIRROR}:{FAILED}"], "cancel": [f"{WEB}:{CANCEL}", f"{MIRROR}:{CANCEL}"]}  # fmt: skip
RULES = {name: SimpleNamespace(name=name, on=on, after=["push"] if name == "mail" else [], retry=RETRY) for name, on in ON.items()}


class Daemon:
    """The part of System that is the daemon."""

    # ---- the daemon: dies and begins ----

    def boot(self):
        """Begin as a daemon that knows nothing but what is on disk."""
        self.jobs = jobs.Jobs({TREE: str(self.mirror)})
        self.plan = self.at_rest = None
        self.active = [a for a in getattr(self, "active", []) if not a.ended]
        for active in self.active:
            active.code = None
        living = {a.run.id for a in self.active}
        self.left = [Active(run, None, code=None) for run in self.dirs.left_over() if run.id not in living]
        if self.left or self.active:
            self.jobs.take(ID)

    def crash(self, hooks_die, orphan=None):
        """The daemon dies; its hooks with it, or they live on; one far command may go on by itself."""
        if self.plan:
            self.plan[0].close()
        for active in self.active if hooks_die else ():
            if not active.ended:
                if active.run.rule == "mail" and active.op.label == "settle":
                    self.mail_crashes += 1
                if active is orphan:
                    self.orphan = active.op
                elif isinstance(active.op, Call):
                    active.op.kill()
        self.active = [] if hooks_die else self.active
        self.boot()

    # ---- the daemon: what it does ----

    def daemon_actions(self):
        if self.plan:
            yield 10, "daemon: goes on writing", self.next_barrier
            return
        for active in self.left or [a for a in self.active if a.ended]:
            yield 10, f"daemon: takes in {active.run.rule}", lambda a=active: self.take_in(a)
        if self.left:
            return
        yield from self.hear_actions()
        job = self.jobs.get(ID)
        if not job:
            if self.here.exists() and self.listing() != self.at_rest and markers.waiting(set(os.listdir(self.here))):
                yield 10, "daemon: looks at the mirror", lambda: self.jobs.take(ID)
            return
        job.busy = {place: a.run.id for a in self.active for place in fire.touches(RULES[a.run.rule])}
        decision = decide.decide(job.seen(), self.world())
        if decision.step:
            yield 10, f"daemon: {decision.step.what} {decision.step.marker}", lambda: self.perform(decision.step)
        for start in decision.starts:
            yield (3 if start.rule == "poll" else 10), f"daemon: starts {start.rule} {start.host}", lambda s=start: self.start(s)
        if (times := [w.until for w in decision.waits if w.until]) and not decision.step:
            yield 1, "time passes", lambda: setattr(self, "now", max(self.now, min(times)))

    def world(self):
        down = {name: f"{name} is down" for name, host in self.hosts.items() if not host.up}
        tree = SimpleNamespace(web="web", compute=["b1", "b2"], failover=True)
        return World(tree, RULES, self.now, down)

    def new_token(self):
        self.tokens += 1
        return f"t{self.tokens}"

    def write(self, plan, then):
        self.plan = plan, then

    def next_barrier(self):
        """Do one part of the plan in hand, up to its next barrier."""
        plan, then = self.plan
        try:
            next(plan)
        except StopIteration as stop:
            self.plan = None
            then(stop.value)

    def changed(self, new):
        job = self.jobs.get(ID)
        if new.phase == SUBMITTED and job.record.phase != SUBMITTED:
            job.polled = self.now
        if new != job.record:
            self.jobs.update(job, new)

    def perform(self, step):
        job, before = self.jobs.get(ID), self.listing()
        then = (lambda new: self.job_rests(before)) if step.what == "close" else self.changed
        self.write(steps.perform(job, step, self.new_token), then)

    def job_rests(self, before):
        """Forget the job; it is looked at again when its directory is not as it was, or after a crash."""
        self.jobs.drop(ID)
        self.at_rest = before

    def listing(self):
        return {name: ns_of(self.here / name) for name in os.listdir(self.here)} if self.here.exists() else {}

    def start(self, start):
        job, run_id = self.jobs.get(ID), self.dirs.new_id(start.rule)
        first = not job.record.contacted
        if WEB in fire.touches(RULES[start.rule]):
            job.look_at_web()
        if start.rule == "pull":
            plan = steps.create(job, record.replace(job.record, pulling=run_id))
        elif start.rule == "submit" and not job.record.contacted:
            plan = steps.save(job, record.contact(job.record, start.host))
        else:
            plan = _nothing(job.record)
        self.write(plan, lambda new: self.changed(new) or self.begin(start, run_id, first))

    def begin(self, start, run_id, first):
        line = Dispatch.line(SimpleNamespace(rules=RULES), self.jobs.get(ID), start, run_id, first)
        run = self.dirs.prepare(run_id, start.rule, start.host, "0", [line], 60.0, "")
        with open(run.path("jobs"), encoding="utf-8") as file:
            active = Active(run, sim_hooks.steps(self, start.rule, line, file.read()))
        self.active.append(active)
        self.step_to_next(active, next)

    def take_in(self, active):
        """Take in what a run has said, as the engine does."""
        job, told = self.jobs.take(ID), active.run.jobs[0]
        outcome = self.dirs.collect(active.run, active.code).outcome(ID)
        rule = RULES[active.run.rule]
        taken = outcomes.take_in(job.record, rule, told, outcome, self.now, self.new_token(), 300.0, self.resubmits)
        if outcome:
            job.seen_by_run(**outcomes.web_hints(rule.name, outcome.fields))
            if told["token"] == taken.record.token and outcomes.says_how_it_stands(rule, outcome.fields):
                job.seen_at_host(outcome.fields.get("seen"), self.now)
        plan = steps.save(job, taken.record) if taken.record != job.record else _nothing(job.record)
        self.write(plan, lambda new: self.release(active, new))

    def release(self, active, new):
        self.changed(new)
        self.left = [a for a in self.left if a is not active]
        self.active = [a for a in self.active if a is not active]
        self.dirs.forget(active.run)

    def hear_actions(self):
        """What relays announce: what stands, never what is gone."""
        job = self.jobs.get(ID)
        hint = job.web if job else WebHint()
        attempt = (job.record if job else recordfile.load(self.here)).attempt
        pending, cancel = ns_of(self.there / PENDING), ns_of(self.there / CANCEL)
        news = {"pending": pending} if pending and pending != hint.pending else {}
        news |= {"cancel": cancel} if cancel and cancel != hint.cancel and (attempt or pending) else {}
        news |= {"taken": True} if ns_of(self.there / (TAKEN + PENDING)) and not hint.taken and attempt and not self.orphan else {}
        if news:
            yield 10, f"relay: web has {', '.join(news)}", lambda: self.jobs.take(ID).hear(**news)
        if job and job.record.host and not job.compute and job.record.phase in (PENDING, SUBMITTED):
            for name in FINAL:
                marker = markers.look(self.hosts[job.record.host].data / JOB).markers.get(name)
                if marker and marker.token == job.record.token:
                    yield 10, f"relay: {job.record.host} has {name}", lambda n=name: setattr(job, "compute", n)


def ns_of(path):
    """Return the identity of a request, 0 if it does not stand."""
    try:
        return os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _nothing(value):
    return value
    yield
