"""Jobs of real size over real hosts: many files, a large one, transfers that are cut; and disks that take nothing more."""

import contextlib
import json
import os
import subprocess
import time

import pytest
from helpers import put
from lab_kit import LabSite, give
from trouble_kit import quick, waits_for
from watchties.examples import make_dyads

pytestmark = pytest.mark.slow

MB = 1_000_000
USUAL = """#!/bin/sh
echo run >>runs.log
for d in $(seq 84); do
    mkdir -p "fits/$d"
    for f in $(seq 100); do echo "$d $f" >"fits/$d/$f.csv"; done
done
head -c 19000000 /dev/urandom | split -b 230000 - fits/1/part.
ln -s /etc/passwd fits/absolute
truncate -s 2147483648 cache.bin
for at in 0 1000 2047; do head -c 1000000 /dev/urandom | dd of=cache.bin bs=1M seek=$at conv=notrunc iflag=fullblock; done 2>/dev/null
sha256sum cache.bin
"""
QUICK = quick("pull", "submit", "fetch", "push")


def at_rest(site, job, state="DONE", seconds=120):
    fields = site.wait_state(job, state, seconds)
    site.wait(site.quiet, 60, "quiet")
    return fields


def received(lab, host):
    """Return the bytes that have come in at a host's cable since it was switched on."""
    return json.loads(lab.on(host, ["ip", "-s", "-j", "link", "show", "eth0"]).stdout)[0]["stats64"]["rx"]["bytes"]


def under_way(where, name):
    """Return how much of a file rsync has written so far on another host, in bytes."""
    with contextlib.suppress(FileNotFoundError):
        return max((path.stat().st_size for path in where.glob(f".{name}.*") if path.is_file()), default=0)
    return 0


def coming(site, name):
    """Return how much of a file has come into the mirror so far, in bytes."""
    with contextlib.suppress(FileNotFoundError):
        return max((path.stat().st_size for path in site.mirror.glob(f".watchties.coming/*/{name}.*")), default=0)
    return 0


def test_a_job_of_real_size_there_and_back(lab):
    with LabSite(lab) as site:
        began = time.monotonic()
        site.drop("ann/usual", USUAL)
        at_rest(site, "ann/usual", seconds=280)
        took = time.monotonic() - began
        made, came = site.compute / "ann/usual", site.web / "ann/usual"
        files = [path for path in came.rglob("*") if path.is_file()]
        assert len(files) > 8400 and os.readlink(made / "fits/absolute") == "/etc/passwd"
        assert not os.path.lexists(came / "fits/absolute") and not os.path.lexists(site.mirror / "ann/usual/fits/absolute")
        assert "fits/absolute left behind" in (site.state / "log/fetch.log").read_text()
        assert subprocess.run(["cmp", made / "cache.bin", came / "cache.bin"], check=False).returncode == 0
        assert subprocess.run(["diff", "-r", made / "fits", came / "fits"], capture_output=True, text=True, check=False).stdout == (
            f"Only in {made / 'fits'}: absolute\n")  # fmt: skip
        print(f"{len(files)} files and 2 GB: {took:.0f} s")
        assert site.runs("ann/usual") == 1


