"""The clock is set back, an hour or a day, while jobs are under way: nothing waits for a time that was thought to come."""

import glob
import random

import pytest
from helpers import put
from resources_kit import Place, job_names
from trouble_kit import HOLD, quick

LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"
SITE_RULE = """
[[rule]]
name = "plot"
on = ["mirror:DONE"]
hook = "plot"
retry = { first = "5s", maximum = "20s" }
"""


BACK = (3600, 86400)  # seconds


@pytest.mark.parametrize("which", range(len(BACK)), ids=["one", "other"])
@pytest.mark.slow
def test_a_clock_that_is_set_back_holds_up_nothing(which, tmp_path, seed, long, figure):
    if which and not long:
        pytest.skip("an hour or a day, as the seed has it; both with --long")
    back = BACK[which if long else seed % len(BACK)]
    found, offset, draw, count = glob.glob(LIBRARY), tmp_path / "offset", random.Random(seed), 50 if long else 5
    if not found:
        pytest.skip("faketime is not installed here: run contrib/setup.sh")
    offset.write_text("+0")
    environ = {"LD_PRELOAD": found[0], "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1", "NO_FAKE_STAT": "1",
               "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    hook = {"plot": f"[ -e {tmp_path}/ready ] || exit 75\n"}
    with Place(tmp_path, environ=environ, edit=quick("push", "mail"), rules=SITE_RULE, hooks=hook) as site:
        site.wait_ready()
        waiting, running, later = (job_names(count, what) for what in ("waiting", "running", "later"))
        for job in waiting:
            site.drop(job)
        for job in running:
            site.drop(job, command=HOLD)
        for job in waiting:
            site.wait_state(job, "DONE")
        site.wait(lambda: all(site.runs(job) == 1 for job in running), 60, "they run")
        site.wait(lambda: "plot is tried again" in site.status(), 60, f"the site's hook is tried again: {site.status()}")
        offset.write_text(f"-{back}")
        site.wait(lambda: "the clock was set back" in (tmp_path / "daemon.out").read_text(), 30, "it is noticed")
        put(tmp_path / "ready")
        for job in later:
            site.drop(job)
        for job in running:
            put(site.compute / job / "go")
        if draw.random() < 0.5:
            site.kill()
            site.start()
        site.all_end([*waiting, *running, *later], 100)
        assert len(site.letters()) == 3 * count
        assert site.stop() == 0
    figure(f"back by {back} s: {3 * count} jobs, 0 lost, 0 twice, {3 * count} mails")
