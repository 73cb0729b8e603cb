"""Directories that nobody may enter, on each host: the job says which and why in one line, and the others of its batch go on."""

import os

import pytest
from helpers import put
from lab_kit import USERS, LabSite, give
from trouble_kit import quick, waits_for

pytestmark = pytest.mark.slow

HELD = "until [ -e go ]; do sleep 0.1; done; "
LOCKED = "echo run >>runs.log; mkdir locked; echo x >locked/result; chmod 000 locked\n"
MIRROR = "compties/user_data"
PLAIN = "echo run >>runs.log; cat in.txt >out.txt\n"


def close(path, owner=None):
    """Make a directory one that nobody may enter, of its owner's or of another's."""
    path.mkdir(exist_ok=True)
    if owner:
        os.chown(path, USERS.get(owner, 0), USERS.get(owner, 0))
    path.chmod(0)


def test_each_is_told_in_one_line_and_the_others_go_on(lab):
    quick_ones, soon = quick("pull", "submit", "fetch", "push"), 'grace = "2s"\nreconcile = "5s"'
    with LabSite(lab, compute=("b01",), daemon=soon, edit=quick_ones) as site:
        site.wait_ready()
        close(put(site.mirror / "bob/mirror/.keep").parent / "closed", "root")
        give(site.mirror / "bob", "webapp", deep=False)
        give(site.mirror / "bob/mirror", "webapp", deep=False)
        close(put(site.web / "ann/pull/in.txt").parent / "closed", "root")
        for job, command in ("ann/push", HELD + PLAIN), ("ann/pull", PLAIN), ("bob/mirror", PLAIN), ("eve/fetch", LOCKED):
            site.drop(job, command)
        os.chown(site.web / "ann/pull/closed", 0, 0)
        site.wait_state("ann/push", "SUBMITTED", 90)
        os.chown(site.web / "ann/push", 0, 0)
        put(site.compute / "ann/push/go")
        site.drop("eve/fine", PLAIN)
        site.wait_state("eve/fine", "DONE", 90)
        waits_for(site, "bob/mirror", f"Permission denied: /home/webapp/{MIRROR}/bob/mirror/closed", seconds=90)
        waits_for(site, "ann/push", "rsync with vision", "/ann/push/", "Permission denied", seconds=90)
        for job in "ann/pull", "eve/fetch":  # given up soon: no user should wait for days to hear of it
            told = site.wait_state(job, "FAILED", 120)
            assert told["cause"] == "infrastructure" and "Permission denied" in told["reason"] and f"{job}/" in told["reason"], told
            site.wait(lambda: site.letter(job), 30, "a letter")
        (site.mirror / "bob/mirror/closed").chmod(0o777)
        give(site.web / "ann/push", "www-data")
        (site.web / "ann/pull/closed").chmod(0o755)
        site.touch("ann/pull")
        for job in "bob/mirror", "ann/pull", "ann/push":
            site.wait_state(job, "DONE", 120)
        assert site.runs("eve/fetch") == site.runs("ann/pull") == site.runs("bob/mirror") == 1
