"""Jobs of real size over real hosts: many files, a large one, transfers that are cut; and disks that take nothing more."""

import contextlib
import hashlib
import json
import os
import subprocess
import time

import pytest
from helpers import put, wait_for
from lab_kit import LabSite, give
from trouble_kit import quick, waits_for
from watchties.examples import make_dyads

pytestmark = pytest.mark.slow

MB = 1_000_000
LARGE = 2 << 30  # bytes; sparse where it is made
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
    """Return how much of a file rsync has written so far, in bytes."""
    with contextlib.suppress(FileNotFoundError):
        return max((path.stat().st_size for path in where.glob(f".{name}.*") if path.is_file()), default=0)
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
        site.wait(lambda: under_way(site.mirror / job, "out.bin") > size // 2, 60, "half of it has come")
        lab.stop_host("b01")
        kept = site.mirror / job / ".watchties.partial/out.bin"
        site.wait(kept.exists, 60, "what came is kept")
        have, before = kept.stat().st_size, received(lab, "v11")
        lab.start_host("b01")
        fields = at_rest(site, job)
        came = received(lab, "v11") - before
        print(f"{size // MB} MB, cut at {have // MB} MB: {came // MB} MB came after it")
        assert fields["attempt"] == "1" and site.runs(job) == 1
        assert hashlib.sha256((site.web / job / "out.bin").read_bytes()).digest() == hashlib.sha256(
            (site.compute / job / "out.bin").read_bytes()).digest()  # fmt: skip
        assert have > size // 2 - MB and came < size - have + 20 * MB
        assert not list(site.web.rglob("*partial*")) and not list(site.web.rglob(".out.bin.*"))


@pytest.mark.parametrize("how", ["cable", "reboot"])
def test_inputs_that_were_cut_arrive_whole_and_leave_nothing_behind(lab, how):
    job, size = "ann/large inputs", 200 * MB
    with LabSite(lab, host='bwlimit = "40M"', edit=QUICK, daemon='grace = "2s"\nheartbeat = "2s"') as site:
        site.drop(job, files={"noise.bin": os.urandom(size)})
        site.wait(lambda: under_way(site.compute / job, "noise.bin") > size // 2, 60, "half of it is there")
        if how == "reboot":
            lab.stop_host("b01")
            time.sleep(10)
            lab.start_host("b01")
        else:
            lab.fault("down", "b01")
            time.sleep(15)
            lab.fault("clear", "b01")
        before = received(lab, "b01")
        at_rest(site, job)
        print(f"{how}: {(received(lab, 'b01') - before) // MB} MB went after it")
        assert site.runs(job) == 1
        print([p for p in (site.compute / job).iterdir()], [p for p in (site.web / job).iterdir()])
