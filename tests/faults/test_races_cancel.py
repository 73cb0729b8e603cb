"""CANCEL against PENDING against a job's own end, at random offsets: one of them wins, everywhere the same, and never two at once.

What must hold (cancel_order): a CANCEL stops an attempt only if all requests that it serves are older. So a PENDING that is
touched after a CANCEL at the same place always has its attempt; a CANCEL after the last PENDING ends the job, or comes too late.
"""

import time

import pytest
from races_kit import Log, at_rest, command, consistent, drawing, edit, pause
from site_kit import Site

FEW, MANY = 24, 400
TAKES = 0.25  # seconds that a job takes by itself


class Racing:
    """Rounds of one request after another for a job at one place each; what the last one was decides."""

    def __init__(self, site, draw):
        self.site, self.draw, self.log, self.rounds = site, draw, Log(site), {}
        self.outcomes = {"cancelled": 0, "done": 0, "rerun": 0}

    def begin(self, number):
        """Drop a job, and then let CANCEL and PENDING follow at offsets around the moments at which something happens."""
        job = f"user{number % 7}/exp {number}"
        where = self.site.web / job
        where.mkdir(parents=True)
        (where / "command").write_text(command(TAKES))
        edit(where, "web.txt", "first")
        self.site.touch(job)
        self.rounds[job] = self.plan()
        return job

    def plan(self):
        """Return [(seconds after the one before, marker)], all at one place, and the place."""
        place = self.draw.choice(("web", "web", "mirror"))
        steps = [(self.draw.uniform(0, 1.2), self.draw.choice(("CANCEL", "CANCEL", "PENDING"))) for _ in range(self.draw.choice((1, 1, 2, 3)))]
        return place, steps

    def play(self, jobs):
        """Carry out the plans of several jobs side by side, in the order of time."""
        events = []
        for job in jobs:
            place, steps = self.rounds[job]
            at = 0.0
            for number, (after, marker) in enumerate(steps):
                at += after
                events.append((at, number, job, place, marker))
        now = 0.0
        for at, number, job, place, marker in sorted(events):
            pause_until(at - now)
            now = at
            self.ask(job, place, marker, number)

    def ask(self, job, place, marker, number):
        tree = getattr(self.site, place)
        if place == "mirror":  # there is a directory once it was pulled
            self.site.wait(lambda: self.site.record(job).attempt, 30, f"{job} is in the mirror")
        if marker == "PENDING":
            edit(tree / job, f"{place}.txt", f"again{number}")
        self.site.touch(job, marker, tree=tree)

    def check(self, job):
        """Look at a job that is at rest."""
        place, steps = self.rounds[job]
        rec, spans = self.site.record(job), self.log.spans(job)
        consistent(self.site, job)
        asked = 1 + sum(marker == "PENDING" for _, marker in steps)
        assert len(spans) <= rec.attempt <= asked, f"{job}: {len(spans)} executions, attempt {rec.attempt}, asked for {asked} times"
        last = steps[-1][1]
        if last == "PENDING":
            assert rec.phase == "DONE", f"{job}: PENDING came last, at the {place}, and it is {rec.phase}: {rec.fields}"
            assert getattr(spans[-1], place) == f"again{len(steps) - 1}"
            self.outcomes["rerun"] += 1
        elif rec.phase == "FAILED":
            assert rec.fields["cause"] == "cancelled", f"{job}: {rec.fields}"
            assert not (spans and spans[-1].ended and rec.fields.get("exit") == "0"), f"{job} was done, and is told to be cancelled"
            self.outcomes["cancelled"] += 1
        else:
            assert rec.phase == "DONE" and spans[-1].ended, f"{job}: {rec.phase}"
            self.outcomes["done"] += 1


def pause_until(seconds):
    time.sleep(max(0.0, seconds))


@pytest.mark.slow
def test_requeue_against_cancel_against_completion(tmp_path, seed, long, figure):
    draw, many = drawing(seed), MANY if long else FEW
    with Site(tmp_path, max_running=30, daemon='grace = "2s"\nreconcile = "20s"') as site:
        racing, side = Racing(site, draw), 12
        for first in range(0, many, side):
            jobs = []
            for number in range(first, first + side):
                jobs.append(racing.begin(number))
                pause(draw, 0.1)
            racing.play(jobs)
            for job in jobs:
                site.wait(lambda: at_rest(site, job), 90, f"{job} has ended: {racing.rounds[job]}, {site.marker(job)}")
        site.wait(site.quiet, 30, "quiet")
        for job in racing.rounds:
            racing.check(job)
        told = ", ".join(f"{count} {what}" for what, count in racing.outcomes.items())
        figure(f"{many} jobs with CANCEL and PENDING at random offsets: {told}; 0 inconsistent, 0 attempts at once, 0 requests unanswered")
