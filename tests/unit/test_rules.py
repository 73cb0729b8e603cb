"""Each named rule of the protocol: a scripted life (the shortest counterexample) that is good with the rule, and breaks
an invariant when the rule is taken out. Rules that live in agent.sh are shown so in test_agent_*.py."""

import fnmatch
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from agent_kit import AGENT  # noqa: E402
from helpers import make_site, put  # noqa: E402
from simulation import System, Violation  # noqa: E402

from watchties import batches, decide, dispatch, hookkit, manifest, markers, record, recordfile, results, submission, transfer  # noqa: E402
from watchties.model import CANCEL, MIRROR, PENDING  # noqa: E402

BUDGET = dict(touches=9, mirror=9, cancels=9, edits=9, crashes=9, withdraws=9, restores=9, stops=0, downs=9, nodes=9)
LAST = ("time", "daemon: starts poll")
LONG = 500  # actions: no life here has as many


def begins(label, *patterns):
    return any(fnmatch.fnmatchcase(label, pattern + "*") for pattern in patterns)


class Play(System):
    """A life by a script: labels of actions, in order; in between, the first thing that may be done."""

    def at_once(self, *labels):
        """Do these things, each at once."""
        for wanted in labels:
            others = [(label, action, spend) for spend, label, action in self.environment()]
            found = [a for a in others + [(label, action) for _, label, action in self.own_actions()] if begins(a[0], wanted)]
            assert found, f"{wanted} is not possible after {self.trace[-5:]}"
            self.do(*found[0])

    def in_order(self):
        """Return what the system may do, asking and waiting last."""
        return sorted(((label, action) for _, label, action in self.own_actions()), key=lambda a: begins(a[0], *LAST))

    def until(self, wanted, avoid=()):
        """Do what may be done, but nothing of `avoid`, until something can be done whose label begins so."""
        for _ in range(LONG):
            own = self.in_order()
            if any(begins(label, wanted) for label, _ in own):
                return
            self.do(*next(a for a in own if not begins(a[0], *avoid)))
        raise AssertionError(f"never: {wanted}")

    def rest(self, avoid=()):
        """Do whatever may be done, but nothing of `avoid`, until nothing is left."""
        for _ in range(LONG):
            own = [a for a in self.in_order() if not begins(a[0], *avoid, *LAST)]
            if not own:
                return
            self.do(*own[0])
        raise Violation("I3 the system can go round for ever")

    def finish(self):
        """Let the system come to its end, and check that it is a good one."""
        for _ in range(LONG):
            own = self.in_order()
            if not own:
                return self.check_final()
            self.do(*own[0])
        raise Violation("I3 the system can go round for ever")


def life(script):
    """Live one life by a script."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as base:
        play = Play(Path(base), random.Random(0), BUDGET, AGENT)
        play.trace = []
        try:
            script(play)
            play.finish()
        except Violation as error:
            error.add_note("\n".join(play.trace))
            raise
        finally:
            play.close()


# ---- scripts ----


def merge_uncontacted(play):
    play.at_once("USER touches PENDING")
    play.until("submit(t1): settle", avoid=("b1: wrapper",))
    play.at_once("b1: wrapper(t1)", "b1: job(t1) ends", "USER touches PENDING", "CRASH of daemon and hooks")


def cancel_waits(play):
    play.at_once("USER touches PENDING")
    play.until("daemon: starts report")
    play.until("b1: job(t1)")
    play.at_once("USER touches PENDING")
    play.rest(avoid=("b1: job(t1)", "daemon: starts cancel"))


def while_it_runs(play):
    """Come to where the job runs and the mirror's PENDING is about to be taken off."""
    play.at_once("USER touches PENDING")
    play.until("submit(t1): settle", avoid=("b1: wrapper",))
    play.at_once("b1: wrapper(t1)")
    play.until("daemon: take_off PENDING", avoid=("b1: job",))


def restore_hidden(play):
    while_it_runs(play)
    play.at_once("daemon: take_off PENDING", "PERSON touches PENDING", "daemon: goes on writing")
    assert not (play.here / PENDING).exists()
    play.at_once("CRASH of the daemon")


def mirror_careful(play):
    while_it_runs(play)
    play.at_once("daemon: take_off PENDING", "PERSON touches PENDING")


def back_over_accepted(play):
    restore_hidden(play)
    own = recordfile.load(play.here).own
    (play.here / PENDING).touch()
    os.utime(play.here / PENDING, ns=(own, own))  # a backup restores what has been accepted


