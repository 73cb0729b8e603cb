"""One job's life on real directories: the real decide, record, steps, markers, outcomes and agent.sh under a daemon and
hooks that can be interrupted anywhere. The invariants I1 to I6 are those of the protocol (see tests/unit/test_simulation.py).

Knows: who may do what next (`actions`), as one list of labelled functions; what must hold after each and at the end.
Must not know: which of them is chosen; that is the caller's, a script or a random generator.

Steps of people and accidents ("environment") are bounded by a budget; the system's own steps are not. The daemon keeps
nothing: after a crash its jobs, hints and runs are read from the disk again.
"""

import contextlib
import io
import os
from dataclasses import dataclass
from types import SimpleNamespace

from watchties import decide, jobs, manifest, markers, outcomes, record, runs, steps
from watchties.dispatch import Dispatch
from watchties.errors import Unreachable
from watchties.hookkit import Job as HookJob
from watchties.hookkit import Run as HookRun
from watchties.model import CANCEL, COMPUTE, DONE, FAILED, FINAL, MIRROR, PENDING, STATES, SUBMITTED, TAKEN, WEB, JobId, Request

import sim_hooks
from sim_far import COMMAND, Call, Host

TREE, JOB = "ties", "it's a user/job $(1); *"
ID = JobId(TREE, JOB)
BASE = 1_500_000_000_000_000_000  # identities of requests: BASE + number
BUDGET = dict(touches=2, mirror=0, cancels=0, mcancels=0, edits=0, crashes=0, lost=0, downs=0, relists=0, restores=0, withdraws=0,
              stops=2, kills=0, nodes=0, giveups=0)  # fmt: skip
RETRY = SimpleNamespace(first=5.0, maximum=60.0, give_up_after=1e9)
ON = {"pull": [f"{WEB}:{PENDING}"], "submit": [f"{MIRROR}:{PENDING}"], "report": [f"{MIRROR}:{SUBMITTED}"], "poll": [f"{MIRROR}:{SUBMITTED}"],
      "fetch": [f"{COMPUTE}:{DONE}", f"{COMPUTE}:{FAILED}"], "push": [f"{MIRROR}:{DONE}", f"{MIRROR}:{FAILED}"],
      "mail": [f"{MIRROR}:{DONE}", f"{MIRROR}:{FAILED}"], "cancel": [f"{WEB}:{CANCEL}", f"{MIRROR}:{CANCEL}"]}  # fmt: skip
RULES = {name: SimpleNamespace(name=name, on=on, after=["push"] if name == "mail" else [], retry=RETRY) for name, on in ON.items()}


class Violation(Exception):
    """An invariant does not hold."""


@dataclass
class Active:
    """A run at work. op: its next step, None when it has ended; code: its exit code, None if its daemon has died."""

    run: runs.Run
    gen: object
    op: object = None
    said: tuple = ()
    code: int | None = 0

    ended = property(lambda self: self.op is None)


