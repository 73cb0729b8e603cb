"""What systemd is told, on a real socket: one that nobody reads stops nothing, and what counts arrives all the same."""

import socket
import threading

import pytest

from watchties.systemd import Manager


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Return (a socket as systemd has it, a Manager that was told of it)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        manager = Manager()
        yield systemd, manager
        manager._socket.close()


def heard(systemd):
    """Return all that waits to be read."""
    systemd.setblocking(False)
    found = []
    try:
        while True:
            found.append(systemd.recv(65536).decode())
    except BlockingIOError:
        return found


def in_time(call):
    """Call a function, which must come back soon."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for a manager that does not read"


def test_a_manager_that_does_not_read_stops_nothing_and_misses_nothing_that_counts(manager):
    systemd, manager = manager

    def talk():
        for n in range(3000):  # more than fits (net.unix.max_dgram_qlen)
            manager.notify()
            manager.stands(f"{n} jobs waiting")
        manager.reloading()
        manager.ready()

    in_time(talk)
    assert "READY=1\n" not in heard(systemd)
    manager.notify()  # the next sign of life
    told = heard(systemd)
    assert [text.partition("=")[0] for text in told] == ["STATUS", "RELOADING", "READY", "WATCHDOG"], told
    assert told[0] == "STATUS=2999 jobs waiting\n", "the last of its kind, no older one"
    manager.notify()
    assert heard(systemd) == ["WATCHDOG=1\n"]


def test_a_manager_that_is_away_for_a_moment_is_told_later(manager, tmp_path):
    systemd, manager = manager
    systemd.close()  # as while it is executed anew
    manager.ready()
    (tmp_path / "notify").unlink()
    manager.stands("one job")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "notify"))
        manager.notify()
        assert heard(again) == ["READY=1\n", "STATUS=one job\n", "WATCHDOG=1\n"]
