"""Hooks at work in the simulation: one step at a time, far commands that stop in the middle, orphans, results files.

Knows: how a hook's generator is driven, and that its last step is a line in its results file.
Must not know: what any hook does, what the daemon makes of it, what must hold.
"""

import contextlib
import io
from dataclasses import dataclass

from watchties import runs
from watchties.errors import Unreachable
from watchties.hookkit import Job as HookJob
from watchties.hookkit import Run as HookRun

from sim_far import Call
from sim_hooks import Local


@dataclass
class Active:
    """A run at work. op: its next step, None when it has ended; code: its exit code, None if its daemon has died."""

    run: runs.Run
    gen: object
    op: object = None
    said: tuple = ()
    code: int | None = 0

    ended = property(lambda self: self.op is None)


class Hooks:
    """The part of System that drives the hooks."""

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
        run = active.run
        hook = HookRun(active.run.rule, active.run.host, active.run.id, {}, [], active.run.path("result"))
        job = HookJob(run.jobs[0]["tree"], run.jobs[0]["job"], str(self.here))
        active.op = Local("settle", lambda: quietly(hook.settle, [(job, outcome, "", fields)]))
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


def quietly(function, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def iter_once():
    """A hook that has settled: its next step is its end."""
    yield
