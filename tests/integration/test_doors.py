"""Shared connections that hang, and hooks that fail for another reason: a new connection tells the one from the other."""

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from sshd_kit import Sshd
from watchties import calls, relays, ssh
from watchties.errors import NotLetIn, Unreachable
from watchties.masters import Masters
from watchties.relays import Link, Listener

FAR = Path(__file__).parents[2] / "watchties" / "far"


@pytest.fixture
def far(tmp_path):
    """A host behind a real sshd, with the place of its shared connections."""
    with Sshd(tmp_path) as running, tempfile.TemporaryDirectory(prefix="wt-") as sockets:  # a socket's path must be short
        (running.home / "compties/user_data").mkdir(parents=True)
        shutil.copytree(FAR, running.home / "compties/scripts")
        words = tuple(word for line in running.options for word in ssh.option_words(line))
        yield ssh.Far("b01", running.ssh, "compties", "", words, f"{sockets}/b01")


class Host:
    """A link and its shared connections at work, and what they tell."""

    def __init__(self, far, heartbeat):
        self.told = []
        tell = lambda word: lambda *what: self.told.append((word, *what))  # noqa: E731
        listener = Listener(*(tell(word) for word in ("announce", "listed", "up", "down", "bad", "problem")))
        self.masters = Masters(far, lambda text: self.told.append(("problem", text)))
        self.link = Link(far, "compute", {"main": ("user_data", "*/*")}, "relay", 60.0, heartbeat, listener, self.masters)

    @contextlib.asynccontextmanager
    async def at_work(self):
        tasks = [asyncio.ensure_future(each.run()) for each in (self.masters, self.link)]
        try:
            await self.until(lambda: self.shared() and ("listed", "b01") in self.told)
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=10)
            await asyncio.sleep(0.3)  # for the pipes of what was killed

    def shared(self):
        """Return the processes of the shared connections, if both can be used."""
        paths = [Path(ssh.control_path(self.link.far, kind)) for kind in ("short", "bulk")]
        return dict(self.masters._processes) if all(path.exists() for path in paths) else None

    async def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.told
            await asyncio.sleep(0.05)

    def said(self, word):
        return [what for told, *what in self.told if told == word]


def test_a_shared_connection_that_hangs_is_told_from_one_that_works(far):
    async def knock_twice():
        async with Host(far, 60.0).at_work() as host:
            assert await calls.knock(far, "true") == (0, False)
            host.shared()["short"].send_signal(signal.SIGSTOP)
            began = time.monotonic()
            assert await calls.knock(far, "exit 3") == (3, True)
            return time.monotonic() - began

    assert asyncio.run(knock_twice()) < 30


@pytest.mark.parametrize(("heartbeat", "fail"), [(2.0, False), (600.0, True)], ids=["a silent relay", "a hook that failed"])
def test_shared_connections_that_hang_are_made_anew(far, monkeypatch, heartbeat, fail):
    monkeypatch.setattr(relays, "MISSED_BEATS", 300)  # so that nothing but doubt finds out

    async def hang():
        async with Host(far, heartbeat).at_work() as host:
            before = host.shared()
            for process in before.values():
                process.send_signal(signal.SIGSTOP)
            if fail:
                host.link.failed("host b01 did not answer: timed out")
            await host.until(lambda: ["b01", True] in host.said("up"))
            await host.until(lambda: (now := host.shared()) and not {*now.values()} & {*before.values()})
            await host.until(lambda: len(host.said("listed")) > 1)
            assert all(process.returncode is not None for process in before.values())
            return host.said("down")

    assert asyncio.run(hang()) == [["b01", "host b01 did not answer: timed out" if fail else "host b01: its relay fell silent"]]


def test_a_hook_that_fails_for_another_reason_cuts_no_connection_and_is_looked_into_at_once(far):
    async def fail():
        async with Host(far, 60.0).at_work() as host:
            before, began = host.shared(), time.monotonic()
            host.link.failed("host b01: the agent said nothing of ann/e1")
            await host.until(lambda: ["b01", True] in host.said("up") and len(host.said("listed")) > 1)
            assert host.shared() == before
            return time.monotonic() - began

    assert asyncio.run(fail()) < 20


def test_a_host_that_keeps_us_out_is_another_thing_than_one_that_is_away(far):
    stranger = ssh.Far(far.name, far.ssh, far.root, "", ("-o", "PubkeyAuthentication=no", *far.options))
    with pytest.raises(NotLetIn, match="Permission denied"):
        asyncio.run(calls.call(stranger, "true"))
    away = ssh.Far(far.name, far.ssh, far.root, "", ("-p", "1", *far.options))
    with pytest.raises(Unreachable, match="refused") as caught:
        asyncio.run(calls.call(away, "true"))
    assert not isinstance(caught.value, NotLetIn)
