"""LSF and PBS with the real daemon, against fakes of their commands that fail as told: each job runs exactly once."""

import collections
import sys
from pathlib import Path

import pytest
from site_kit import Site

FAKES = Path(__file__).resolve().parents[1] / "fakes"
JOBS = [f"{user}/e{n}" for n in range(5) for user in ("ann", "bob", "cyd", "dan")]
SUBMIT = {"lsf": "bsub", "pbs": "qsub"}
ASK = {"lsf": ("bjobs",), "pbs": ("qselect", "qstat")}


class FakeSite(Site):
    """A site whose compute host has a fake scheduler. more: more lines for the host's table."""

    def __init__(self, base, scheduler, more="", daemon='grace = "1s"', **how):
        self.scheduler, self.batch = scheduler, Path(base) / "batch"
        (self.batch / "faults").mkdir(parents=True)
        setup = f"export PATH='{FAKES}:{Path(sys.executable).parent}':$PATH FAKE_BATCH='{self.batch}'"
        text = f'scheduler = "{scheduler}"\nsetup = """{setup}"""\npoll = "1s"\n{more}'
        retry = 'retry = { first = "1s", maximum = "2s", give_up_after = "3d" }\n'
        super().__init__(base, change=lambda all_: all_.replace('scheduler = "shell"', text), daemon=daemon,
                         edit=lambda rules: rules.replace('name = "submit"\n', 'name = "submit"\n' + retry), **how)  # fmt: skip

    def fail(self, command, *kinds, rest=""):
        """Have the next calls of a command fail so, and all after them as `rest`."""
        (self.batch / "faults" / command).write_text("".join(kind + "\n" for kind in kinds))
        if rest:
            (self.batch / "faults" / f"{command}.rest").write_text(rest)

    def accepted(self):
        """Return the names under which jobs were accepted, one for each time."""
        log = self.batch / "log"
        return [line.split()[2] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("scheduler", ["lsf", "pbs"])
def test_each_of_twenty_jobs_runs_exactly_once_whatever_the_scheduler_does(tmp_path, scheduler):
    site = FakeSite(tmp_path, scheduler)
    site.fail(SUBMIT[scheduler], "drop", "", "255", "empty", "banner", "", "drop", "quota", "255", "drop", "empty", "quota", "banner", "", "255", "drop")
    for command in ASK[scheduler]:
        site.fail(command, "none" if command == "bjobs" else "255", "partial" if command != "qselect" else "255", "255", "banner")
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
