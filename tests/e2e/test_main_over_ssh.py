"""The main job over real hosts: vision, v11 and b01, each with an sshd, the daemon being webapp's on v11."""

import os
import pwd

import pytest
from lab_kit import AS_ROOT, USERS, WITHOUT_ROOT, LabSite

pytestmark = pytest.mark.slow

JOBS = ["ann b/two  blanks ", "o'neil/it's \"quoted\" & $(touch pwned)", "李雷/实验;rm -rf *"]
COMMAND = """#!/bin/sh
echo run >>runs.log
mkdir -p plots/deep
cp in.bin plots/deep/out.bin
ln -s deep/out.bin plots/link
echo "$COMPTIES_HOME as $(whoami) on $(hostname)"
touch plots/DONE
"""
NOISE = os.urandom(1_000_000)


def owners(path):
    """Return the numbers of the users to whom a job's directory belongs, and all below."""
    return {found.lstat().st_uid for found in [path, *path.rglob("*")]}


@pytest.mark.parametrize("vision", [AS_ROOT, WITHOUT_ROOT], ids=["as root", "without root"])
def test_jobs_go_through_three_hosts_and_run_once(lab, vision):
    with LabSite(lab, vision=vision) as site:
        for job in JOBS:
            site.drop(job, COMMAND, files={"in.bin": NOISE})
        for job in JOBS:
            fields = site.wait_state(job, "DONE", 120)
            assert (fields["host"], fields["exit"], fields["attempt"]) == ("b01", "0", "1")
        site.wait(lambda: site.quiet() and len(site.letters()) >= len(JOBS), 60, "quiet, and mail for each")
        for job in JOBS:
            where = site.web / job
            assert site.runs(job) == 1
            assert (where / "plots/deep/out.bin").read_bytes() == NOISE
            assert os.readlink(where / "plots/link") == "deep/out.bin"
            assert (where / "plots/DONE").exists()
            assert (where / "remote_ties_run.res").read_text() == "/home/runcompties/compties as runcompties on b01\n"
            assert site.letter(job)
            for tree, user in (site.web, "www-data"), (site.mirror, "webapp"), (site.compute, "runcompties"):
                assert owners(tree / job) == {USERS[user]}
            assert sorted(p.name for p in where.iterdir() if p.name.isupper()) == ["DONE"]
        assert len(site.letters()) == len(JOBS)
        assert not [found for host in ("vision", "v11", "b01") for found in (lab.folder / host).rglob("pwned")]


def test_users_of_the_lab_are_those_that_the_test_believes():
    assert pwd.getpwnam("www-data").pw_uid == USERS["www-data"]
