"""A record that a person has edited, or that cannot be understood, costs its job alone: one clear line, and the daemon goes on."""

import json

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
