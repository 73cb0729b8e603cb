"""`make soak`: many jobs with faults all the while; a table of what watchties holds, and an end of 1 with a line for each breach."""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import commit, machine  # noqa: E402
from soak_kit import Soak  # noqa: E402

HEAD = "  jobs  seconds  jobs/s  ms a job  memory MB  fds  threads  journal MB  history rows  files  log MB  faults"


class Shown:
    """Prints each row under the one before."""

    def __init__(self):
        self.jobs, self.seconds = 0, 0.0

    def __call__(self, row):
        pace = (row.jobs - self.jobs) / max(0.001, row.seconds - self.seconds)
        self.jobs, self.seconds = row.jobs, row.seconds
        print(f"{row.jobs:6}  {row.seconds:7.0f}  {pace:6.1f}  {row.cost:8.1f}  {row.memory:9.1f}  {row.descriptors:3}  {row.threads:7}"
              f"  {row.journal_mb:10.1f}  {row.history:12}  {row.state_files:5}  {row.log_mb:6.1f}  {row.faults:6}", flush=True)  # fmt: skip


def main():
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    asked = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {machine()}; {asked.jobs} jobs, seed {asked.seed}\n{HEAD}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(folder, asked.jobs, asked.seed, each=max(1, asked.jobs // 10), tell=Shown())
        breaches = soak.run()
    print("faults: " + ", ".join(f"{count} {what}" for what, count in sorted(soak.faults.items())))
    print("\n".join(breaches) or f"{asked.jobs} jobs: 0 lost, 0 twice, nothing left over, nothing has grown")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
