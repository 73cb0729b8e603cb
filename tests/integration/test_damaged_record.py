"""A record that a person has edited, or that cannot be understood, costs its job alone: one clear line, and the daemon goes on."""

import json
import shutil
import time

import pytest
from site_kit import Site

DAMAGES = {
    "tries": lambda plain: plain | {"phase": "SUBMITTED", "tries": {"poll": {"count": 1}, "push": {"count": 1}, "report": {"count": 2}}},
    "since": lambda plain: plain | {"phase": "SUBMITTED", "fields": {"since": "soon"}},
    "old": lambda plain: plain | {"old": {"attempt": 1, "token": "t", "host": ["b01"]}},
}


@pytest.fixture
def ended(tmp_path):
    """A site with jobs that have ended, whose daemon is stopped."""
    site = Site(tmp_path)
    with site:
        for name in DAMAGES:
            site.drop(f"ann/{name}")
        for name in DAMAGES:
            site.wait_state(f"ann/{name}", "DONE")
        site.wait(site.quiet, 30, "quiet")
    return site


def test_a_record_that_was_edited_costs_its_job_alone(ended):
    site = ended
    for name, damage in DAMAGES.items():
        path = site.mirror / "ann" / name / ".watchties/record.json"
        path.write_text(json.dumps(damage(json.loads(path.read_text()))))
        (site.mirror / "ann" / name / ".watchties.open").touch()
    with site:
        site.drop("bob/good")
        site.wait_state("bob/good", "DONE")
        said = (site.base / "daemon.out").read_text()
        for name in DAMAGES:
            lines = [line for line in said.splitlines() if f"ann/{name}/.watchties/record.json is damaged" in line]
            assert len(lines) == 1 and "move it away to begin this job anew" in lines[0]
            assert "record.json is damaged" in site.watchties("explain", f"ann/{name}", check=False).stderr
        assert "Traceback" not in said


def test_a_job_whose_directory_was_removed_is_listed_no_longer_and_one_whose_tree_is_away_is(tmp_path):
    with Site(tmp_path, daemon='reconcile = "1s"') as site:
        for job in "ann/stays", "ann/goes":
            site.drop(job)
        for job in "ann/stays", "ann/goes":
            site.wait_state(job, "DONE")
        site.wait(site.quiet, 30, "quiet")
        listed = lambda: site.watchties("status", "--all").stdout  # noqa: E731
        assert "ann/stays" in listed() and "ann/goes" in listed()
        site.mirror.rename(tmp_path / "away")
        time.sleep(3)  # three reconciles
        assert "ann/stays" in listed() and "ann/goes" in listed()
        (tmp_path / "away").rename(site.mirror)
        shutil.rmtree(site.mirror / "ann/goes")
        site.wait(lambda: "ann/goes" not in listed(), 20, "the removed one is forgotten")
        assert "ann/stays" in listed()
        shutil.rmtree(site.web / "ann/goes")
        site.drop("ann/goes")
        site.wait(lambda: "ann/goes" in listed(), 20, "a new one of its name is listed")


@pytest.mark.parametrize("removed", ["ann/again", "ann/again/.watchties/record.json"])
@pytest.mark.parametrize("place", ["web", "mirror"])
def test_a_job_whose_record_was_removed_goes_on_counting_its_attempts(tmp_path, removed, place):
    """Else what it begins would be older than the state that stands on the web host, which would never show it."""
    with Site(tmp_path) as site:
        site.drop("ann/again")
        for attempt in "1", "2":
            site.wait(lambda attempt=attempt: site.marker("ann/again")[1].get("attempt") == attempt, 40, attempt)
            site.wait_state("ann/again", "DONE")
            site.wait(site.quiet, 30, "quiet")
            if attempt == "1":
                site.touch("ann/again")
    path = site.mirror / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with site:
        site.wait_ready()
        if place == "web":
            site.touch("ann/again")
        else:
            shutil.copytree(site.web / "ann/again", site.mirror / "ann/again", dirs_exist_ok=True)  # a person puts it back
            site.touch("ann/again", tree=site.mirror)
        site.wait(lambda: site.marker("ann/again")[1].get("attempt") == "3" and site.marker("ann/again")[0] == "DONE", 40, "the third")
        site.wait(site.quiet, 30, "quiet")
        assert site.runs("ann/again") == 3 and sorted(p.name for p in (site.web / "ann/again").iterdir() if p.name.isupper()) == ["DONE"]
        time.sleep(1)
        log = site.state / "log/report.log"
        assert not log.exists() or log.read_text().count(" start ") <= 4, "no run follows upon another without end"