def test_the_example_of_the_demo_on_b01(lab, tmp_path):
    with LabSite(lab) as site:
        for where in tmp_path, site.web / "ann/dyads":
            make_dyads.make_job(str(where), dyads=4)
        subprocess.run([tmp_path / "command"], cwd=tmp_path, check=True, capture_output=True)
        site.touch("ann/dyads")
        assert at_rest(site, "ann/dyads")["host"] == "b01"
        for name in "parameters.csv", "curves.svg":
            assert (site.web / "ann/dyads" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_results_that_were_cut_by_a_reboot_come_on_from_where_they_were(lab):
    job, size = "ann/large results", 200 * MB
    with LabSite(lab, host='bwlimit = "40M"', edit=QUICK, daemon='grace = "2s"\nheartbeat = "2s"') as site:
        site.drop(job, f"echo run >>runs.log; head -c {size} /dev/urandom >out.bin\n")
        site.wait(lambda: coming(site, "out.bin") > size // 2, 60, "half of it has come")
        lab.stop_host("b01")
        kept = site.mirror / job / ".watchties.partial/out.bin"
        site.wait(kept.exists, 60, "what came is kept")
        have, before = kept.stat().st_size, received(lab, "v11")
        lab.start_host("b01")
        fields = at_rest(site, job)
        came = received(lab, "v11") - before
        print(f"{size // MB} MB, cut at {have // MB} MB: {came // MB} MB came after it")
        assert fields["attempt"] == "1" and site.runs(job) == 1
        assert (site.web / job / "out.bin").read_bytes() == (site.compute / job / "out.bin").read_bytes()
        assert have > size // 2 - MB and came < size - have + 20 * MB
        assert not list(site.web.rglob("*partial*")) and not list(site.web.rglob(".out.bin.*"))


def test_inputs_that_were_cut_by_a_reboot_come_on_from_where_they_were_and_leave_nothing_behind(lab):
    job, size = "ann/large inputs", 200 * MB
    with LabSite(lab, host='bwlimit = "40M"', edit=QUICK, daemon='grace = "2s"\nheartbeat = "2s"') as site:
        site.drop(job, files={"noise.bin": os.urandom(size)})
        site.wait(lambda: under_way(site.compute / job, "noise.bin") > size // 2, 60, "half of it is there")
        lab.stop_host("b01")
        have = under_way(site.compute / job, "noise.bin")
        lab.start_host("b01")
        at_rest(site, job)
        went = received(lab, "b01")
        print(f"{size // MB} MB, cut at {have // MB} MB: {went // MB} MB went after it")
        assert site.runs(job) == 1 and went < size - have + 20 * MB
        assert (site.compute / job / "noise.bin").read_bytes() == (site.web / job / "noise.bin").read_bytes()
        left = [found for tree in (site.compute, site.mirror, site.web) for found in (tree / job).rglob(".noise.bin*")]
        assert not left and not (site.compute / job / ".watchties.partial").exists()


def test_results_that_the_web_hosts_reboot_has_cut_leave_nothing_there_however_long_it_was_away(lab):
    job, size = "ann/large push", 100 * MB
    web = 'bwlimit = "20M"\nssh_options = ["ConnectTimeout=3"]'
    with LabSite(lab, web=web, edit=QUICK, daemon='grace = "2s"\nheartbeat = "2s"') as site:
        site.drop(job, f"echo run >>runs.log; head -c {size} /dev/urandom >out.bin\n")
        site.wait(lambda: under_way(site.web / job, "out.bin") > size // 2, 60, "half of it is there")
        lab.stop_host("vision")
        have = under_way(site.web / job, "out.bin")
        mine = put(site.web / job / ".out.bin.backup", "not rsync's\n")
        give(mine, "www-data")
        site.wait(lambda: not list((site.state / "runs").glob("push-*")), 60, "the hook gave up")
        site.kill()
        site.start()
        lab.start_host("vision")
        assert at_rest(site, job)["attempt"] == "1" and site.runs(job) == 1
        went = received(lab, "vision")
        print(f"{size // MB} MB, cut at {have // MB} MB: {went // MB} MB went after it")
        assert (site.web / job / "out.bin").read_bytes() == (site.compute / job / "out.bin").read_bytes()
        assert list((site.web / job).glob(".*")) == [mine] and mine.read_text() == "not rsync's\n"
        assert went < size - have + 20 * MB and not list(site.mirror.rglob("sending.*"))


def test_inputs_that_a_reboot_of_v11_has_cut_leave_nothing_that_would_count_as_an_input(lab):
    job, size = "ann/large pull", 100 * MB
    with LabSite(lab, web='bwlimit = "20M"', daemon='grace = "2s"\nheartbeat = "2s"') as site:
        site.drop(job, files={"noise.bin": os.urandom(size)})
        site.wait(lambda: coming(site, "noise.bin") > size // 2, 60, "half of it has come")
        lab.stop_host("v11")
        site.process.wait(20)
        assert coming(site, "noise.bin") > size // 2
        lab.start_host("v11")
        site.start()
        at_rest(site, job)
        assert site.runs(job) == 1
        assert (site.compute / job / "noise.bin").read_bytes() == (site.web / job / "noise.bin").read_bytes()
        left = [path for tree in (site.compute, site.mirror, site.web) for path in tree.rglob("*noise.bin?*")]
        assert not left and not list(site.mirror.glob(".watchties.coming/*"))


@contextlib.contextmanager
def small_disk(lab, site, size):
    """Mount a small disk where the jobs of b01 lie; what is on it can be seen on b01 only."""
    where = "/home/runcompties/compties/user_data"
    lab.on("b01", ["mount", "-t", "tmpfs", "-o", f"size={size},uid=2002,gid=2002,mode=755", "tmpfs", where])
    try:
        yield lambda options: lab.on("b01", ["mount", "-o", f"remount,{options}", where])
    finally:
        lab.on("b01", ["umount", "-l", where])


def test_a_full_disk_on_the_compute_host_is_told_and_jobs_go_on_when_there_is_room(lab):
    with LabSite(lab, compute=("b01",), edit=QUICK, host='poll = "3s"') as site, small_disk(lab, site, "12m") as remount:
        site.drop("ann/large", files={"noise.bin": os.urandom(20 * MB)})
        waits_for(site, "ann/large", "a disk is full", seconds=40)
        site.drop("eve/small")
        assert site.wait_state("eve/small", "DONE", 40)["exit"] == "0"
        site.drop("bob/makes much", "echo run >>runs.log; head -c 30000000 /dev/urandom >big.out\n")
        big = ["stat", "-c", "%s", "/home/runcompties/compties/user_data/bob/makes much/big.out"]
        site.wait(lambda: lab.on("b01", big, check=False).returncode == 0, 40, "it runs")
        time.sleep(3)
        assert [site.marker(job)[0] in ("PENDING", "SUBMITTED", "FAILED") for job in ("ann/large", "bob/makes much")] == [True, True]
        remount("size=100m")
        fields = at_rest(site, "bob/makes much", "FAILED")
        print("a full disk under a job:", fields)
        assert at_rest(site, "ann/large")["attempt"] == "1"
        assert (site.web / "ann/large/runs.log").read_text() == "run\n"
        site.touch("bob/makes much")
        at_rest(site, "bob/makes much")
        assert (site.web / "bob/makes much/big.out").stat().st_size == 30 * MB


def test_a_read_only_disk_on_the_compute_host_is_told_and_jobs_go_on_when_it_is_mended(lab):
    with LabSite(lab, compute=("b01",), edit=QUICK) as site, small_disk(lab, site, "50m") as remount:
        remount("ro")
        site.drop("ann/waits")
        waits_for(site, "ann/waits", "host b01", "cannot write", seconds=40)
        assert site.marker("ann/waits")[0] == "PENDING"
        checked = site.watchties("check", check=False).stdout
        assert [line for line in checked.splitlines() if "WRONG" in line and "b01" in line], checked
        remount("rw")
        assert at_rest(site, "ann/waits")["attempt"] == "1"
        assert (site.web / "ann/waits/runs.log").read_text() == "run\n"


def test_a_bashrc_that_prints_is_told_and_jobs_go_on_when_it_is_silent(lab):
    noisy = lab.home("b01", "runcompties") / ".bashrc"
    with LabSite(lab, compute=("b01",), edit=QUICK) as site:
        try:
            give(put(noisy, "echo Welcome to b01, mind the step; echo and this >&2\n"), "runcompties")
            site.drop("ann/waits")
            waits_for(site, "ann/waits", "login that prints", seconds=40)
            assert site.marker("ann/waits")[0] == "PENDING" and not site.runs("ann/waits")
        finally:
            noisy.unlink()
        assert at_rest(site, "ann/waits")["attempt"] == "1"
        assert site.runs("ann/waits") == 1
