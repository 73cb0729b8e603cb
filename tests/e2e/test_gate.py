"""contrib/ssh on the lab's hosts: webapp's key has the gate as its forced command at www-data's on vision, and whole jobs go through."""

import os
from pathlib import Path

import pytest
from helpers import put
from lab_kit import CHECKOUT, WITHOUT_ROOT, LabSite

pytestmark = pytest.mark.slow

GATE = CHECKOUT / "contrib/ssh/watchties-gate"
LINE = CHECKOUT / "contrib/ssh/authorized_keys"
WHERE = "/var/www/watchties-gate"  # /usr is the machine's, and read-only


@pytest.fixture
def gated(lab):
    """A site whose far files were put there by a plain login; after that, webapp's key at www-data's is held by the gate."""
    site = LabSite(lab, vision=WITHOUT_ROOT, compute=("b01",), daemon='grace = "2s"\nheartbeat = "2s"')
    home = lab.home("vision", "www-data")
    keys, gate = home / ".ssh/authorized_keys", home / "watchties-gate"
    plain = keys.read_text()
    put(gate, GATE.read_text())
    os.chown(gate, 0, 0)
    line = LINE.read_text().splitlines()[-1].replace("/usr/local/lib/watchties-gate", WHERE)
    keys.write_text(line.replace("ssh-ed25519 AAAA... webapp@v11", plain.strip()) + "\n")
    try:
        yield site
    finally:
        keys.write_text(plain)
        gate.unlink()


def test_whole_jobs_go_through_the_gate_with_nothing_refused(gated):
    """One at once, one with a large file (both ways, by a connection of its own), one stopped, one again after the relay was cut off."""
    site, lab = gated, gated.lab
    refused = lab.on("v11", ["ssh", "-o", "BatchMode=yes", "www-data@vision", "id"], user="webapp", check=False)
    assert refused.returncode == 77 and "refused by the gate on this key" in refused.stderr, refused
    small = lambda text: text.replace('alone_above = "100MB"', 'alone_above = "100KB"')  # noqa: E731
    rules = site.conf / "30-rules.toml"
    rules.write_text(small(rules.read_text()))
    odd, large, held = "ann/it's \"odd\" & $HOME", "bob/large", "eve/stopped"
    with site:
        site.wait_ready()
        for job in odd, large:
            noise = os.urandom(2_000_000) if job == large else b""
            site.drop(job, "echo run >>runs.log\ncp in.txt out.txt\ncp noise.bin back.bin\n", files={"noise.bin": noise})
        for job in odd, large:
            assert site.wait_state(job, "DONE")["exit"] == "0"
            assert (site.web / job / "out.txt").read_text() == f"input of {job}\n"
            assert (site.web / job / "back.bin").read_bytes() == (site.web / job / "noise.bin").read_bytes()
            assert {Path(site.web / job / name).owner() for name in ("DONE", "out.txt", "back.bin")} == {"www-data"}
        site.drop(held, "echo run >>runs.log\nsleep 300\n")
        site.wait(lambda: site.runs(held), 30, "it runs")
        site.touch(held, "CANCEL")
        assert site.wait_state(held, "FAILED")["cause"] == "cancelled"
        (relay,) = lab.on("vision", ["pgrep", "-u", "www-data", "-f", "scripts/relay.py"]).stdout.split()
        lab.on("vision", ["kill", relay])
        site.touch(odd)
        site.wait(lambda: site.marker(odd)[1].get("attempt") == "2" and site.marker(odd)[0] == "DONE", 60, "once more")
        site.wait(site.quiet, 60, "quiet")
        assert [site.runs(job) for job in (odd, large, held)] == [2, 1, 1]
        assert "gate:" not in site.said() and "relay does not run" not in site.said(), site.said()
        assert not [log for log in (site.state / "log").glob("*.log") if "gate:" in log.read_text()]
