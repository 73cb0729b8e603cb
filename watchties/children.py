"""Programs that the daemon's loop starts and listens to: ssh for a call, for a relay, for a shared connection.

Knows: what it means that one cannot be started or does not end, and that whoever does not read what a program says stops it.
Must not know: what any of them is for.
"""

import asyncio
import contextlib
import os
import signal

from watchties.errors import Unreachable
from watchties.model import printable

TAIL = 4096  # bytes of its last words
MOST = 64 << 20  # bytes that a program may say: the names of a million jobs, and no flood that fills this machine's memory
ITS_END = 1.0  # seconds for the last words of a program that has ended: a child of it may hold the stream for longer


async def start(argv, **streams):
    """Return the process of a program that was started; raise Unreachable if that cannot be."""
    try:
        return await asyncio.create_subprocess_exec(*argv, **streams)
    except (OSError, RuntimeError) as error:  # the latter: there is no thread to be had that would wait for it
        raise Unreachable(f"{argv[0]} cannot be started here: {getattr(error, 'strerror', error)}") from None


async def end(process):
    """Kill a program that is still there. Its streams may never end (a child of it, a reader that is full): so not for long."""
    if process.returncode is None:
        signal_to(process, signal.SIGKILL)
        await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=ITS_END)


def signal_to(process, number):
    """Send a signal to a program that is still there, and leave its end to whoever waits for it.

    Not by its own kill(): that looks first whether it has ended, and takes the exit code away from asyncio, which then makes up a 255
    and says so on standard error (subprocess.Popen.send_signal polls).
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


async def answer(process, stdin):
    """Return all that a program writes to standard output and to standard error; raise Unreachable if it never stops."""
    process.stdin.write(stdin)
    process.stdin.close()
    try:
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(_all_of(stream)) for stream in (process.stdout, process.stderr)]
    except* Unreachable as flood:
        for number in (1, 2):  # asyncio has no other way to let go of streams that nobody reads to their end
            process._transport.get_pipe_transport(number).close()
        raise flood.exceptions[0] from None
    return tuple(stream.result() for stream in streams)


async def _all_of(stream):
    said = bytearray()
    while part := await stream.read(1 << 16):
        said += part
        if len(said) > MOST:
            raise Unreachable(f"it said more than {MOST >> 20} MB")
    return bytes(said)


class Words:
    """What a program says on a stream, of which the end is kept: first may come a banner, last comes why it ended."""

    def __init__(self, stream):
        self._tail = b""
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream):
        while data := await stream.read(TAIL):
            self._tail = (self._tail + data)[-TAIL:]

    async def last(self):
        """Return its last lines, now that the program has ended."""
        await asyncio.wait([self._task], timeout=ITS_END)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        return [printable(line, TAIL) for line in self._tail.decode("utf-8", "replace").strip().splitlines()]  # a stranger's, for a log
