"""Thousands of jobs through three trees, with faults all the while: `make soak`.

    soak.py                          20,000 jobs (half an hour)
    soak.py --jobs 300 --seed 7      fewer; everything random from this seed, which is printed

A steady number of jobs is in flight. Each tenth of the jobs is one line of the table. Nothing may be lost, run twice, or be left
over; and what watchties takes must not grow with the jobs that went by: the last third beside the second third of the lines. In
the first third the daemon is killed and the journal is destroyed, too; after that one daemon lives through all the other
faults, or its memory would be that of a young one for ever. Ended jobs are taken away after a while, as users do.

Exit code 0 if all holds; else 1, and a line for each breach.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from site_kit import Site  # noqa: E402  (found by the path above)
from soak_faults import Faults  # noqa: E402
from soak_figures import Figures  # noqa: E402
from soak_jobs import Flow  # noqa: E402
from trouble_kit import quick  # noqa: E402

HARD = 0.3  # of the jobs, in which the daemon is killed, too
TICK = 0.1  # seconds
PATIENCE = 300.0  # seconds in which nothing has ended: then something is stuck
LINES = 10
RULES = ("pull", "submit", "report", "poll", "fetch", "push", "mail", "cancel")
DAEMON = 'grace = "2s"\nreconcile = "15s"\njournal_keep = "1m"\nlog_keep = "1m"'


class Soak:
    """One soak below `base`."""

    def __init__(self, base, jobs, seed, say=print):
        self.jobs, self.say, self.breaches = jobs, say, []
        poll = lambda text: text.replace("[host.b01]", '[host.b01]\npoll = "2s"')  # noqa: E731
        self.site = Site(base, daemon=DAEMON, edit=quick(*RULES), change=poll)
        draw = random.Random(seed)
        self.flow = Flow(self.site, jobs, random.Random(draw.random()))
        self.faults = Faults(self.site, self.flow, random.Random(draw.random()))
        self.figures = Figures(self.site, self.flow, self.faults)

    def run(self):
        """Return the breaches, a line each."""
        self.site.start()
        try:
            self._all_jobs()
            self._come_to_rest()
        finally:
            self._end()
        self.breaches += self.flow.breaches() + self.faults.breaches + self.figures.left_over()
        if len(self.figures.rows) >= LINES and self.jobs >= 2000:
            self.breaches += self.figures.growth()
        return self.breaches

    def _all_jobs(self):
        step = max(1, self.jobs // LINES)
        self.say(self.figures.head())
        while self.flow.ended < self.jobs:
            self.figures.go_on()
            if self.site.process.poll() is not None:
                self.breaches.append(f"the daemon has ended by itself: {self.site.process.returncode}\n{self.site.said()[-3000:]}")
                self.site.start()
            self.flow.go_on()
            self.faults.go_on(hard=self.flow.ended < HARD * self.jobs)
            if self.flow.ended >= step * (len(self.figures.rows) + 1):
                self.say(self.figures.measure())
            if time.monotonic() - self.flow.moved > PATIENCE:
                self.breaches.append(f"nothing has ended for {PATIENCE:g} s; in flight: {self.flow.stuck()}")
                return
            time.sleep(TICK)

    def _come_to_rest(self):
        end = time.monotonic() + PATIENCE
        while not self.site.quiet() and time.monotonic() < end:
            self.figures.go_on()
            time.sleep(TICK)
        if not self.site.quiet():
            self.breaches.append("the jobs have ended, but the daemon does not come to rest")
        self.flow.last_look()

    def _end(self):
        if self.site.process.poll() is None:
            self.site.wait_ready()
            if code := self.site.stop():
                self.breaches.append(f"SIGTERM at the end: exit code {code}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end of ours ends the daemon
    print(f"seed {asked.seed}: the same again with --seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        began = time.monotonic()
        soak = Soak(Path(folder), asked.jobs, asked.seed, lambda text: print(text, flush=True))
        breaches = soak.run()
        print(f"{soak.figures.summary()}; {time.monotonic() - began:.0f} s")
        print("\n".join(["BREACHES:", *breaches] if breaches else ["all holds"]))
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
