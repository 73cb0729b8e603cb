"""PENDING is touched again and again, from two sides, at every moment of a job's way."""

import os
import signal

import pytest
from races_kit import Log, at_rest, command, consistent, drawing, edit, pause
from site_kit import Site
from watchties.model import Request

FEW, MANY = 90, 1000
PLACES = ("web", "mirror")


class Touching:
    """Jobs whose inputs are edited and then touched, each side its own file. expected: job -> the attempt that must be its last."""

    def __init__(self, site, jobs, draw):
        self.site, self.jobs, self.draw, self.log = site, jobs, draw, Log(site)
        self.touches, self.last, self.expected, self.bursts = 0, {}, {}, 0
        self.per_job = dict.fromkeys(jobs, 0)

    def touch(self, job, place):
        """Edit what this side edits, then touch; before the mirror holds the job only the web host can."""
        if not self.site.record(job).attempt:
            place = "web"
        self.touches += 1
        self.per_job[job] += 1
        tree, text = getattr(self.site, place), f"{place}{self.touches}"
        edit(tree / job, f"{place}.txt", text)
        self.site.touch(job, tree=tree)
        self.last[job, place] = text

    def frozen(self, job):
        """Touch a job several times on one side while the daemon can see none of it: together they are worth one request."""
        os.kill(self.site.process.pid, signal.SIGSTOP)
        try:
            rec, place = self.site.record(job), self.draw.choice(PLACES)
            sure = bool(rec.attempt and (rec.contacted or rec.phase in ("DONE", "FAILED")) and not rec.pulling)
            sure = sure and not self.stands_new(job, rec, PLACES[place == "web"])
            for _ in range(self.draw.randint(2, 9)):
                self.touch(job, place)
            self.expected[job] = {rec.attempt + 1} if sure else {rec.attempt, rec.attempt + 1, rec.attempt + 2}
            self.bursts += sure
        finally:
            os.kill(self.site.process.pid, signal.SIGCONT)

    def stands_new(self, job, rec, place):
        """Return whether a request stands at a place that the daemon has not accepted: who hears of it in time, nobody can say."""
        try:
            ns = os.stat(getattr(self.site, place) / job / "PENDING").st_mtime_ns
        except FileNotFoundError:
            return False
        return not rec.has_accepted(Request(place, "PENDING", ns))

    def check_bursts(self):
        """Look at those jobs whose burst has been answered: it has caused exactly one attempt where nothing else could cause one."""
        for job in [job for job in self.expected if at_rest(self.site, job)]:
            expected = self.expected.pop(job)
            assert self.site.record(job).attempt in expected, f"{job}: not one of {expected}\n{self.site.said()}"

    def go_on(self):
        """Touch something once more."""
        self.check_bursts()
        free = [job for job in self.jobs if job not in self.expected]
        if not free:
            return self.site.wait(lambda: self.check_bursts() or not self.expected, 120, f"answered: {self.expected}")
        job = self.draw.choice(free)
        if self.draw.random() < 0.15:
            self.frozen(job)
        else:
            for _ in range(self.draw.choice((1, 1, 1, 2, 4))):
                self.touch(job, self.draw.choice(PLACES))
        return None

    def ended(self, job):
        """Return whether the last attempt had the inputs as last edited, and all is quiet."""
        spans = self.log.spans(job)
        return bool(spans) and at_rest(self.site, job) and self.saw_all(job, spans[-1])

    def saw_all(self, job, span):
        return (span.web, span.mirror) == tuple(self.last.get((job, place), "-") for place in PLACES)


@pytest.mark.slow
def test_every_touch_is_answered_and_no_two_attempts_are_ever_at_once(tmp_path, seed, long, figure):
    draw, jobs = drawing(seed), [f"user{n % 5}/exp {n}" for n in range(16 if long else 6)]
    with Site(tmp_path, max_running=12 if long else 4, daemon='grace = "2s"\nreconcile = "20s"') as site:
        touching = Touching(site, jobs, draw)
        for job in jobs:
            (site.web / job).mkdir(parents=True)
            (site.web / job / "command").write_text(command("$(($$ % 3 / 2)).$(($$ % 7))"))
        while touching.touches < (MANY if long else FEW):
            touching.go_on()
            pause(draw, 0.6)
        site.wait(lambda: touching.check_bursts() or all(map(touching.ended, jobs)), 180, "all ended as last edited")
        site.wait(site.quiet, 30, "quiet")
        runs = 0
        for job in jobs:
            spans = touching.log.spans(job)
            runs += len(spans)
            assert site.marker(job)[0] == "DONE" and (site.web / job / "out.txt").read_text() == f"{touching.last[job, 'web']}\n"
            assert spans[-1].ended and len(spans) <= site.record(job).attempt <= touching.per_job[job]
            consistent(site, job)
        assert not touching.expected
        figure(f"{touching.touches} touches of {len(jobs)} jobs from two sides, {touching.bursts} bursts of which each caused just one attempt: "
               f"{runs} executions, 0 touches unanswered, 0 attempts at once, 0 too many, the last with the inputs as last edited")  # fmt: skip
