"""Through a real sshd on loopback, as whoever runs the tests: commands, rsync and the main job, without root."""

import asyncio

import pytest
from site_kit import Site
from sshd_kit import Sshd, keygen

from watchties import calls, ssh
from watchties.errors import Unreachable


def far(sshd, root="."):
    return ssh.Far("b01", sshd.ssh, root, "", tuple(word for line in sshd.options for word in ssh.option_words(line)))


def call(sshd, command, **more):
    return asyncio.run(calls.call(far(sshd), command, **more))


@pytest.fixture
def sshd(tmp_path):
    with Sshd(tmp_path) as running:
        yield running


def test_a_command_runs_in_a_home_of_its_own_and_a_bashrc_that_prints_is_no_answer(sshd):
    (sshd.home / ".bashrc").write_text("echo a banner; echo another >&2\n")
    assert call(sshd, "pwd; exit 7") == (f"{sshd.home}\n", 7)
    assert sshd.connections() == 1


def test_a_host_that_is_switched_off_or_has_another_key_is_unreachable_and_says_why(sshd):
    sshd.stop()
    with pytest.raises(Unreachable, match="refused"):
        call(sshd, "true")
    keygen(sshd.folder / "host_key")
    sshd.start()
    with pytest.raises(Unreachable, match="Host key verification failed"):
        call(sshd, "true")
    sshd.trust()
    assert call(sshd, "echo here") == ("here\n", 0)


def test_a_host_that_accepts_and_hangs_is_unreachable(sshd):
    sshd.freeze()
    with pytest.raises(Unreachable, match="within 1 s"):
        call(sshd, "true", timeout=1)
    sshd.thaw()
    assert call(sshd, "echo here") == ("here\n", 0)


def test_jobs_with_odd_names_go_through_web_host_and_compute_host_behind_ssh(tmp_path, sshd):
    jobs = ["ann/one", 'o\'neil/it\'s "q"', "$(touch pwned)/ü; rm *"]
    change = lambda text: text.replace('role = "', f'{sshd.toml()}role = "')  # noqa: E731
    with Site(tmp_path, change=change) as site:
        for job in jobs:
            site.drop(job)
        for job in jobs:
            site.wait_state(job, "DONE", 120)
            assert (site.web / job / "out.txt").read_text() == f"input of {job}\n"
            assert site.runs(job) == 1
    assert sshd.connections() > 5
    assert not list(tmp_path.rglob("pwned"))