def pull_open(play):
    play.at_once("USER touches PENDING")
    play.until("daemon: starts submit")
    play.at_once("USER edits inputs", "USER touches PENDING")
    play.until("pull(t1): rsync web -> mirror begins", avoid=("daemon: starts submit",))
    play.at_once("pull(t1): rsync web -> mirror begins", "CRASH of daemon and hooks")
    play.rest(avoid=("daemon: starts pull", "relay: web"))


def cancel_order(play):
    play.at_once("USER touches PENDING", "USER makes CANCEL", "USER touches PENDING")


def tidy(play):
    play.at_once("USER touches PENDING")
    play.rest()
    play.at_once("BACKUP restores PENDING")


def pull_spares(play):
    play.at_once("USER touches PENDING")
    play.rest()
    play.at_once("PERSON touches PENDING")
    play.until("daemon: starts push")
    play.at_once("USER touches PENDING")
    play.until("pull(*): agent identify", avoid=("daemon: starts push",))
    play.at_once("USER takes PENDING back")


def made_list(play):
    play.at_once("USER touches PENDING")
    play.until("daemon: starts report")
    play.until("b1: job(t1)")
    play.at_once("USER touches PENDING")
    play.until("pull(t1): rsync web -> mirror begins", avoid=("b1: job(t1)",))
    play.at_once("USER edits inputs", "USER takes PENDING back")


def cancel_in_the_mirror_order(play):
    play.at_once("USER touches PENDING")
    play.until("daemon: starts submit")
    play.at_once("USER makes CANCEL", "relay: web has cancel")


# rule -> (script, what stands for the rule in the code, what does when it is taken out, the invariant that breaks)
SCRIPTED = {
    "merge_uncontacted": (merge_uncontacted, (record, "merge_uncontacted"), lambda rec: rec.attempt > 0 and rec.phase == PENDING, "I3"),
    "cancel_waits": (cancel_waits, (decide, "cancel_waits"), lambda rec: False, "I1"),
    "restore_hidden": (restore_hidden, (decide, "restore_hidden"), lambda: False, "I3"),
    "mirror_careful": (mirror_careful, (markers, "mirror_careful"), lambda: False, "I3"),
    "back_over_accepted": (back_over_accepted, (markers, "back_over_accepted"), lambda is_accepted, standing: False, "I3"),
    "pull_open": (pull_open, (decide, "pull_open"), lambda rec: False, "I5"),
    "cancel_order": (cancel_order, (decide, "cancel_order"), lambda rec, request: True, "I3"),
    "tidy": (tidy, (decide, "tidy"), lambda seen, world: (), "I3"),
    "pull_spares": (pull_spares, (dispatch, "pull_spares"), lambda rec: False, "I4"),
}
IN_THE_AGENT = ("far_lock", "restore_hidden", "back_over_accepted", "state_rank", "fenced", "begun_is_one_name", "cancel_waits")
ALL = ("merge_uncontacted", "begun_is_one_name", "cancel_waits", "restore_hidden", "far_lock", "state_rank", "mirror_careful", "pull_open",
       "claim_first", "fenced", "cancel_order", "made_list", "pull_spares", "back_over_accepted", "tidy")  # fmt: skip


@pytest.mark.parametrize("rule", SCRIPTED)
def test_the_rule_holds_and_is_needed(rule, monkeypatch):
    script, (module, name), unprotected, invariant = SCRIPTED[rule]
    life(script)
    monkeypatch.setattr(module, name, unprotected)
    with pytest.raises(Violation, match=invariant):
        life(script)


@pytest.mark.parametrize("script", [made_list, cancel_in_the_mirror_order])
def test_more_lives_that_were_hard(script):
    life(script)


def test_every_rule_has_a_test():
    agents = "".join(path.read_text() for path in Path(__file__).parent.glob("test_agent_*.py"))
    assert all(f"def test_rule_{rule}(" in agents for rule in IN_THE_AGENT)
    here = {name.removeprefix("test_rule_") for name in globals() if name.startswith("test_rule_")}
    assert {*SCRIPTED, *IN_THE_AGENT, *here} == set(ALL)


# ---- rules of the hooks, with the hooks' own functions, rsync and agent ----


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


def run_of(site, rule, jobs, number):
    """Return a Run as the real hook gets it."""
    result = site.base / f"result.{rule}.{number}"
    host = "vision" if rule in ("pull", "push") else "b01"
    return hookkit.Run(rule, host, f"{rule}-{number}", site.config, [hookkit.Job.parse(json.dumps(job)) for job in jobs], str(result))


