"""Programs that the daemon's loop starts and listens to: ssh for a call, for a relay, for a shared connection.

Knows: what it means that one cannot be started or does not end, and that whoever does not read what a program says stops it.
Must not know: what any of them is for.
"""

import asyncio
import contextlib

from watchties.errors import Unreachable

TAIL = 4096  # bytes of its last words
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
        process.kill()
        await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=ITS_END)


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
        return self._tail.decode("utf-8", "replace").strip().splitlines()
