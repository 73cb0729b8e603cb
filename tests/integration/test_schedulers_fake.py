"""LSF and PBS with the real daemon, against fakes of their commands that fail as told: each job runs exactly once."""

import collections
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from site_kit import Site

FAKES = Path(__file__).resolve().parents[1] / "fakes"
JOBS = [f"{user}/e{n}" for n in range(5) for user in ("ann", "bob", "cyd", "dan")]
SUBMIT = {"lsf": "bsub", "pbs": "qsub"}
HOLD = "echo run >> runs.log; for _ in $(seq 2000); do [ -e go ] && break; sleep 0.05; done\n"
ASK = {"lsf": ("bjobs",), "pbs": ("qselect", "qstat")}


class FakeSite(Site):
    """A site whose compute host has a fake scheduler. more: more lines for the host's table; then: their text -> text."""

    def __init__(self, base, scheduler, more="", daemon='grace = "1s"', then=lambda text: text,
                 retry='first = "0.3s", maximum = "1s", give_up_after = "3d"', **how):  # fmt: skip
        self.scheduler, self.batch = scheduler, Path(base) / "batch"
        (self.batch / "faults").mkdir(parents=True)
        cap = 'capped() { wt_cap=$1; shift; [ "$wt_cap" != 20 ] || wt_cap=4; timeout -s KILL "$wt_cap" "$@"; }'  # a question's, not 20 s
        setup = f"{cap}\nexport PATH='{FAKES}:{Path(sys.executable).parent}':$PATH FAKE_BATCH='{self.batch}'"
        text = f'scheduler = "{scheduler}"\nsetup = """{setup}"""\npoll = "1s"\n{more}'
        retry = f"retry = {{ {retry} }}\n"
        super().__init__(base, change=lambda all_: then(all_.replace('scheduler = "shell"', text)), daemon=daemon,
                         edit=lambda rules: re.sub(r'name = "(submit|poll)"\n', r"\g<0>" + retry, rules), **how)  # fmt: skip

    def says(self, job, words):
        """Return whether `status` shows these words of a job."""
        return words in self.watchties("status", job, check=False).stdout

    def fail(self, command, *kinds, rest=""):
        """Have the next calls of a command fail so, and all after them as `rest`."""
        (self.batch / "faults" / command).write_text("".join(kind + "\n" for kind in kinds))
        if rest:
            (self.batch / "faults" / f"{command}.rest").write_text(rest)

    def refusals(self):
        """Return how often the fake has said that it takes no more."""
        told = self.batch / "refusals"
        return len(told.read_text().split()) if told.exists() else 0

    def accepted(self):
        """Return the names under which jobs were accepted, one for each time."""
        log = self.batch / "log"
        return [line.split()[2] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("scheduler", ["lsf", "pbs"])
def test_each_of_twenty_jobs_runs_exactly_once_whatever_the_scheduler_does(tmp_path, scheduler):
    site = FakeSite(tmp_path, scheduler)
    site.fail(SUBMIT[scheduler], "drop", "", "255", "empty", "banner", "", "drop", "quota", "255", "drop", "empty", "quota", "banner", "", "255", "drop")
    for command in ASK[scheduler]:
        site.fail(command, *(("none", "partial", "hang", "255", "banner") if command == "bjobs" else ("255", "partial", "255", "banner")))
    with site:
        for job in JOBS:
            site.drop(job)
        for job in JOBS:
            site.wait_state(job, "DONE", 120)
        site.wait(site.quiet, 30, "quiet")
        names = [f"wt.{site.marker(job)[1]['token']}" for job in JOBS]
        assert [site.runs(job) for job in JOBS] == [1] * len(JOBS)
        assert collections.Counter(site.accepted()) == collections.Counter(names)  # not only run once: submitted once
        assert all(site.marker(job)[1]["attempt"] == "1" and site.marker(job)[1]["id"] for job in JOBS)
        dropped = [line for line in (site.batch / "log").read_text().splitlines() if line.endswith((" drop", " empty"))]
        assert len(dropped) == 6  # accepted, and no id came back


def test_refusals_caps_and_what_a_job_asks_for(tmp_path):
    """A refusal is FAILED in the scheduler's own words; over a cap is FAILED and says the cap; within it, it is asked for."""
    more = 'resources = { cores = 1, queue = "normal" }\ncaps = { cores = 8, walltime = "1d" }\nsubmit_options = ["-x"]\n'
    site = FakeSite(tmp_path, "lsf", more)
    site.fail("bsub", "queue")
    with site:
        site.drop("ann/refused")
        told = site.wait_state("ann/refused", "FAILED")
        assert (told["cause"], told["reason"]) == ("rejected", "nosuch: No such queue. Job not submitted.")
        for job, toml in ("big", "cores = 9\n"), ("odd", "corse = 2\n"), ("evil", 'queue = "q; touch pwned"\n'), ("good", 'cores = 4\nwalltime = "90m"\n'):
            site.drop(f"ann/{job}", files={"job.toml": toml})
        said = {job: site.wait_state(f"ann/{job}", "FAILED") for job in ("big", "odd", "evil")}
        assert {told["cause"] for told in said.values()} == {"rejected"}
        assert said["big"]["reason"] == "job.toml: cores = 9 is more than b01 allows, 8"
        assert 'did you mean "cores"?' in said["odd"]["reason"] and "queue" in said["evil"]["reason"]
        site.wait_state("ann/good", "DONE")
        assert [site.runs(f"ann/{job}") for job in ("refused", "big", "odd", "evil", "good")] == [0, 0, 0, 0, 1]
        site.drop("ann/stopped", HOLD)
        site.wait_state("ann/stopped", "SUBMITTED")
        site.watchties("cancel", "ann/stopped")
        assert site.wait_state("ann/stopped", "FAILED")["cause"] == "cancelled"
        taken, _ = [json.loads(path.read_text()) for path in sorted((site.batch / "jobs").glob("*.json"))]
        assert taken["argv"][:9] == ["-n", "4", "-R", "span[hosts=1]", "-W", "90", "-q", "normal", "-x"]


def test_a_lost_job_is_tried_again_as_often_as_its_tree_says(tmp_path):
    """Taken and then not known any more, without an exit file. The former attempt is entombed first: its late start does nothing."""
    site = FakeSite(tmp_path, "lsf", tree="resubmit_lost = 1")
    site.fail("bsub", "forget", "", "forget", "forget")
    with site:
        site.drop("ann/once")
        told = site.wait_state("ann/once", "DONE", 90)
        assert told["attempt"] == "2" and site.runs("ann/once") == 1
        tombs = [path for path in (site.compute / "ann/once/.watchties").glob("1.*/begun") if "state=cancelled" in path.read_text()]
        assert len(tombs) == 1
        site.drop("ann/twice")
        told = site.wait_state("ann/twice", "FAILED", 90)
        assert (told["attempt"], told["cause"]) == ("2", "lost") and site.runs("ann/twice") == 0
        assert len(site.accepted()) == 4
        site.fail("bsub", "memory")
        site.drop("ann/fat", HOLD)
        told = site.wait_state("ann/fat", "FAILED", 90)  # killed outright: no exit code, but it is known why
        assert (told["attempt"], told["cause"]) == ("1", "memory") and "TERM_MEMLIMIT" in told["reason"]


def test_what_a_host_may_not_hold_yet_waits_in_the_mirror_and_says_why(tmp_path):
    """max_running, round robin over users; and a scheduler that takes no more holds up its own jobs only."""
    site = FakeSite(tmp_path, "lsf", max_running=2)
    with site:
        for job in "ann/e1", "ann/e2":
            site.drop(job, HOLD)
            site.wait_state(job, "SUBMITTED")
        for job in "ann/e3", "ann/e4", "bob/e1":
            site.drop(job, HOLD)
        told = "b01 holds as many jobs as it may (max_running)"
        waiting = "ann/e3", "ann/e4", "bob/e1"
        site.wait(lambda: all(site.says(job, told) for job in waiting), 30, "they say why they wait")
        assert told in site.watchties("explain", "bob/e1").stdout
        assert all((site.mirror / job / "PENDING").exists() and not (site.compute / job).exists() for job in waiting)
        for job in "ann/e1", "ann/e2":
            (site.compute / job / "go").touch()
        site.wait_state("bob/e1", "SUBMITTED")  # the next two are one of each user; which of ann's, her pulls decide
        first = site.wait(lambda: [job for job in ("ann/e3", "ann/e4") if site.marker(job)[0] == "SUBMITTED"], 60, "one of ann's")[0]
        last = "ann/e4" if first == "ann/e3" else "ann/e3"
        assert not (site.compute / last).exists()
        for job in first, "bob/e1":
            (site.compute / job / "go").touch()
        site.wait_state(last, "SUBMITTED")
        (site.compute / last / "go").touch()
        site.wait_state(last, "DONE")


def second_host(text):
    """Return the configuration with another compute host, a plain one, beside b01."""
    base = text.partition('root = "')[2].partition("/vision")[0]
    host = f'[host.b02]\nrole = "compute"\nscheduler = "shell"\nroot = "{base}/b02/compties"\n[tree.main]\n'
    return text.replace("[tree.main]\n", host).replace('compute = ["b01"]', 'compute = ["b01", "b02"]')


class TwoHosts(FakeSite):
    """b01 has a fake LSF, b02 is a plain host."""

    def __init__(self, base, **how):
        super().__init__(base, "lsf", then=second_host, **how)
        self.other = self.base / "b02/compties/user_data"
        shutil.copytree(self.compute.parent, self.other.parent)


def test_a_full_queue_of_one_host_does_not_stop_another(tmp_path):
    site = TwoHosts(tmp_path)
    site.fail("bsub", rest="quota")
    with site:
        site.drop("ann/full")
        site.wait(lambda: site.says("ann/full", "takes no more for now"), 30, "it says that b01 is full")
        site.drop("ann/other", CPU_SERVER="b02\n")
        assert site.wait_state("ann/other", "DONE")["host"] == "b02"
        site.wait(lambda: "Pending job threshold" in site.watchties("explain", "ann/full").stdout, 30, "explain tells why it waits")
        assert site.marker("ann/full")[0] == "PENDING"
        (site.batch / "faults/bsub.rest").unlink()
        assert site.wait_state("ann/full", "DONE")["host"] == "b01" and site.runs("ann/full") == 1


def test_a_full_queue_holds_its_lane_back_and_costs_no_job_a_try(tmp_path):
    """The second job is not even sent: the first has found out. Both say why they wait; another host, and fetch, go on."""
    site = TwoHosts(tmp_path, retry='first = "1s", maximum = "2s", give_up_after = "3s"')
    site.fail("bsub", "", rest="quota")
    with site:
        site.drop("ann/runs", HOLD)
        site.wait_state("ann/runs", "SUBMITTED")
        site.drop("ann/full")
        site.wait(lambda: site.says("ann/full", "takes no more for now"), 30, "it says that b01 is full")
        site.drop("ann/next")
        site.wait(lambda: site.says("ann/next", "Pending job threshold"), 30, "the next says so too")
        (site.compute / "ann/runs/go").touch()
        site.wait_state("ann/runs", "DONE")
        site.drop("ann/other", CPU_SERVER="b02\n")
        assert site.wait_state("ann/other", "DONE")["host"] == "b02"
        site.wait(lambda: site.refusals() >= 4, 60, "asked four times in all")
        assert "gave up" not in site.watchties("status", "ann/full").stdout
        tries = [site.record(job).tries.get("submit", {}).get("count", 0) for job in ("ann/full", "ann/next")]
        assert max(tries) <= 1, "at most the question whether it is there after all"
        (site.batch / "faults/bsub.rest").unlink()
        for job in "ann/full", "ann/next":
            assert site.wait_state(job, "DONE")["host"] == "b01" and site.runs(job) == 1


def test_jobs_that_named_no_host_go_to_the_next_one_that_is_up(tmp_path):
    """b01 is away before anything is sent there: even the first job, which finds it out, goes to b02. Who named b01 waits."""
    site = TwoHosts(tmp_path)
    away = site.compute.parent.with_name("away")
    with site:
        site.wait_ready()
        site.drop("ann/before")
        assert site.wait_state("ann/before", "DONE")["host"] == "b01"
        site.compute.parent.rename(away)
        site.drop("ann/first")
        site.drop("ann/named", CPU_SERVER="b01\n")
        assert site.wait_state("ann/first", "DONE")["host"] == "b02"
        assert site.marker("ann/named")[0] == "PENDING" and not (site.other / "ann/named").exists()
        away.rename(site.compute.parent)
        assert site.wait_state("ann/named", "DONE", 90)["host"] == "b01"


def test_a_job_whose_first_host_may_hold_a_claim_goes_nowhere_else(tmp_path):
    """The scheduler took it and the reply was lost; then the host goes away. b02 is up, and must not have it."""
    site = TwoHosts(tmp_path)
    away = site.compute.parent.with_name("away")
    site.fail("bsub", "drop")
    site.fail("bjobs", rest="255")
    with site:
        site.drop("ann/e1")
        site.wait(lambda: site.says("ann/e1", "not known whether it was submitted"), 30, "it is in doubt")
        site.compute.parent.rename(away)
        site.drop("ann/e2")
        assert site.wait_state("ann/e2", "DONE")["host"] == "b02"
        assert not (site.other / "ann/e1").exists() and site.record("ann/e1").contacted
        (site.batch / "faults/bjobs.rest").unlink()
        away.rename(site.compute.parent)
        assert site.wait_state("ann/e1", "DONE", 90)["host"] == "b01" and site.runs("ann/e1") == 1 and len(site.accepted()) == 1


def test_a_job_removed_there_is_begun_anew_only_when_the_scheduler_does_not_know_it(tmp_path):
    ledger = tmp_path / "ledger"
    with FakeSite(tmp_path, "lsf") as site:
        site.fail("bsub", "drop")
        site.fail("bjobs", rest="255")
        site.drop("ann/e1", command=f'echo run >> "{ledger}"; rm -rf "$PWD"; sleep 8\n')
        site.wait(lambda: site.says("ann/e1", "has no trace"), 60, "the directory is missed, and nobody can be asked")
        claimed = site.compute / "ann/e1/.watchties"
        site.wait(lambda: list(claimed.glob("*/claim.*")), 20, "it is claimed again")
        runs = {path.name for path in claimed.glob("*/claim.*")}
        site.wait(lambda: {path.name for path in claimed.glob("*/claim.*")} - runs, 20, "and by a later run, from which it is held")
        (site.batch / "faults/bjobs.rest").unlink()
        assert site.wait_state("ann/e1", "DONE", 60)
        assert ledger.read_text() == "run\n" and len(site.accepted()) == 1
