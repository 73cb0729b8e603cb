"""What the administrator is told of hosts and disks, by the real daemon: each trouble once, and that it is over, also by the next one."""

import email
import email.policy

import pytest
from site_kit import Site
from sshd_kit import Sshd


@pytest.fixture
def sshd(tmp_path):
    with Sshd(tmp_path / "far") as sshd:
        yield sshd


def told(site):
    """Return all that the administrator was sent, or is about to be: a text, the subjects in it."""
    texts = [path.read_text() for path in (site.state / "notices").iterdir() if not path.name.endswith(".new")]
    for path in site.mail.glob("notice*.eml"):
        letter = email.message_from_string(path.read_text(), policy=email.policy.default)
        texts.append(f"{letter['Subject']}\n{letter.get_content()}")
    return "\n".join(texts)


def test_a_host_that_is_down_is_told_once_and_that_it_is_up_again_also_by_the_next_daemon(sshd, tmp_path):
    change = lambda text: text.replace('role = "web"', sshd.toml() + 'role = "web"')  # noqa: E731
    settings = 'grace = "2s"\nheartbeat = "1s"\nhost_down_notice = "2s"\nreconcile = "1s"'
    with Site(tmp_path, change=change, daemon=settings) as site:
        site.wait_ready()
        site.drop("ann/before")
        site.wait_state("ann/before", "DONE")
        sshd.stop()
        site.drop("ann/while it is down")
        site.wait(lambda: "host vision is down since" in told(site), 60, "it is told")
        assert "Its jobs wait; the others go on." in told(site) and "refused" in told(site)
        site.kill()
        site.start().wait_ready()  # which finds the host down once more, and has that told for a while
        status = lambda: site.watchties("status").stdout  # noqa: E731
        site.wait(lambda: "vision" in status() and "started again, after a crash" in told(site), 60, "down, and known to be")
        probes = lambda: (site.base / "daemon.out").read_text().count("host vision")  # noqa: E731
        site.wait(probes, 30, "looked at")
        assert site.stop() == 0
        sshd.start()
        site.start()
        site.wait(lambda: "host vision is up again" in told(site), 60, "it is told, though by another daemon")
        site.wait_state("ann/while it is down", "DONE")
        site.wait(lambda: told(site).count("host vision is up again") == 1, 30, "once")
        assert told(site).count("host vision is down since") == 1
        sshd.stop()  # and a second time within the hour
        site.wait(lambda: told(site).count("host vision is down since") == 2, 60, "the second time is told, too")
        sshd.start()
        site.wait(lambda: told(site).count("host vision is up again") == 2, 60, "and that it has ended")
