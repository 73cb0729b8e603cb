"""What the administrator is told of hosts and disks, by the real daemon: each trouble once, and that it is over, also by the next one."""

import time

import pytest
from site_kit import Site
from sshd_kit import Sshd
from trouble_kit import times, told


@pytest.fixture
def sshd(tmp_path):
    with Sshd(tmp_path / "far") as sshd:
        yield sshd


def test_a_host_that_is_down_is_told_once_and_that_it_is_up_again_also_by_the_next_daemon(sshd, tmp_path):
    change = lambda text: text.replace('role = "web"', sshd.toml() + 'role = "web"')  # noqa: E731
    settings = 'grace = "2s"\nheartbeat = "1s"\nhost_down_notice = "2s"\nreconcile = "1s"'
    with Site(tmp_path, change=change, daemon=settings) as site:
        site.wait_ready()
        site.drop("ann/before")
        site.wait_state("ann/before", "DONE")
        sshd.stop()
        site.drop("ann/while it is down")
        down, up = "host vision is down since", "host vision is up again"
        site.wait(lambda: times(site, down) == 1, 60, "it is told")
        assert (site.base / "daemon.out").read_text().count("host vision is down: ") == 1
        assert "Its jobs wait; the others go on." in told(site) and "refused" in "".join(told(site))
        site.kill()
        site.start().wait_ready()
        site.wait(lambda: times(site, "watchties started again, after a crash") == 1, 60, "the crash is told")
        until = time.monotonic() + 6  # it finds the host down once more, for longer than host_down_notice
        while time.monotonic() < until:
            site.wait(lambda: times(site, down) == 1, 5, "told by the daemon before, and not again")
            time.sleep(0.2)
        assert site.stop() == 0
        sshd.start()
        site.start()
        site.wait(lambda: times(site, up) == 1, 60, "it is told, though by another daemon")
        site.wait_state("ann/while it is down", "DONE")
        sshd.stop()  # and a second time within the hour
        site.wait(lambda: times(site, down) == 2, 60, "the second time is told, too")
        sshd.start()
        site.wait(lambda: times(site, up) == 2, 60, "and that it has ended")
