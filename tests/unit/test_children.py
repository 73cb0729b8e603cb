"""Programs that the loop starts: their ends are theirs, whoever is in a hurry."""

import asyncio
import os
import signal
import time

import pytest

from watchties import children
from watchties.errors import Unreachable

PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)


def ended_unseen(pid):
    """Wait, with the loop held up, until a program has ended."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
    raise AssertionError("it did not end")


@pytest.mark.parametrize("hurry", [children.end, lambda process: children.signal_to(process, signal.SIGTERM)], ids=["end", "signal"])
def test_a_program_that_has_ended_by_itself_keeps_its_exit_code(hurry, caplog, monkeypatch):
    async def life():
        process = await children.start(["sh", "-c", "read -r go; exit 7"], **PIPES)
        process.stdin.write(b"go\n")
        ended_unseen(process.pid)
        if (ending := hurry(process)) is not None:
            await ending
        return process.pid, await process.wait()

    take, taken = os.waitpid, []

    def slowly(pid, options):  # whoever waits for it (a thread of asyncio's) comes last
        if not options:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            time.sleep(0.2)
        taken.append((pid, options))  # of other tests' programs, too
        return take(pid, options)

    monkeypatch.setattr(os, "waitpid", slowly)
    pid, code = asyncio.run(life())
    assert code == 7 and not caplog.records
    assert [options for one, options in taken if one == pid] == [0]


def test_a_program_that_hangs_is_killed():
    async def life():
        process = await children.start(["sh", "-c", "trap '' TERM; exec sleep 100"], **PIPES)
        await children.end(process)
        return process.returncode

    assert asyncio.run(life()) == -signal.SIGKILL


def test_a_flood_ends_the_call_and_nothing_is_said_of_unknown_children(monkeypatch, caplog):
    monkeypatch.setattr(children, "MOST", 1 << 20)

    async def life():
        process = await children.start(["sh", "-c", "exec yes"], **PIPES)
        with pytest.raises(Unreachable, match="more than 1 MB"):
            await children.answer(process, b"")
        await children.end(process)
        return process.returncode

    assert asyncio.run(life()) in (-signal.SIGKILL, -signal.SIGPIPE) and not caplog.records
