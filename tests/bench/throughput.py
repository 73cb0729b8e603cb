"""Many jobs at once through the three local trees, beside the same steps as five bulk commands by hand.

Knows: what a job of the figure is, when it has gone its way, how the same is done by hand.
Must not know: rules, lanes; where the time goes is read from the hooks' logs (wheretime.py).

Inputs are on the web tree before the clock starts; then every PENDING appears at once; the clock stops at the last
DONE on the web tree. By hand it stops when the last rsync has ended.
"""

import os
import statistics
import subprocess
import time

import figures
import procs
import wheretime
from alldone import until_done
from site_kit import Site

FILES, BYTES = 10, 5000
A_USER = 50  # jobs
COMMAND = ":\n"  # it takes no time and makes nothing; its (empty) output files come back
BY_HAND = """set -e
rsync -a {web}/ {mirror}/
rsync -a {mirror}/ {compute}/
cd {compute}
for job in */*/; do (cd "$job" && sh ./command >remote_ties_run.res 2>remote_ties_run.err && echo state=DONE >DONE); done
rsync -a {compute}/ {mirror}/
rsync -a {mirror}/ {web}/
"""


def measure(folder, size):
    """Return the Figure of many jobs at once, rounds of ours and by hand in turn."""
    ours, bare = [], []
    for number in range(size.rounds):
        ours.append(through_watchties(folder / f"ours{number}", size.jobs, tell=number == 0))
        bare.append(by_hand(folder / f"bare{number}", size.jobs))
    per = 1000 / size.jobs
    print(f"watchties: {figures.spread([s * per for s in ours])} ms a job; by hand: {figures.spread([s * per for s in bare])} ms a job")
    pair = statistics.median(ours) * per, statistics.median(bare) * per
    return [figures.Figure(f"{size.jobs} jobs at once, a job", pair[0], "ms", pair[1], 3.0, "ratio")]


def measure_growth(folder, size):
    """Return the Figure of the cost of a job when there are more of them: the largest number beside the cheapest other."""
    rows = [("jobs", "watchties", "by hand", "ratio")]
    costs = {}
    for count in size.growth:
        costs[count] = 1000 * through_watchties(folder / f"ours{count}", count) / count
        bare = 1000 * by_hand(folder / f"bare{count}", count) / count
        rows.append((str(count), f"{costs[count]:.1f} ms a job", f"{bare:.1f} ms a job", f"{costs[count] / bare:.2f}x"))
    print("\n".join(figures.columns(rows)))
    most = max(costs)
    least = min(cost for count, cost in costs.items() if count != most)
    return [figures.Figure(f"cost of a job, {most} at once beside the cheapest number", costs[most], "ms", least, 1.15, "ratio")]


def through_watchties(base, count, tell=False):
    """Return the seconds that `count` jobs take; print where they went if `tell`."""
    site = Site(base, max_running=1_000_000)
    jobs = make_jobs(site.web, count)
    os.sync()
    with site:
        site.wait(lambda: (site.state / "log" / "notice.log").exists(), 30, "the daemon is at work")
        procs.until_idle(site.process.pid, quiet=0.5)
        used = procs.cpu(site.process.pid)
        began, wall = time.monotonic(), time.time()
        for job in jobs:
            os.close(os.open(job / "PENDING", os.O_WRONLY | os.O_CREAT, 0o644))
        until_done(site, jobs)
        seconds = time.monotonic() - began
        used = procs.cpu(site.process.pid) - used
        site.wait(site.quiet, 60, "all at rest")
        assert len(site.letters()) == count, f"{len(site.letters())} letters for {count} jobs"
    print(f"watchties, {count} jobs: {seconds:.2f} s, {1000 * seconds / count:.1f} ms a job")
    if tell:
        print("\n".join(wheretime.table(site.state / "log", count, wall, seconds, used)))
    return seconds


def make_jobs(tree, count):
    """Write the jobs' inputs; return their directories."""
    jobs = [tree / f"user{number // A_USER}" / f"E{number}" for number in range(count)]
    for job in jobs:
        job.mkdir(parents=True)
        (job / "command").write_text(COMMAND)
        for number in range(FILES):
            (job / f"input{number}.csv").write_bytes(os.urandom(BYTES // 2).hex().encode())
    return jobs


def by_hand(base, count):
    """Return the seconds that the five bulk commands take for as many such jobs."""
    trees = {name: base / name for name in ("web", "mirror", "compute")}
    for tree in trees.values():
        tree.mkdir(parents=True)
    jobs = make_jobs(trees["web"], count)
    os.sync()
    began = time.monotonic()
    subprocess.run(["sh", "-c", BY_HAND.format(**trees)], check=True)
    seconds = time.monotonic() - began
    assert all((job / "DONE").exists() for job in jobs)
    print(f"by hand, {count} jobs: {seconds:.2f} s, {1000 * seconds / count:.1f} ms a job")
    return seconds
