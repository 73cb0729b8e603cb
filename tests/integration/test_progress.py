"""Long transfers, carried by a real daemon through a real sshd with a limit of bytes a second: seen, cut, gone on with; then stats."""

import json
import os
import re
import signal
import socket
import subprocess
import threading

import pytest
from site_kit import Site
from sshd_kit import Sshd

from watchties import manifest, progress

pytestmark = pytest.mark.slow
BIG = os.urandom(5_000_000)  # 12 s: time for all that is asked meanwhile, on a slow machine too


class NotifiedSite(Site):
    """A Site whose daemon is told where to notify its service manager, as systemd does it (sd_notify(3))."""

    def __init__(self, folder, **how):
        super().__init__(folder, **how)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(f"\0watchties-test-{os.getpid()}")
        self.told = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        """Take in all that comes, as a manager does: a full socket would stop the daemon."""
        while True:
            self.told.append(self.manager.recv(65536).decode())

    def environment(self):
        return super().environment() | {"NOTIFY_SOCKET": f"@watchties-test-{os.getpid()}"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with Sshd(folder) as sshd:
        far = sshd.toml() + 'bwlimit = "400k"\n'
        with NotifiedSite(folder, change=lambda text: text.replace('role = "web"\n', f'role = "web"\n{far}')) as site:
            site.wait_ready()
            yield site


def told(site):
    """Return what `status --json` says of transfers."""
    return json.loads(site.watchties("status", "--json").stdout)["under_way"]


def test_a_long_transfer_is_seen_by_status_and_by_the_daemon_and_leaves_nothing(site):
    site.drop("ann/big", "cp in.bin out.bin\n", files={"in.bin": BIG})
    for rule, jobs in ("pull", ["main:ann/big"]), ("push", ["main:ann/big"]):
        first = site.wait(lambda rule=rule: [one for one in told(site) if one["rule"] == rule], 120, f"{rule} is told")[0]
        assert (first["host"], first["jobs"]) == ("vision", jobs) and 0 < first["bytes"] <= len(BIG) and first["rate"] > 0
        site.wait(lambda first=first: [one for one in told(site) if one["bytes"] > first["bytes"]], 60, f"{rule} grows")
        if rule == "pull":
            assert progress.in_one_line(site.state).startswith("pull vision: ")
            shown = site.watchties("status").stdout
            assert "under way: pull vision: " in shown and "left (main:ann/big)" in shown, shown
        else:
            shown = site.watchties("explain", "ann/big").stdout
            assert re.search(r"at work: run push-\S+ of push on vision, .*\n +under way: [\d.]+ [kM]B, ", shown), shown
    assert [one for one in site.told if "; pull vision: " in one and "MB" in one], "systemd is told"
    site.wait_state("ann/big", "DONE", 120)
    site.wait(site.quiet, 60, "quiet")
    assert told(site) == [] and not list((site.state / "runs").rglob("progress*"))
    assert (site.web / "ann/big/out.bin").read_bytes() == BIG


def test_a_hook_and_rsync_that_are_ended_leave_no_progress_and_the_next_goes_on_where_they_were(site):
    site.drop("ann/cut", files={"in.bin": BIG})
    run = site.wait(lambda: told(site), 120, "pull is told")[0]["run"]
    where = site.state / "runs" / run
    hook = next(int(pid) for pid in os.listdir("/proc") if pid.isdigit() and works_in(pid, where))
    found = subprocess.run(["pgrep", "-P", str(hook), "-x", "rsync"], capture_output=True, text=True, check=True, timeout=60).stdout
    os.kill(hook, signal.SIGKILL)
    os.kill(int(found.split()[0]), signal.SIGTERM)
    partial = site.mirror / "ann/cut" / manifest.PARTIAL / "in.bin"
    site.wait(partial.exists, 60, "rsync keeps what it has")
    kept = partial.stat().st_size
    assert kept > 500_000
    site.wait(lambda: not where.exists(), 60, "the run is taken in")
    assert run not in {one["run"] for one in told(site)}
    first = site.wait(lambda: told(site), 120, "the next pull is told")[0]
    assert first["rule"] == "pull" and first["bytes"] >= kept, "what was there already counts as carried"
    site.wait_state("ann/cut", "DONE", 120)
    site.wait(site.quiet, 60, "quiet")
    assert (site.mirror / "ann/cut/in.bin").read_bytes() == BIG and not list(site.state.rglob("progress*"))


def works_in(pid, where):
    """Return whether a process is the hook of a run: it works in the run's directory."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(where)
    except OSError:
        return False


def of_three(found):
    """Return the figures when every stage has those of three jobs; the journal may lag behind."""
    return found if all(took["count"] >= 3 for took in found["stages"].values()) else None


def test_stats_of_what_has_gone_its_way(site):
    site.drop("bob/bad", "exit 3\n")
    site.wait_state("bob/bad", "FAILED", 60)
    found = site.wait(lambda: of_three(json.loads(site.watchties("stats", "--json").stdout)), 60, "every stage is told of three jobs")
    assert found["stages"]["push"]["p95"] > 2 and found["stages"]["in all"]["p95"] > found["stages"]["pull"]["p50"]
    assert [sum(day.get(state, 0) for day in found["days"].values()) for state in ("DONE", "FAILED")] == [2, 1]
    assert found["causes"] == {"exit": 1}
    shown = site.watchties("stats", "--since", "1h").stdout
    assert "waiting" in shown and "P95" in shown and "exit" in shown and "█" in shown
    assert "no job has gone its way in this time" in site.watchties("stats", "--since", "2001-01-01", "--until", "2001-02-01").stdout
