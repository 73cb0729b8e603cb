"""The figures of watchties, each beside the bare commands that do the same by hand, in the same run: `make bench`.

    bench.py                 all figures (some minutes)
    bench.py --quick         smaller, to see whether it works; the figures say little
    bench.py --full          5,000 jobs as well, and more rounds
    bench.py --only jobs     one of: trigger, finished, jobs, growth, hosts and schedulers (these two as root)

Knows: which measurements there are, and what was promised of each.
Must not know: how anything is measured.

A figure is no test: two busy cores give other numbers than two idle ones. Judge it by its ratio to the bare commands.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import figures  # noqa: E402  (found by the path above, as site_kit is)
import finished  # noqa: E402
import submissions  # noqa: E402
import hosts  # noqa: E402
import throughput  # noqa: E402
import trigger  # noqa: E402

PARTS = {"trigger": trigger.measure, "finished": finished.measure, "jobs": throughput.measure, "growth": throughput.measure_growth,
         "hosts": hosts.measure, "schedulers": submissions.measure}  # fmt: skip


class Size:
    """How much is measured. touches: of a marker; finished: jobs in the large tree; jobs, rounds: of the jobs figure;
    growth, host_growth: numbers of jobs at once; singles, delayed: jobs that go one at a time; rest: seconds of watching an idle
    daemon."""

    def __init__(self, touches, finished, jobs, rounds, growth, rest, singles, delayed, host_growth):
        self.touches, self.finished, self.jobs, self.rounds, self.growth, self.rest = touches, finished, jobs, rounds, growth, rest
        self.singles, self.delayed, self.host_growth = singles, delayed, host_growth


QUICK = Size(10, 5_000, 50, 1, (25, 50, 100), 3, 4, 2, (25, 50, 100))
USUAL = Size(50, 100_000, 1000, 2, (100, 300, 1000, 3000), 10, 20, 10, (100, 300, 1000, 2000))
FULL = Size(200, 100_000, 1000, 4, (100, 300, 1000, 3000, 5000), 10, 50, 20, (100, 300, 1000, 2000))


def arguments():
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", dest="size", const=QUICK, default=USUAL, help="small, to see whether it works")
    size.add_argument("--full", action="store_const", dest="size", const=FULL, help="5,000 jobs as well, and more rounds")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this alone; may be given more than once")
    parser.add_argument("--dir", help="where to work; default: the directory for temporary files")
    return parser.parse_args()


def main():
    """Measure, print, and return 0: a figure that does not hold is told, and fails nothing."""
    wanted = arguments()
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the daemon that is measured would outlive us
    figures.show_machine(wanted.dir or tempfile.gettempdir())
    found = []
    for name in wanted.only or PARTS:
        folder = tempfile.mkdtemp(prefix="watchties-bench.", dir=wanted.dir)
        try:
            print(f"\n== {name}")
            os.chmod(folder, 0o755)
            found += PARTS[name](Path(folder), wanted.size)
        finally:
            subprocess.run(["rm", "-rf", folder], check=False)  # shutil.rmtree takes minutes for the large tree
    figures.show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
