"""The daemon is killed again and again: no job is lost, none runs twice, no orphan is left."""

import os
import random
import time
from pathlib import Path

import pytest
from site_kit import Site

KILLS, JOBS = 50, 100


def processes_below(base):
    """Return the command lines of processes that have to do with a directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes() + os.readlink(entry / "cwd").encode()
            except OSError:
                continue
            if str(base).encode() in words:
                found[int(entry.name)] = words
    return found


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path, seed, figure):
    draw = random.Random(seed)
    site = Site(tmp_path, max_running=20)
    jobs = [f"user {n % 7}/Exp {n} 'q\" $(x)" for n in range(JOBS)]
    left = list(jobs)
    site.start()
    try:
        for _ in range(KILLS):
            for job in left[: JOBS // 25]:
                site.drop(job, command="echo run >> runs.log\nsleep 0.2\ncat in.txt > out.txt\n")
            left = left[JOBS // 25 :]
            time.sleep(draw.uniform(0.02, 2.0))
            site.kill()
            site.start()
        site.wait(lambda: all(site.marker(job)[0] == "DONE" for job in jobs), 300, "all DONE")
        site.wait(site.quiet, 60, "quiet")
        assert {job: site.runs(job) for job in jobs} == dict.fromkeys(jobs, 1)
        for job in jobs:
            assert (site.web / job / "out.txt").read_text() == f"input of {job}\n"
            assert (site.web / job / "runs.log").read_text() == "run\n"
            assert sorted(p.name for p in (site.web / job).iterdir()) == sorted(
                ["DONE", "command", "in.txt", "out.txt", "remote_ties_run.err", "remote_ties_run.res", "runs.log"]
            )
        assert len(site.letters()) == JOBS
        site.wait_ready()
        assert site.stop() == 0, site.said()
        site.process = None
        figure(f"{KILLS} SIGKILLs of the daemon during {JOBS} jobs: 0 lost, 0 twice, {JOBS} mails")
        site.wait(lambda: not processes_below(tmp_path), 20, f"orphans: {processes_below(tmp_path)}")
    finally:
        site.stop()
