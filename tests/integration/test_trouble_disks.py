"""Disks that are full, with the real daemon: the job says why it waits, nothing is lost, it goes on by itself."""

import contextlib
import os
import subprocess
import time

import pytest
from helpers import put
from site_kit import Site
from trouble_kit import HOLD, end, floor, quick, times, waits_for


@contextlib.contextmanager
def mounted(where, size):
    """Mount a small disk on a directory."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk here")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MB where the mirror will be."""
    (tmp_path / "v11").mkdir()
    with mounted(tmp_path / "v11", "24m") as where:
        yield where


LARGE = "head -c 6000000 /dev/urandom > big.out\n"  # not zeros: they would be holes, and take no room


def fill(path):
    """Write a file until not a byte more goes on its disk."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


def test_a_full_mirror_is_said_and_jobs_go_on_by_themselves(small_disk, tmp_path):
    with Site(tmp_path, edit=quick("pull", "fetch", "push", "submit"), change=floor("1B")) as site:
        site.drop("ann/before", command=HOLD + LARGE)
        site.wait(lambda: site.runs("ann/before") == 1, 20, "it runs")
        put(small_disk / "ballast", b"x" * 20_000_000)
        fill(small_disk / "more")
        site.drop("eve/nothing")
        site.wait(lambda: "No space left" in (site.base / "daemon.out").read_text(), 20, "it is said")
        waits_for(site, "eve/nothing", str(site.mirror))  # by the error, or by disk_floor, whichever looked last
        assert site.marker("eve/nothing")[0] == "PENDING"
        (small_disk / "more").unlink()
        site.wait_state("eve/nothing", "DONE", 40)
        site.drop("bob/large", files={"data": "x" * 6_000_000})
        put(site.compute / "ann/before/go")
        waits_for(site, "ann/before", "a disk is full")
        waits_for(site, "bob/large", "a disk is full")
        (small_disk / "ballast").unlink()
        for job in "ann/before", "bob/large", "eve/nothing":
            site.wait_state(job, "DONE", 40)
        site.wait(site.quiet, 30, "quiet")
        assert [site.runs(job) for job in ("ann/before", "bob/large", "eve/nothing")] == [1, 1, 1]
        assert (site.web / "ann/before/big.out").stat().st_size == 6_000_000


def test_below_the_disk_floor_nothing_is_brought_and_the_administrator_knows(small_disk, tmp_path):
    with Site(tmp_path, change=floor("10MB")) as site:
        put(small_disk / "ballast", b"x" * 20_000_000)
        site.wait(lambda: "takes nothing more" in (site.base / "daemon.out").read_text(), 10, "the floor is seen")
        site.drop("ann/e1")
        waits_for(site, "ann/e1", "disk_floor")
        assert not (site.mirror / "ann/e1/in.txt").exists()
        (small_disk / "ballast").unlink()
        end(site, "ann/e1")
        site.wait(lambda: times(site, "tree main takes jobs again") == 1, 20, "the administrator knows that it is over")
        assert times(site, "tree main takes nothing more") == 1


def test_a_full_disk_below_the_state_directory_delays_and_loses_nothing(tmp_path):
    (tmp_path / "state").mkdir(mode=0o700)
    with mounted(tmp_path / "state", "8m"), Site(tmp_path) as site:
        site.drop("ann/before", command=HOLD)
        site.wait(lambda: site.runs("ann/before") == 1, 20, "it runs")
        fill(tmp_path / "state/ballast")
        put(site.compute / "ann/before/go")
        site.drop("ann/e1")
        site.wait(lambda: "state directory cannot be written" in (site.base / "daemon.out").read_text(), 20, "it is said")
        time.sleep(1)
        assert site.process.poll() is None
        (tmp_path / "state/ballast").unlink()
        for job in "ann/before", "ann/e1":
            site.wait_state(job, "DONE", 40)
        site.wait(site.quiet, 30, "quiet")
        assert site.runs("ann/before") == site.runs("ann/e1") == 1


def test_a_state_directory_that_takes_no_run_leaves_a_job_its_choice_of_hosts(tmp_path):
    with Site(tmp_path, edit=quick("submit")) as site:
        away, runs = site.compute.parent.with_name("away"), site.state / "runs"
        site.compute.parent.rename(away)  # so that the job comes into the mirror, and no further
        site.drop("ann/e1")
        site.wait(lambda: (site.mirror / "ann/e1/in.txt").exists() and not list((site.state / "runs").iterdir()), 20, "it has been brought")
        waits_for(site, "ann/e1", "b01")
        runs.rename(site.state / "runs.away")
        put(runs, "")  # as on a disk that takes nothing more
        away.rename(site.compute.parent)
        site.wait(lambda: "the state directory cannot be written" in (site.base / "daemon.out").read_text(), 60, "it is said")
        site.wait(lambda: not site.record("ann/e1").contacted, 20, "no host has been contacted")
        runs.unlink()
        (site.state / "runs.away").rename(runs)
        end(site, "ann/e1")
        assert site.runs("ann/e1") == 1
