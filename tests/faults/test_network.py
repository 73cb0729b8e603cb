"""Networks that break in every way, over 500 jobs on two compute hosts: none is lost, none runs twice, the healthy host goes on.

Every job's command holds a lock while it runs and writes down when it began and ended, so that two at a time would be seen, on one
host by the lock and on two by the times. A host that is switched off loses what runs there: such a job is tried again, and counted.
"""

import random
import re
import time

import pytest
from lab_kit import Lab, LabSite, why_not
from weather_kit import KINDS, Weather

pytestmark = pytest.mark.slow

COMMAND = """#!/bin/sh
exec 9<.
flock -n 9 || echo overlap >>runs.log
echo "begin $(date +%s.%N)" >>runs.log
sleep {seconds}
mkdir -p plots
for n in 1 2 3 4 5 6 7 8; do echo "$n of $(cat in.txt)" >plots/$n.txt; done
cat in.bin >out.bin
echo "end $(date +%s.%N)" >>runs.log
"""
MADE = {"out.bin", "plots", "remote_ties_run.err", "remote_ties_run.res", "runs.log"}
SHORT = {"jobs": 60, "rounds": 0, "lasts": (2.5, 5), "pauses": (0.5, 1.5), "calm": 0, "job": (2, 5), "ahead": 20}
LONG = {"jobs": 500, "rounds": 2, "lasts": (5, 25), "pauses": (2, 10), "calm": 60, "job": (2, 8), "ahead": 7}
CALM = 0.1  # part of the jobs that may be dropped before the first fault
HOSTS = ("b01", "elgato")
SMALL = lambda text: text.replace('alone_above = "100MB"', 'alone_above = "150KB"')  # noqa: E731
GRACE, QUICK = 'grace = "2s"', 'grace = "2s"\nheartbeat = "2s"'  # the rest as it is by default


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with Lab(tmp_path_factory.mktemp("lab")) as up:
        yield up


class Load:
    """Jobs, dropped bit by bit: for each compute host as many as keep it busy, and every tenth for whichever is up."""

    def __init__(self, site, draw, size):
        self.site, self.size = site, size
        self.jobs, self.left, self.noise, self.dropped = {}, {host: [] for host in ("", *HOSTS)}, {}, {}
        for n in range(size["jobs"]):
            job, host = f"user {n % 7}/Exp {n} 'q\" $(x)", "" if n % 10 == 9 else HOSTS[n % 2]
            large = draw.random() < 0.05
            self.noise[job] = draw.randbytes(draw.randrange(160_000, 250_000) if large else draw.randrange(100, 20_000))
            self.jobs[job] = host
            self.left[host].append((job, draw.uniform(*size["job"])))
        self.running, self.killed = {host: set() for host in self.left}, {}

    def feed(self, share):
        """Drop what is due, `share` of the weather having come; return whether all are dropped."""
        for host, left in self.left.items():
            self.running[host] = {job for job in self.running[host] if not self.has_ended(job)}
            while left and len(self.running[host]) < self.size["ahead"] and len(self.dropped) <= len(self.jobs) * (share + 0.05):
                job, seconds = left.pop(0)
                files = {"in.txt": f"{job}\n", "in.bin": self.noise[job], **({"CPU_SERVER": f"{host}\n"} if host else {})}
                self.site.drop(job, COMMAND.format(seconds=f"{seconds:.1f}"), files=files)
                self.running[host].add(job)
                self.dropped[job] = time.time()
        return not any(self.left.values())

    def has_ended(self, job):
        return any(what == "end" for host in HOSTS for what, _ in self.told(job, host))

    def note_killed(self, host):
        """Take note of the attempts that were under way on a host that has just been switched off: begun, or at least submitted."""
        if host in HOSTS:
            attempts = self.site.computes[host].glob("*/*/.watchties/*.*/")
            self.killed |= {(host, path.name): path for path in attempts if is_under_way(path)}

    def told(self, job, host):
        """Return what the job's command has written on a host: [("begin" | "end" | "overlap", seconds since 1970)]."""
        try:
            lines = (self.site.computes[host] / job / "runs.log").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(line.split()[0], float((line.split() + ["0"])[1])) for line in lines]