class System:
    """Everything: the far hosts, the mirror, the daemon, the hooks at work, people, and what they may expect."""

    def __init__(self, base, rng, budget, script):
        self.base, self.rng, self.budget = base, rng, {**BUDGET, **budget}
        self.web = Host(base, "web", script)
        self.hosts = {name: Host(base, name, script) for name in ("b1", "b2")}
        self.mirror = base / "mirror"
        self.here, self.there = self.mirror / JOB, self.web.data / JOB
        self.mirror.mkdir()
        self.there.mkdir(parents=True)
        (self.there / "command").write_text(COMMAND)
        (self.there / "command").chmod(0o755)
        self.dirs = runs.RunDirs(base / "state")
        self.now, self.tokens, self.version, self.number = 1000.0, 0, 0, 0
        self.touched, self.mails, self.seen_tokens = [], [], {}
        self.need = self.need_in = self.last_in = 0
        self.excused, self.before, self.mail_crashes = set(), set(), 0
        self.orphan, self.trace = None, []
        self.edit()
        self.boot()

    # ---- people ----

    def edit(self):
        self.version += 1
        for name in "one", "two":
            (self.there / ".new").write_text(f"{self.version}\n")
            (self.there / ".new").rename(self.there / name)

    def request(self, place, name, number=0):
        """Make a request appear in one go, with an identity of its own; return it."""
        directory = self.there if place == WEB else self.here
        if not number:
            self.number += 1
            number = self.number
        (directory / ".watchties.new.person").touch()
        os.utime(directory / ".watchties.new.person", ns=(BASE + number, BASE + number))
        (directory / ".watchties.new.person").rename(directory / name)
        return Request(place, name, BASE + number)

    def touch(self, place=WEB):
        self.touched.append(self.request(place, PENDING))
        inputs = self.version if place == WEB else self.inputs(self.here)
        if self.open_cancel(MIRROR if place == WEB else WEB):
            return  # between hosts the order is that of acceptance: this one may be accepted before that CANCEL
        self.need, self.need_in = 1, max(self.need_in, inputs)

    def cancel(self, place=WEB):
        self.request(place, CANCEL)
        self.forgive(set(self.touched))

    def open_cancel(self, place):
        """Return whether a CANCEL stands at a place that is not accepted yet."""
        request = Request(place, CANCEL, ns_of((self.there if place == WEB else self.here) / CANCEL))
        return request.ns and not record.load(self.here).has_accepted(request)

    def withdraw(self):
        self.forgive({Request(WEB, PENDING, ns_of(self.there / PENDING))})
        (self.there / PENDING).unlink()

    def forgive(self, requests):
        """Nothing more is owed for these requests."""
        self.need = self.need_in = 0
        self.excused |= requests

    def restore(self, request):
        self.request(WEB, PENDING, request.ns - BASE)

    @staticmethod
    def inputs(directory):
        """Return the version of the inputs in a directory, 0 if they are torn."""
        texts = {(directory / name).read_text() for name in ("one", "two") if (directory / name).exists()}
        return int(texts.pop()) if len(texts) == 1 else 0

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
        job.busy = {place: a.run.id for a in self.active for place in decide.touches(RULES[a.run.rule])}
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
        return decide.World(tree, RULES, self.now, down)

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
        job = self.jobs.get(ID)
        self.write(steps.perform(job, step, self.new_token), self.job_rests if step.what == "close" else self.changed)

    def job_rests(self, new):
        """Forget the job; it is looked at again when something in its directory has changed, or after a crash."""
        self.jobs.drop(ID)
        self.at_rest = self.listing()

    def listing(self):
        return {name: ns_of(self.here / name) for name in os.listdir(self.here)} if self.here.exists() else {}

    def start(self, start):
        job, run_id = self.jobs.get(ID), self.dirs.new_id(start.rule)
        if start.rule == "pull":
            plan = steps.create(job, record.replace(job.record, pulling=run_id))
        elif start.rule == "submit" and not job.record.contacted:
            plan = steps.save(job, record.contact(job.record, start.host))
        else:
            plan = _nothing(job.record)
        self.write(plan, lambda new: self.changed(new) or self.begin(start, run_id))

    def begin(self, start, run_id):
        line = Dispatch._line(SimpleNamespace(rules=RULES), self.jobs.get(ID), start, run_id)
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
        taken = outcomes.take_in(job.record, rule, told, outcome, self.now, self.new_token(), 300.0)
        if outcome:
            job.hear(**outcomes.web_hints(rule.name, outcome.fields))
            if rule.name == "poll" and told["token"] == taken.record.token:
                job.polled, job.compute = self.now, outcome.fields.get("seen") or job.compute
        self.write(steps.save(job, taken.record) if taken.record != job.record else _nothing(job.record), lambda new: self.release(active, new))

    def release(self, active, new):
        self.changed(new)
        self.left = [a for a in self.left if a is not active]
        self.active = [a for a in self.active if a is not active]
        self.dirs.forget(active.run)

    def hear_actions(self):
        """What relays announce: what stands, never what is gone."""
        job = self.jobs.get(ID)
        hint = job.web if job else decide.WebHint()
        attempt = (job.record if job else record.load(self.here)).attempt
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

    # ---- hooks and far commands ----

    def hook_actions(self):
        for active in self.active:
            if active.ended or self.is_locked(active.op):
                continue
            name = f"{active.run.rule}({active.run.jobs[0]['token']}): {active.op.label}"
            yield 10, name, lambda a=active: self.advance(a)
            if isinstance(active.op, Call) and not active.op.stopped and self.budget["stops"] and active.op.host.up:
                for nth in (1, 2, 3, 4, 5, 6, 8, 10):
                    yield 1, f"{name}, stopped at command {nth}", lambda a=active, n=nth: self.advance(a, n)
        if self.orphan and not self.is_locked(self.orphan):
            yield 10, f"orphan: {self.orphan.label}", self.end_orphan

    def is_locked(self, op):
        """Return whether a step has to wait for the far lock, which a stopped call holds."""
        others = [a.op for a in self.active if a.op is not op] + ([self.orphan] if self.orphan and self.orphan is not op else [])
        return op.locks and any(o and o.locks and o.stopped and o.host is op.host for o in others)

    def end_orphan(self):
        call, self.orphan = self.orphan, None
        call.go_on()

    def advance(self, active, stop_at=0):
        """Do one step of a hook, or the part of it up to where a far command is stopped."""
        op = active.op
        if op.host and not op.host.up:
            if isinstance(op, Call):
                op.kill()
            self.step_to_next(active, lambda gen: gen.throw(Unreachable(f"{op.host.name} is down")))
        elif isinstance(op, Call):
            if stop_at:
                self.budget["stops"] -= 1
            if op.go_on() if op.stopped else op.begin(stop_at):
                self.hear_answer(active, op)
        else:
            result = op.action()
            self.step_to_next(active, lambda gen: gen.send(result))

    def hear_answer(self, active, call):
        try:
            answer = call.answer()
        except Unreachable as error:
            self.step_to_next(active, lambda gen, error=error: gen.throw(error))
        else:
            self.step_to_next(active, lambda gen: gen.send(answer))

    def step_to_next(self, active, how):
        try:
            active.op = how(active.gen)
        except StopIteration as stop:
            self.settle_next(active, *stop.value) if stop.value else self.end(active)
        except Unreachable as error:
            self.settle_next(active, "retry", {"host_down": True, "error": str(error)})

    def settle_next(self, active, outcome, fields):
        """The last step of a hook: append its line to the results file."""
        hook = HookRun(active.run.rule, active.run.host, active.run.id, {}, [], active.run.path("result"))
        job = HookJob(TREE, JOB, str(self.here))
        active.op = sim_hooks.Local("settle", lambda: quietly(hook.settle, [(job, outcome, "", fields)]))
        active.gen = iter_once()
        next(active.gen)

    @staticmethod
    def end(active):
        active.op = None

    def give_up(self, active):
        """The hook fails for good."""
        if isinstance(active.op, Call):
            active.op.kill()
        self.settle_next(active, "failed", {})
        self.forgive(set(self.touched))

    def lose_reply(self):
        """Return whether the scheduler's reply is to be lost."""
        if self.budget["lost"] and self.rng.randrange(2):
            self.budget["lost"] -= 1
            return True
        return False

    # ---- compute hosts ----

    def compute_actions(self):
        for host in self.hosts.values():
            for index, (_, token, _) in enumerate(host.queue()):
                yield 10, f"{host.name}: wrapper({token})", lambda h=host, i=index: self.run_entry(h, i)
            for execution in host.executions:
                if execution.alive():
                    yield 9, f"{host.name}: job({execution.token}) ends", lambda e=execution: self.end_execution(e, 0)
                    yield 1, f"{host.name}: job({execution.token}) fails", lambda e=execution: self.end_execution(e, 3)
            if not host.up:
                yield 10, f"{host.name} is back", lambda h=host: setattr(h, "up", True)

    def executions(self):
        return [e for host in self.hosts.values() for e in host.executions]

    def run_entry(self, host, index):
        execution = host.start_entry(index, JOB)
        if execution:
            if sum(e.token == execution.token for e in self.executions()) > 1:
                raise Violation(f"I2 token {execution.token} executes twice")
            if execution.inputs[0] != execution.inputs[1]:
                raise Violation(f"I5 a job runs with inputs half transferred: {execution.inputs}")
            self.need, self.last_in = 0, int(execution.inputs[0])

    def end_execution(self, execution, code):
        if (inputs := execution.end(code)) and inputs != execution.inputs:
            raise Violation(f"I5 inputs change under a running job: {execution.inputs} {inputs}")

    # ---- the environment ----

    def environment(self):
        may = lambda name: self.budget[name] > 0  # noqa: E731
        standing = Request(WEB, PENDING, ns_of(self.there / PENDING))
        on_disk = record.load(self.here)
        if may("touches"):
            yield "touches", "USER touches PENDING", self.touch
        if may("mirror") and on_disk.attempt:
            yield "mirror", "PERSON touches PENDING in the mirror", lambda: self.touch(MIRROR)
        if may("cancels") and self.touched:
            yield "cancels", "USER makes CANCEL", self.cancel
        if may("mcancels") and on_disk.attempt:
            yield "mcancels", "PERSON makes CANCEL in the mirror", lambda: self.cancel(MIRROR)
        if may("withdraws") and standing.ns:
            yield "withdraws", "USER takes PENDING back", self.withdraw
        if may("edits"):
            yield "edits", "USER edits inputs", self.edit
        if may("downs") and self.hosts["b1"].up:
            yield "downs", "HOST b1 cannot be reached", lambda: setattr(self.hosts["b1"], "up", False)
        for request in self.touched:
            if request.place == WEB and may("relists") and request != standing and not on_disk.has_accepted(request):
                yield "relists", "RELAY lists a request late", lambda r=request: self.jobs.take(ID).hear(pending=r.ns)
            if request.place == WEB and may("restores") and not standing.ns and on_disk.has_accepted(request):
                yield "restores", "BACKUP restores PENDING", lambda r=request: self.restore(r)
        if may("nodes"):
            for execution in self.executions():
                if execution.alive():
                    yield "nodes", f"NODE of {execution.token} goes down", execution.kill
        yield from self.accidents(may)

    def accidents(self, may):
        if may("crashes"):
            working = [a for a in self.active if not a.ended]
            yield "crashes", "CRASH of the daemon, hooks live on", lambda: self.crash(False)
            if working:
                yield "crashes", "CRASH of daemon and hooks", lambda: self.crash(True)
            for active in working:
                name = f"{active.run.rule}({active.run.jobs[0]['token']})"
                if isinstance(active.op, Call) and not self.orphan and active.op.host.up:
                    yield "crashes", f"CRASH, far command of {name} goes on", lambda a=active: self.crash(True, a)
        for active in self.active:
            if may("kills") and isinstance(active.op, Call) and active.op.stopped:
                yield "kills", f"AGENT of {active.run.rule} is killed", lambda a=active: self.kill_agent(a)
            if may("giveups") and not active.ended and active.run.rule in ("pull", "submit", "fetch", "push") and active.op.label != "settle":
                yield "giveups", f"{active.run.rule} gives up", lambda a=active: self.give_up(a)

    def kill_agent(self, active):
        active.op.kill()
        self.hear_answer(active, active.op)

    # ---- one step, and what must hold ----

    def own_actions(self):
        """Return [(weight, label, function)] of what the system itself may do now."""
        return [*self.daemon_actions(), *self.hook_actions(), *self.compute_actions()]

    def do(self, label, action, spend=""):
        """Do one action, and check."""
        self.trace.append(label)
        if spend:
            self.budget[spend] -= 1
        self.now += 1
        action()
        self.check()

    def check(self):
        on_disk = record.load(self.here)
        if on_disk.attempt:
            self.seen_tokens[on_disk.token] = on_disk.attempt
        if sum(e.alive() for e in self.executions()) > 1:
            raise Violation("I1 two executions at a time")
        requests = [r for r in map(Request.parse, on_disk.accepted) if r.marker == PENDING]
        if len(self.executions()) > len(requests):
            raise Violation("I2 more executions than accepted requests")
        done = markers.look(self.there).markers.get(DONE)
        if done and self.seen_tokens[done.token] > self.pushed_results():
            raise Violation("I4 DONE on the web without its results")
        if self.inputs(self.there) != self.version:
            raise Violation("I5 inputs on the web go back")
        for token in set(self.mails):
            if self.mails.count(token) > 1 + self.mail_crashes:
                raise Violation("I6 a mail too many")

    def pushed_results(self):
        """Return the attempt whose results stand on the web, 0 for none."""
        path = self.there / "result"
        pid = int(path.read_text() or 0) if path.exists() else 0
        return next((e.attempt for e in self.executions() if e.process.pid == pid), 0)

    def check_final(self):
        """Nothing is left to do for the system: it must be a good end."""
        rec = record.load(self.here)
        if not rec.attempt and not self.touched:
            return
        web = markers.look(self.there)
        last = [r for r in self.touched if r.place == WEB][-1:]
        shows = {s: web.markers[s].token for s in STATES if s in web.markers}
        hidden = [ns for name, ns in web.taken.items() if not rec.has_accepted(Request(WEB, name, ns))]
        for bad, what in (
            (self.need, "I3 a request was followed by no execution"),
            (last and not (rec.has_accepted(last[0]) or last[0] in self.excused), "I3 the last request was never accepted"),
            (PENDING in web.markers or hidden, "I3 PENDING stays on the web"),
            (rec.attempt and shows != {rec.phase: rec.token}, f"I3 the web shows {shows} instead of {rec.phase} {rec.token}"),
            (rec.old or self.orphan or self.active or self.plan, "I3 something hangs"),
            (self.jobs.get(ID) or (self.here / ".watchties.open").exists(), "I3 the job is never closed"),
            (self.last_in < self.need_in, "I5 the last attempt ran with inputs older than its request"),
            (rec.attempt and rec.token not in self.mails, "I6 no mail for the final state"),
        ):
            if bad:
                raise Violation(what)

    def close(self):
        """End every process that is left."""
        for op in [a.op for a in self.active] + [self.orphan]:
            if isinstance(op, Call):
                op.kill()
        for execution in self.executions():
            if execution.alive():
                execution.kill()


def ns_of(path):
    """Return the identity of a request, 0 if it does not stand."""
    try:
        return os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def quietly(function, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def _nothing(value):
    return value
    yield


def iter_once():
    """A hook that has settled: its next step is its end."""
    yield
