"""A USER whose directory is a disk of its own: what is promised to be durable is so on that disk too, on every machine."""

import contextlib
import os
import subprocess
from types import SimpleNamespace

import pytest
from agent_kit import Agent, every_shell, make_job, marker, shims

from watchties import batches, durable

ODD = "two words \\ and é"


@contextlib.contextmanager
def own_disk(where):
    where.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.fixture
def data(tmp_path):
    """A tree with two users on disks of their own."""
    with own_disk(tmp_path / "user data" / ODD), own_disk(tmp_path / "user data/eve"):
        for job in f"{ODD}/e", "ann/e", "eve/e":
            make_job(tmp_path / "user data", job, command="true")
        yield tmp_path / "user data"


class Watched:
    """libc, with a note of what is synced."""

    def __init__(self):
        self.libc, self.devices = durable._libc, []

    def syncfs(self, fd):
        self.devices.append(os.fstat(fd).st_dev)
        return self.libc.syncfs(fd)


def test_what_has_come_into_the_mirror_is_synced_on_each_disk_of_the_batch_and_no_other(data, monkeypatch):
    watched = Watched()
    monkeypatch.setattr(durable, "_libc", watched)
    jobs = [SimpleNamespace(dir=str(data / job)) for job in (f"{ODD}/e", "ann/e", "ann/gone")]
    batches.settle_on_disk(SimpleNamespace(mirror=str(data), refuse_gone=list), jobs)
    assert sorted(watched.devices) == sorted(os.stat(path).st_dev for path in (data, data / ODD))


def test_a_link_or_a_pipe_in_place_of_a_job_is_not_opened(data):
    (data / "ann/link").symlink_to("/")
    os.mkfifo(data / "ann/pipe")
    batches.settle_on_disk(SimpleNamespace(mirror=str(data), refuse_gone=list), [SimpleNamespace(dir=str(data / "ann" / name)) for name in ("link", "pipe")])


@every_shell
def test_a_far_host_syncs_each_disk_of_the_batch_and_no_other(sh, data, tmp_path):
    here = shims(tmp_path / "shims", 'for word; do printf "%s\\n" "$word"; done >>"$here/synced"; exec "$real" "$@"', ["sync"])
    agent = Agent(sh, data, env={"PATH": f"{here}:{os.environ['PATH']}"})

    def synced(command, *args, lines):
        (here / "synced").unlink(missing_ok=True)
        agent.run(command, *args, lines=lines)
        return set((here / "synced").read_text().splitlines()) - {"-f"}

    both, plain = {str(data), str(data / ODD)}, {str(data)}
    assert synced("publish", lines=[marker("ann/e"), marker(f"{ODD}/e")]) == both
    assert synced("publish", lines=[marker("ann/e", token="t2", attempt=2)]) == plain
    attempts = [[f"{ODD}/e", 1, "t1"], ["ann/e", 1, "t1"]]
    assert synced("claim", "r1", lines=attempts) == both
    assert synced("submit", "r1", lines=[[*each, "echo 7"] for each in attempts]) == both
    assert synced("cancel", lines=[[*each, "-"] for each in attempts]) == both
    for job, attempt, token in attempts:
        (data / job / f".watchties/{attempt}.{token}/exit").write_text("code=0\nwhole=yes\n")
    many = [attempts[1]] * 150  # more than it reads at once
    assert synced("status", lines=[attempts[0], *many]) == both
    assert synced("status", lines=many) == plain
