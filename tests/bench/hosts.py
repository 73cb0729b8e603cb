"""Jobs between real hosts (tests/lab), beside the bare five steps on the same files over shared connections (byhand.py).

Knows: what a job of the figures is, when it has gone its way, that what came back is what was made.
Must not know: rules, lanes; where the time goes is read from the hooks' logs (wheretime.py).

Inputs are on the web host before the clock starts, with PENDING, or all PENDINGs at once; it stops at DONE on the web
host, or the last of them. By hand it stops when the fifth step has ended. The two take turns, and each begins when
nothing is at work. Both log in as www-data on vision and as runcompties on b01.

With delay, every host's cable keeps each packet back for 20 ms, both ways. From v11 to another host are two cables, so
that each round trip takes 80 ms longer.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import figures
import procs
import wheretime
from alldone import SAID, SILENCE, until_done
from inotify_simple import INotify, flags
from lab_kit import USERS, WITHOUT_ROOT, Lab, LabSite, why_not

FILES, BYTES = 10, 5000
A_USER = 50  # jobs
COMMAND = "echo made by {job}\n"  # it takes no time
RESULT = "remote_ties_run.res"
DELAY = 20  # ms at each host's cable, both ways
BY_HAND = Path(__file__).with_name("byhand.py")
CONTROL = "/home/webapp/bare-ssh"


def measure(folder, size):
    """Return the Figures; none, and why, where no hosts can be made."""
    if reason := why_not():
        print(f"left out: {reason}")
        return []
    with Lab(folder / "lab") as lab:
        bare = ByHand(lab)
        with LabSite(lab, vision=WITHOUT_ROOT, compute=("b01",), max_running=1_000_000) as site:
            site.wait_ready()
            one_by_one(site, bare, 1, "warm")  # caches and the journal
            found = [one_figure(site, bare, size.singles, "one")]
            with lab.delayed(DELAY):
                one_by_one(site, bare, 1, "slow")
                found.append(one_figure(site, bare, size.delayed, "delayed", f", {DELAY} ms of delay on every link"))
            return found + [many_figure(site, bare, size), growth_figure(site, bare, size.host_growth)]


def one_figure(site, bare, count, name, how=""):
    """Return the Figure of jobs that go one at a time."""
    ours, by_hand = one_by_one(site, bare, count, name)
    print(f"one job at a time{how}: {figures.spread(ours)} ms; by hand: {figures.spread(by_hand)} ms, over {count} jobs each")
    return figures.Figure(f"one job over hosts{how}", statistics.median(ours), "ms", statistics.median(by_hand), 1.5, "ratio")


def one_by_one(site, bare, count, name):
    """Return the ms of each job through watchties, and of each by hand, in turns."""
    ours, by_hand = [], []
    for number in range(count):
        job = f"{name}/E{number}"
        ours.append(1000 * through_watchties(site, [job]))
        by_hand.append(1000 * bare.steps(name, [job], one=True))
    return ours, by_hand


def many_figure(site, bare, size):
    """Return the Figure of many jobs at once, in rounds."""
    ours, by_hand, count = [], [], size.jobs
    for number in range(size.rounds):
        ours.append(1000 * through_watchties(site, names(f"many{number}", count), tell=number == 0) / count)
        by_hand.append(1000 * bare.steps(f"many{number}", names(f"many{number}", count)) / count)
    print(f"{count} at once: {figures.spread(ours)} ms a job; by hand: {figures.spread(by_hand)} ms a job")
    name = f"{count} jobs at once over hosts, a job"
    return figures.Figure(name, statistics.median(ours), "ms", statistics.median(by_hand), 2.0, "ratio")


def growth_figure(site, bare, counts):
    """Return the Figure of the cost of a job when there are more of them: the largest number beside the cheapest other."""
    rows, costs = [("jobs", "watchties", "by hand", "ratio")], {}
    for count in counts:
        costs[count] = 1000 * through_watchties(site, names(f"growth{count}", count)) / count
        by_hand = 1000 * bare.steps(f"growth{count}", names(f"growth{count}", count)) / count
        rows.append((str(count), f"{costs[count]:.1f} ms a job", f"{by_hand:.1f} ms a job", f"{costs[count] / by_hand:.2f}x"))
    print("\n".join(figures.columns(rows)))
    most = max(costs)
    least = min(cost for count, cost in costs.items() if count != most)
    return figures.Figure(f"cost of a job over hosts, {most} at once beside the cheapest number", costs[most], "ms", least, 1.15, "ratio")


def names(prefix, count):
    """Return the names of jobs of several users."""
    return [f"{prefix}.{number // A_USER}/E{number}" for number in range(count)]


# ---- through watchties ----


def through_watchties(site, jobs, tell=False):
    """Return the seconds that jobs take from PENDING to DONE on the web host; print where they went if `tell`."""
    inputs = make_jobs(site.web, jobs)
    os.sync()
    letters, last, daemon = len(site.letters()), site.web / jobs[-1], procs.inner_pid(site.process.pid)
    used = procs.cpu(daemon)
    began, wall = time.perf_counter(), time.time()
    for job in jobs:
        os.rename(site.web / job / ".request", site.web / job / "PENDING")
    until_done(site, [site.web / job for job in jobs]) if len(jobs) > 1 else until_shown(site, last)
    seconds, used = time.perf_counter() - began, procs.cpu(daemon) - used
    site.wait(site.quiet, 120, "all at rest")
    assert len(site.letters()) == letters + len(jobs), f"{len(site.letters()) - letters} letters for {len(jobs)} jobs"
    check(site.compute, site.web, jobs, inputs)
    if tell:
        print("\n".join(wheretime.table(site.state / "log", len(jobs), wall, seconds, used)))
    return seconds


def make_jobs(tree, jobs):
    """Write the inputs and a request that is still hidden, as www-data's; return job -> the content of its files."""
    inputs = {}
    for job in jobs:
        where = tree / job
        where.mkdir(parents=True)
        inputs[job] = {f"input{number}.csv": os.urandom(BYTES // 2).hex().encode() for number in range(FILES)}
        inputs[job]["command"] = COMMAND.format(job=job).encode()
        for name, data in (inputs[job] | {".request": b""}).items():
            (where / name).write_bytes(data)
            os.chown(where / name, USERS["www-data"], USERS["www-data"])
        for path in where, where.parent:
            os.chown(path, USERS["www-data"], USERS["www-data"])
    return inputs


def until_shown(site, where):
    """Wait until one job shows DONE; the kernel tells, so that nothing is asked meanwhile."""
    with INotify() as notify:
        notify.add_watch(where, flags.MOVED_TO | flags.CREATE)
        while not (where / "DONE").exists():
            assert notify.read(timeout=SILENCE * 1000) and not (where / "FAILED").exists(), f"{where}\n{site.said()[-SAID:]}"


def check(compute, web, jobs, inputs):
    """Assert that inputs have come to the compute host, and results from there to the web host, byte for byte."""
    for job in jobs:
        for name, data in inputs[job].items():
            assert (compute / job / name).read_bytes() == data, f"{name} of {job} has not come to the compute host as it was"
        assert (web / job / RESULT).read_text() == f"made by {job}\n", f"the result of {job} has not come to the web host"
        assert (web / job / "DONE").exists(), job


# ---- by hand ----


class ByHand:
    """The bare steps on a lab's hosts, over shared connections of their own."""

    def __init__(self, lab):
        self.lab = lab
        for host in "vision", "b01":
            lab.start_on("v11", [sys.executable, BY_HAND, CONTROL, "--master", host], user="webapp", stderr=subprocess.DEVNULL)

    def steps(self, name, jobs, one=False):
        """Return the seconds that the five steps take for jobs: for the one alone, or for all with one command a step."""
        data = f"bare/{name}"
        web, compute = self.lab.home("vision", "www-data") / data, self.lab.home("b01", "runcompties") / data
        inputs = make_jobs(web, jobs)
        compute.mkdir(parents=True, exist_ok=True)
        for path in web.parent, web:
            os.chown(path, USERS["www-data"], USERS["www-data"])
        for path in compute.parent, compute:
            os.chown(path, USERS["runcompties"], USERS["runcompties"])
        os.sync()
        words = [sys.executable, BY_HAND, CONTROL, data, *(jobs if one else [])]
        seconds = float(self.lab.on("v11", words, user="webapp", timeout=600).stdout)
        check(compute, web, jobs, inputs)
        return seconds
