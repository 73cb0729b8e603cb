"""One job's life on real directories: the real decide, record, steps, markers, outcomes and agent.sh under a daemon and
hooks that can be interrupted anywhere. The invariants I1 to I6 are those of the protocol (see tests/unit/test_simulation.py).

Knows: who may do what next (`actions`), as one list of labelled functions; what must hold after each and at the end.
Must not know: which of them is chosen; that is the caller's, a script or a random generator.

Steps of people and accidents ("environment") are bounded by a budget; the system's own steps are not. The daemon keeps
nothing: after a crash its jobs, hints and runs are read from the disk again.
"""

import os

from watchties import markers, recordfile, runs
from watchties.model import CANCEL, DONE, MIRROR, PENDING, STATES, WEB, Request

from sim_daemon import ID, JOB, Daemon, ns_of
from sim_far import COMMAND, Call, Host
from sim_runs import Hooks

BASE = 1_500_000_000_000_000_000  # identities of requests: BASE + number
BUDGET = dict(touches=2, mirror=0, cancels=0, mcancels=0, edits=0, crashes=0, lost=0, downs=0, relists=0, restores=0, withdraws=0,
              stops=2, kills=0, nodes=0, giveups=0, resubmits=0)  # fmt: skip


class Violation(Exception):
    """An invariant does not hold."""


class System(Daemon, Hooks):
    """Everything: the far hosts, the mirror, the daemon, the hooks at work, people, and what they may expect."""

    def __init__(self, base, rng, budget, script):
        self.base, self.rng, self.budget = base, rng, {**BUDGET, **budget}
        self.resubmits, self.lost_executions = self.budget.pop("resubmits"), 0
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
        return request.ns and not recordfile.load(self.here).has_accepted(request)

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

    def lose(self, execution):
        execution.kill()
        self.lost_executions += 1

    # ---- the environment ----

    def environment(self):
        may = lambda name: self.budget[name] > 0  # noqa: E731
        standing = Request(WEB, PENDING, ns_of(self.there / PENDING))
        on_disk = recordfile.load(self.here)
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
                    yield "nodes", f"NODE of {execution.token} goes down", lambda e=execution: self.lose(e)
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
            settled = active.ended or active.op.label == "settle"
            if may("giveups") and not settled and active.run.rule in ("pull", "submit", "fetch", "push"):
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
        on_disk = recordfile.load(self.here)
        if on_disk.attempt:
            self.seen_tokens[on_disk.token] = on_disk.attempt
        if sum(e.alive() for e in self.executions()) > 1:
            raise Violation("I1 two executions at a time")
        requests = [r for r in map(Request.parse, on_disk.accepted) if r.marker == PENDING]
        if len(self.executions()) > len(requests) + min(self.lost_executions, self.resubmits):
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
        rec = recordfile.load(self.here)
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
