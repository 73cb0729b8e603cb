"""Disks of other hosts that are full, with the real daemon: who is told what, nothing is lost, it goes on by itself."""

import pytest
from helpers import put
from site_kit import Site
from test_trouble_disks import fill, mounted
from trouble_kit import end, quick, times, waits_for
from watchties.outcomes import TOLD_AT

LARGE = "echo run >> runs.log; head -c 6000000 /dev/urandom > big.out\n"


@pytest.fixture
def web_disk(tmp_path):
    """A disk of 24 MB where the web host's jobs will be."""
    (tmp_path / "vision").mkdir()
    with mounted(tmp_path / "vision", "24m") as where:
        yield where


@pytest.fixture
def compute_disk(tmp_path):
    (tmp_path / "b01").mkdir()
    with mounted(tmp_path / "b01", "24m") as where:
        yield where


def test_a_full_disk_on_the_web_host_is_told_to_the_administrator_once_and_jobs_go_on_by_themselves(web_disk, tmp_path):
    jobs = [f"{user}/large" for user in ("ann", "bob", "eve")]
    with Site(tmp_path, edit=quick("push", "report")) as site:
        for job in jobs:
            site.drop(job, command=f"until [ -e go ]; do sleep 0.05; done; {LARGE}")
        for job in jobs:
            site.wait_state(job, "SUBMITTED")
        fill(web_disk / "ballast")
        for job in jobs:
            put(site.compute / job / "go")
        for job in jobs:
            waits_for(site, job, "vision", "disk is full", seconds=60)
            site.wait(lambda: site.record(job).tries.get("push", {}).get("count", 0) > TOLD_AT, 120, "tried again and again")
        assert [site.marker(job)[0] for job in jobs] == ["SUBMITTED"] * 3  # not DONE without its results
        (web_disk / "ballast").unlink()
        for job in jobs:
            end(site, job, seconds=60)
            assert (site.web / job / "big.out").stat().st_size == 6_000_000 and site.runs(job) == 1
        assert times(site, "the disk of host vision is full") == 1 and times(site, "main:") == 0


def test_a_full_disk_on_a_compute_host_is_said_and_jobs_go_on_by_themselves(compute_disk, tmp_path):
    with Site(tmp_path, edit=quick("submit", "report", "fetch")) as site:
        site.wait_ready()
        site.drop("ann/running", command="echo run >> runs.log; until [ -e go ]; do sleep 0.05; done\n")
        site.wait(lambda: site.runs("ann/running") == 1, 30, "it runs")
        site.wait_state("ann/running", "SUBMITTED")
        fill(compute_disk / "ballast")
        site.drop("bob/waits")
        site.drop("eve/large", files={"data": "x" * 6_000_000})
        for job in "bob/waits", "eve/large":
            waits_for(site, job, "b01", "disk", seconds=60)
        (site.compute / "ann/running/go").touch()
        site.wait(lambda: (site.compute / "ann/running/.watchties.new.DONE").exists(), 30, "it has ended, and cannot say so")
        (compute_disk / "ballast").unlink()
        for job in "ann/running", "bob/waits", "eve/large":
            end(site, job, seconds=90)
            assert site.runs(job) == 1