def is_under_way(attempt):
    """Return whether an attempt, by its files on the compute host, has been handed over and has not ended."""
    ended = attempt / "exit"
    handed_over = any((attempt / name).exists() for name in ("begun", "reply"))
    return handed_over and not (ended.exists() and ended.read_text().endswith("whole=yes\n")) and not (attempt / "killed").exists()


def test_no_network_loses_a_job_or_runs_it_twice(lab, seed, long, figure):
    draw, size = random.Random(seed), LONG if long else SHORT
    site = LabSite(lab, max_running=3, tree="resubmit_lost = 99", daemon=GRACE if long else QUICK, edit=SMALL)
    load, weather = Load(site, draw, size), Weather(lab, draw, size["lasts"], size["pauses"], lambda host: load.note_killed(host))
    with site:
        site.wait_ready()
        begun, lanes = time.time(), [["b01", "elgato"], ["vision"]] if long else [["b01", "elgato", "vision"]]
        while time.time() < begun + size["calm"]:
            load.feed(CALM)
            time.sleep(0.1)
        for hosts in lanes:
            weather.begin(hosts, size["rounds"])
        try:
            come = lambda: load.feed(CALM * bool(size["calm"]) + weather.share()) and weather.share() >= 1  # noqa: E731
            site.wait(lambda: come() or weather.error, 3600, "all dropped, all faults come")
        finally:
            over = weather.end()
        done = sum(site.marker(job)[0] == "DONE" for job in load.jobs)
        print(f"{len(weather.log)} faults in {over - begun:.0f} s; {done} jobs are DONE")
        took = until_done(site, load, over)
        figure(f"{len(load.jobs)} jobs, {len(weather.log)} faults ({len(KINDS)} kinds, 3 hosts): all DONE {took:.0f} s after the last")
        figure(look_at_runs(load, weather))
        look_at_files(site, load)
        site.wait(lambda: len(site.letters()) >= len(load.jobs), 60, "a mail for each")
        told = [re.search("^Experiment:  (.*)$", letter, re.M)[1] for letter in site.letters()]
        assert sorted(told) == sorted(job.partition("/")[2] for job in load.jobs)
        assert site.stop() == 0, site.said()
        site.process = None
        look_for_leftovers(lab, site)
        figure(f"{len(load.jobs)} mails; no temporary file, process or socket left on the four hosts")
        assert took < 60 or not long, f"{took:.0f} s"  # the short form may share its machine with others


def until_done(site, load, since):
    """Wait until all are DONE and at rest; return how many seconds after `since` the last one was DONE."""
    left, took = set(load.jobs), 0

    def all_done():
        nonlocal took
        ended = {job for job in left if site.marker(job)[0] == "DONE"}
        left.difference_update(ended)
        took = time.time() - since if ended else took
        return not left

    site.wait(all_done, 900, f"all DONE: {[(job, site.marker(job)) for job in sorted(left)[:9]]}")
    site.wait(site.quiet, 120, "quiet")
    return took


def test_jobs_of_the_healthy_host_keep_their_pace(lab, seed, long, figure):
    draw, faults = random.Random(seed), [("b01", "drop"), ("elgato", "down")]
    for down, op in faults if long else [draw.choice(faults)]:
        keep_pace(lab, draw, 60 if long else 8, figure, down, op)


