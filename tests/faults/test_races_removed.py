"""A job's directory is removed, at every stage of its way, at each place: nobody else suffers, and a new job of that name works."""

import shutil
import time

import pytest
from races_kit import Log, command, drawing, edit
from site_kit import Site
from trouble_kit import end, quick

PLACES = ("web", "mirror", "compute")
STAGES = {
    "announced": lambda site, job, log: True,
    "pulling": lambda site, job, log: site.record(job).pulling,
    "accepted": lambda site, job, log: site.record(job).phase,
    "claimed": lambda site, job, log: site.record(job).contacted,
    "running": lambda site, job, log: log.spans(job),
    "submitted": lambda site, job, log: site.record(job).phase == "SUBMITTED" and site.marker(job)[0] == "SUBMITTED",
    "ended": lambda site, job, log: (site.compute / job / "DONE").exists(),
    "fetched": lambda site, job, log: site.record(job).phase == "DONE",
    "shown": lambda site, job, log: site.marker(job)[0] == "DONE",
}
FEW, MANY = (1, 0), (8, 120)  # times that each stage is met at each place; jobs removed at a random moment
GONE_BY = 60


def begin(site, job, text):
    """Write a job on the web host, also where it was removed."""
    (site.web / job).mkdir(parents=True, exist_ok=True)
    (site.web / job / "command").write_text(command("0.5"))
    edit(site.web / job, "web.txt", text)
    site.touch(job)


def remove(path):
    """Remove a directory as `rm -rf` does that is told to as often as it takes; somebody may be writing there."""
    for _ in range(200):
        if not path.exists():
            return
        shutil.rmtree(path, ignore_errors=True)
    raise AssertionError(f"{path} comes back again and again")


class Removing:
    """Jobs that are waited for, each to be removed at its place as soon as its stage is there. done: how many were."""

    def __init__(self, site, log, rounds, draw):
        self.site, self.log, self.done = site, log, dict.fromkeys(PLACES, 0)
        self.waits = {f"{place}/{stage}{n}": (place, STAGES[stage]) for place in PLACES for stage in STAGES for n in range(rounds[0])}
        for n in range(rounds[1]):
            at = time.monotonic() + draw.uniform(0, 20)
            self.waits[f"any/{n}"] = draw.choice(PLACES), lambda *_, at=at: time.monotonic() > at
        self.jobs = list(self.waits)

    def look(self):
        """Remove what has come so far; return whether all has."""
        for job, (place, has_come) in list(self.waits.items()):
            if has_come(self.site, job, self.log) or self.site.marker(job)[0] in ("DONE", "FAILED"):
                remove(getattr(self.site, place) / job)
                self.done[place] += 1
                del self.waits[job]
        return not self.waits


def settled(site, job):
    """Return whether nothing is left to do for a job: no flag stands in the mirror, and no request on the web host."""
    flagged = (site.mirror / job / ".watchties.open").exists()
    return not flagged and not (site.web / job / "PENDING").exists()


def shown(site, job):
    """Return the state that the web host shows, "" where the job was removed there."""
    return site.marker(job)[0] if (site.web / job).exists() else ""


@pytest.mark.slow
def test_a_job_removed_at_any_stage_harms_nobody_else(tmp_path, seed, long, figure):
    draw, others = drawing(seed), [f"other/exp {n}" for n in range(20 if long else 6)]
    with Site(tmp_path, max_running=40, daemon='grace = "1s"\nreconcile = "2s"', change=often) as site:
        log = Log(site)
        removing = Removing(site, log, MANY if long else FEW, draw)
        for job in [*removing.jobs, *others]:
            begin(site, job, "first")
        site.wait(removing.look, 120, "all removed")
        site.wait(lambda: all(settled(site, job) for job in removing.jobs), GONE_BY * (5 if long else 2), "all settled")
        site.wait(site.quiet, 60, "quiet")
        ends = {}
        for job in removing.jobs:
            state = shown(site, job)
            ends[state or "none"] = ends.get(state or "none", 0) + 1
            assert state in ("DONE", "FAILED") or not (site.web / job / "command").exists(), f"{job} shows {state!r}\n{site.said()}"
            truly_told(site, job)
        for job in others:
            assert site.wait_state(job, "DONE", 60) and len(log.spans(job)) == 1
        nothing_goes_on(site)
        for job in removing.jobs:
            begin(site, job, "second")
        site.wait(lambda: all(again(site, job) for job in removing.jobs), GONE_BY * (5 if long else 2), "each new job of that name is DONE")
        for job in removing.jobs:
            assert log.spans(job)[-1].web == "second"
        told = ", ".join(f"{count} at the {place}" for place, count in removing.done.items())
        came = ", ".join(f"{count} {state}" for state, count in sorted(ends.items()))
        figure(f"{len(removing.jobs)} job directories removed, {told}, at {len(STAGES)} stages: {came}; {len(others)} other jobs DONE once, "
               f"{len(removing.jobs)} new jobs of the same names DONE, 0 attempts at once, 0 retried without end")  # fmt: skip


def test_a_job_removed_while_its_submit_is_under_way_is_begun_once(tmp_path):
    with Site(tmp_path, daemon='grace = "1s"\nreconcile = "2s"', edit=quick("submit"), change=often) as site:
        agent = site.base / "b01/compties/scripts/agent.sh"
        slow = "        together submit_run\n"
        assert slow in agent.read_text()
        agent.write_text(agent.read_text().replace(slow, f"{slow}        sleep 1\n"))  # nothing of the submission is written down yet
        ledger = site.base / "ledger"
        site.drop("ann/e1", command=f'echo run >> "{ledger}"; rm -rf "$PWD"; sleep 4\n')
        end(site, "ann/e1", "DONE")  # its wrapper finds the directory that the next claim has made
        assert ledger.read_text() == "run\n"


def often(text):
    """Change the configuration so that hosts are asked often how their jobs stand."""
    return text.replace("[host.b01]", '[host.b01]\npoll = "1s"')


def again(site, job):
    out = site.web / job / "out.txt"
    return site.marker(job)[0] == "DONE" and out.exists() and out.read_text() == "second\n" and settled(site, job)


def truly_told(site, job):
    """Fail unless the record, the marker in the mirror and the web host agree, where all of them are there."""
    rec = site.record(job)
    if rec.phase and shown(site, job):
        assert shown(site, job) == rec.phase == site.marker(job, tree=site.mirror)[0], job


def nothing_goes_on(site):
    """Fail if a run begins though nobody has asked for anything: something is tried without end."""
    log = site.state / "log"
    counted = lambda: sum(path.read_text(errors="replace").count(" start host=") for path in log.glob("*.log"))  # noqa: E731
    before = counted()
    time.sleep(3)
    assert counted() == before, f"runs go on: {site.said()}"
