"""The soak in short: the code of `make soak` with few jobs, so that it cannot rot; and that it would notice what it looks for."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from site_kit import Site
from soak_faults import job_of, kind_of
from soak_figures import HEADS, Figures
from soak_jobs import Asked, Flow

SOAK = str(Path(__file__).parent / "soak.py")
JOBS, MANY = 300, 2000


@pytest.mark.slow
def test_jobs_with_faults_all_the_while_lose_nothing_and_repeat_nothing(seed, long, figure):
    words = [sys.executable, SOAK, "--jobs", str(MANY if long else JOBS), "--seed", str(seed)]
    # as a program: it adopts orphans, which no other test wants
    told = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert told.returncode == 0, told.stdout + told.stderr
    *_, summary, last = told.stdout.splitlines()
    figure(summary)
    assert last == "all holds"
    assert int(re.search(r"(\d+) faults", summary)[1]) >= 10


def ended(tmp_path, kind="plain", runs=1, state="DONE", text=None):
    """Return what a soak finds wrong with a job that has ended like this."""
    site = Site(tmp_path)
    flow, one = Flow(site, 1, random.Random(1)), Asked("ann/E1", kind, None)
    for tree in site.web, site.compute:
        where = tree / "ann/E1"
        where.mkdir(parents=True)
        (where / "runs.log").write_text("run\n" * runs)
        (where / "out.txt").write_text("input of ann/E1\n" if text is None else text)
        (where / state).write_text(f"state={state}\n")
    flow.mails["E1"] = {"<1@x>"}
    return flow, list(flow._wrong(one))


def test_a_soak_is_content_with_a_job_that_went_well(tmp_path):
    assert ended(tmp_path)[1] == []


@pytest.mark.parametrize(
    "how, word",
    [({"runs": 2}, "TWICE"), ({"runs": 0}, "LOST"), ({"state": "FAILED"}, "LOST"), ({"text": ""}, "LOST")],
)
def test_a_soak_notices_a_job_that_is_lost_or_ran_twice(tmp_path, how, word):
    assert any(text.startswith(word) for text in ended(tmp_path, **how)[1])


def test_a_soak_notices_what_grows():
    figures = Figures.__new__(Figures)
    figures.rows = [dict.fromkeys(HEADS, 100.0) for _ in range(10)]
    assert figures.growth() == []
    for row in figures.rows[-3:]:
        row["own MB"] = 111.0
    assert [text.split(":")[1] for text in figures.growth()] == [" own MB"]


def test_processes_are_told_apart():
    assert kind_of(0, ["/usr/bin/rsync", "--server"]) == "rsync"
    assert kind_of(0, ["sh", "/b/scripts/agent.sh", "claim", "user_data"]) == "agent"
    assert kind_of(0, ["python3", "/b/scripts/relay.py", "user_data"]) == "relay"
    assert kind_of(0, ["sh", "./command"]) == ""
    assert job_of(["sh", "agent.sh", "wrapper", "user_data/user 1/E7", "1", "t"]) == "user 1/E7"