class RsyncFirst(submission.Submission):
    """Submission without claim_first: the inputs travel before anybody knows whether the job runs already."""

    def carry_out(self, jobs):
        self.bring_inputs(jobs)
        super().carry_out(jobs)


@pytest.mark.parametrize("kind, inputs", [(submission.Submission, "old"), (RsyncFirst, "new")])
def test_rule_claim_first(site, kind, inputs):
    """A submit that is repeated after a crash leaves the inputs of a job that may run as they are."""
    put(site.mirror / "ann/e1/command", "#!/bin/sh\nexit 0\n")
    for number, text in enumerate(["old", "new"]):
        put(site.mirror / "ann/e1/input", text)
        run = run_of(site, "submit", [site.job("ann/e1", marker=PENDING)], number)
        kind(run, "ties").carry_out(run.jobs)
        assert [json.loads(line)["outcome"] for line in Path(run.result).read_text().splitlines()] == ["done"]
    assert (site.compute / "ann/e1/input").read_text() == inputs


def fetch_and_list(site):
    """Return what push would send, after a fetch; the user has edited `input` on its way to the next attempt."""
    put(site.mirror / "ann/e1/input", "old")
    run = run_of(site, "fetch", [site.job("ann/e1", marker="DONE")], 0)
    job = run.jobs[0]
    manifest.write("manifest", {job: manifest.walk(job.dir)})
    route = transfer.Route.of(site.config, "ties", "b01")
    batches.carry(route, {job: [job.job]}, inward=False)
    put(site.compute / "ann/e1/output", "made")
    put(site.mirror / "ann/e1/input", "newer")
    results.keep(run, route, results.bring(run, route, [job]))
    return results.to_send(job), (site.mirror / "ann/e1/input").read_text()


def test_rule_made_list(site, tmp_path, monkeypatch):
    """What a user edited for the next attempt is neither overwritten by fetch nor sent back by push."""
    assert fetch_and_list(site) == (["ann/e1/output"], "newer")
    monkeypatch.setattr(manifest, "changed", lambda before, now: set())
    monkeypatch.setattr(manifest, "made", lambda before, now, listed: {path: now[path] for path in listed if path in now})
    sent, text = fetch_and_list(make_site(tmp_path / "unprotected"))
    assert "ann/e1/input" in sent and text == "old"


def test_a_request_after_cancel_in_another_place_is_followed_by_an_execution():
    """Web CANCEL heard, then PENDING in the mirror: by acceptance that request is later."""

    def script(play):
        cancel_in_the_mirror_order(play)
        play.at_once("PERSON touches PENDING")
        play.finish()
        assert recordfile.load(play.here).fields.get("cause") != "cancelled" and len(play.executions()) == 1
        assert any(text.startswith(f"{MIRROR}:{PENDING}") for text in recordfile.load(play.here).accepted)
        assert not (play.there / CANCEL).exists()

    life(script)


def goes_elsewhere(play):
    """b1 goes away between the choice of it and the first word to it."""
    play.at_once("USER touches PENDING")
    play.until("submit(t1): knock")
    play.at_once("HOST b1 cannot be reached", "submit(t1): knock")
    play.until("daemon: starts submit b2", avoid=("b1 is back",))


def stays(play):
    """b1 goes away when a claim has been on its way: whether it holds one is not known."""
    play.at_once("USER touches PENDING")
    play.until("submit(t1): agent claim")
    play.at_once("HOST b1 cannot be reached", "submit(t1): agent claim")
    play.rest(avoid=("b1 is back",))
    assert recordfile.load(play.here).contacted and not (play.hosts["b2"].data / "it's a user").exists()


@pytest.mark.parametrize("script", [goes_elsewhere, stays])
def test_only_a_host_that_was_never_reached_lets_a_job_go(script):
    life(script)


def test_a_lost_job_runs_again_after_its_end_is_proven():
    """The cancel comes first [cancel_waits]; nothing is submitted before it has ended."""

    def script(play):
        play.resubmits = 1
        play.at_once("USER touches PENDING")
        play.until("b1: job(t1)")
        play.rest(avoid=("b1: job", "daemon: starts poll"))
        play.at_once("NODE of t1 goes down")
        play.until("daemon: starts cancel", avoid=("daemon: starts submit",))
        play.until("daemon: starts submit")
        assert recordfile.load(play.here).attempt == 2 and [e.alive() for e in play.executions()] == [False]

    life(script)