def keep_pace(lab, draw, span, figure, down, op):
    """Note how many jobs a second end on the one host while the other is down for `span` seconds, and as long before."""
    size = {"jobs": 20 * span, "job": (1, 2), "ahead": 8}
    with LabSite(lab, max_running=3, daemon=GRACE, edit=SMALL) as site:
        load, healthy = Load(site, draw, size), next(host for host in HOSTS if host != down)
        site.wait_ready()
        feed_for(load, 5)
        began = [time.time()]
        feed_for(load, span)
        began.append(time.time())
        lab.fault(op, down)
        try:
            feed_for(load, span)
            began.append(time.time())
        finally:
            lab.fault("clear", down)
        load.jobs = {job: host for job, host in load.jobs.items() if job in load.dropped}
        took = until_done(site, load, began[-1])
        ends = [when for job in load.jobs for what, when in load.told(job, healthy) if what == "end"]
        both, alone = (sum(start <= when < end for when in ends) / (end - start) for start, end in zip(began, began[1:]))
        figure(f"{healthy}: {alone:.2f} jobs a second ended while {down} was down ({op}, {span} s), {both:.2f} while both were up; "
               f"all {len(load.jobs)} DONE {took:.0f} s after")  # fmt: skip
        assert {job: len(load.told(job, host)) for job in load.jobs for host in HOSTS if load.told(job, host)} == dict.fromkeys(load.jobs, 2)
        assert alone > both / 2 or span < 30  # so short a time says nothing


def feed_for(load, seconds):
    """Keep all hosts busy for a while."""
    end = time.time() + seconds
    while time.time() < end:
        load.feed(1)
        time.sleep(0.05)


def look_at_runs(load, weather):
    """Each ran once, and once more only where its host was switched off meanwhile, never two at a time; return how many, in words."""
    off = {host: [(f.began, f.ended) for f in weather.log if (f.kind, f.host) == ("reboot", host)] for host in HOSTS}
    again, hit = 0, 0
    for job, named in load.jobs.items():
        runs = sorted((run for host in HOSTS for run in spans_of(load, job, host, off[host])), key=lambda run: run[0])
        attempts = int(load.site.marker(job)[1]["attempt"])
        assert runs and not [run for run in runs if named and run[2] != named], (job, runs)
        assert all(earlier[1] < later[0] for earlier, later in zip(runs, runs[1:])), f"two at a time: {job} {runs}"
        assert all(run[3] for run in runs[:-1]), f"twice, and no host went down: {job} {runs}"
        assert len(runs) <= attempts, (job, runs, attempts)
        assert attempts == 1 + int(load.site.record(job).fields.get("resubmitted") or 0), (job, load.site.record(job).fields)
        stood = load.dropped[job], runs[-1][1]
        downs = sum(stood[0] < began < stood[1] for host in HOSTS if named in ("", host) for began, _ in off[host])
        assert attempts <= 1 + downs, f"tried again, and no host went down: {job} {runs}"
        again, hit = again + attempts - 1, hit + (attempts > 1)
    reboots = sum(map(len, off.values()))
    assert again == len(load.killed), f"{again} tried again, {len(load.killed)} killed: {sorted(load.killed)}"
    return (f"0 lost, 0 twice: {len(load.jobs) - hit} ran once; {reboots} reboots of compute hosts killed {again} attempts of {hit} jobs, "
            f"each tried again once, never two at a time")  # fmt: skip


def spans_of(load, job, host, off):
    """Return (began, ended, host, whether the host was switched off by then) of each run of a job on a host."""
    runs = []
    for what, when in load.told(job, host):
        assert what != "overlap", f"two at a time on {host}: {job}"
        if what == "begin":
            cut = next((began for began, _ in off if began > when), float("inf"))
            runs.append([when, cut, host, cut < float("inf")])
        else:
            runs[-1][1] = when
    for run, later in zip(runs, runs[1:]):  # a run is over with the plug that is pulled before the next
        run[3] = any(run[0] < began < later[0] for began, _ in off)
    return [tuple(run) for run in runs]


def look_at_files(site, load):
    """Everything a job made has come whole, and nothing else stands in its directory, on any host."""
    for job, host in load.jobs.items():
        sent = {"command", "in.txt", "in.bin", *(["CPU_SERVER"] if host else [])}
        assert (site.web / job / "out.bin").read_bytes() == load.noise[job], job
        assert [(site.web / job / f"plots/{n}.txt").read_text() for n in range(1, 9)] == [f"{n} of {job}\n" for n in range(1, 9)]
        for tree in site.web, site.mirror, *(tree for tree in site.computes.values() if (tree / job).exists()):
            names = {path.name for path in (tree / job).iterdir()} - {".watchties"}
            partly = tree in site.computes.values() and "DONE" not in names  # an attempt that was lost, and tried again elsewhere
            assert names <= sent | MADE | {"DONE"} if partly else names == sent | MADE | {"DONE"}, (tree, job, names)
            assert {path.name for path in (tree / job / "plots").glob("*")} <= {f"{n}.txt" for n in range(1, 9)}, (tree, job)


TEMPORARY = re.compile(r"\..*\.[A-Za-z0-9]{6}|\.watchties\.(partial|taken\..*|new\..*|query\..*|coming)|sending")
OURS = re.compile(r"rsync|agent\.sh|relay\.py|flock|ssh .*-o|become|\bsleep [0-9.]+\b(?<!sleep 1)")


def look_for_leftovers(lab, site):
    """No temporary file, no socket of a shared connection, no process of ours is left on any host, soon after the daemon's end."""
    for tree in site.web, site.mirror, *site.computes.values():
        found = [path for path in tree.rglob("*") if TEMPORARY.fullmatch(path.name) and (path.is_file() or any(path.iterdir()))]
        assert not found, found
    assert not [path for path in (site.state / "ssh").iterdir()]
    assert not [path for path in (site.state / "runs").iterdir()]
    end = time.monotonic() + 200  # rsync gives up after 180 s without a byte
    while left := {host: found for host in lab.hosts if (found := [line for line in processes(lab, host) if OURS.search(line)])}:
        assert time.monotonic() < end, f"processes are left: {left}"
        time.sleep(1)


def processes(lab, host):
    """Return the processes of a host, one line each: pid, seconds since it began, command."""
    return lab.on(host, ["ps", "-eo", "pid=,etimes=,args="]).stdout.splitlines()


def test_what_a_host_that_goes_down_kills_is_lost_and_nothing_else(lab, seed, long, figure):
    draw, size = random.Random(seed), {"jobs": 60 if long else 16, "job": (1, 4), "ahead": 99}
    with LabSite(lab, max_running=3, daemon=QUICK) as site:
        load = Load(site, draw, size)
        site.wait_ready()
        load.feed(1)
        for _ in range(4 if long else 1):
            host = draw.choice(HOSTS)
            before, ended = len(load.killed), sum(map(load.has_ended, load.jobs))
            site.wait(lambda: sum(map(load.has_ended, load.jobs)) > ended, 60, "some go on")
            time.sleep(draw.uniform(0, 1))
            lab.stop_host(host)
            load.note_killed(host)
            lab.start_host(host)
            print(f"{host} has killed {len(load.killed) - before}")
        site.wait(lambda: all(site.marker(job)[0] in ("DONE", "FAILED") for job in load.jobs), 120, "all have ended")
        site.wait(site.quiet, 60, "quiet")
        lost = {str(path.relative_to(site.computes[host]).parents[1]) for (host, _), path in load.killed.items()}
        for job in load.jobs:
            state, fields = site.marker(job)
            told = [what for host in HOSTS for what, _ in load.told(job, host)]
            wanted = ("FAILED", "lost", "1") if job in lost else ("DONE", None, "1")
            assert (state, fields.get("cause"), fields["attempt"]) == wanted, job
            assert told == ["begin", "end"] or (job in lost and told in ([], ["begin"])), (job, told)
        assert len(site.letters()) == len(load.jobs)
        rest = len(load.jobs) - len(lost)
        figure(f"{len(load.jobs)} jobs, resubmit_lost = 0: {len(lost)} that a reboot killed FAILED, cause=lost; {rest} DONE; one mail each")
