"""Short commands on far hosts, for the daemon's loop; and which of two doors a host opens.

Knows: that a shared connection which was cut says nothing for minutes (TCP's backoff, ssh's own patience), while a new one gets through.
Must not know: what is asked, breakers, relays.
"""

import asyncio
import contextlib

from watchties import children, ssh
from watchties.errors import Unreachable

CALL_TIMEOUT = 60.0  # seconds for one short far command
HANGS = 3.0  # seconds for which a shared connection may say nothing before a new one is tried beside it
AHEAD = 1.0  # seconds that a shared connection has, once the new one has answered


async def call(far, command, stdin=b"", timeout=CALL_TIMEOUT, kind="short"):
    """Run a short command in a host's root; return (its output, its exit code). kind: as in `ssh.login`. Raises Unreachable."""
    nonce = ssh.new_nonce()
    pipe = asyncio.subprocess.PIPE
    process = await children.start(ssh.argv(far, ssh.frame(nonce, far.root, command), kind), stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(timeout):
            out, err = await children.answer(process, stdin)
    except Unreachable as error:
        raise Unreachable(f"host {far.name} did not answer: {error}; look at what its login and scripts/agent.sh print") from None
    except TimeoutError:
        raise Unreachable(f"host {far.name} did not answer within {timeout:g} s") from None
    finally:
        await children.end(process)
    return ssh.unframe(nonce, far.name, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "replace"))


async def knock(far, command):
    """Return (exit code of a command, whether only a new connection brought it there). Raises Unreachable."""
    async with _task(call(far, command)) as shared:
        await asyncio.wait([shared], timeout=HANGS)
        overtaken = None if shared.done() or not far.control else await overtake(far, command, shared)
        return ((await shared)[1], False) if overtaken is None else (overtaken, True)


async def overtake(far, command, answer):
    """Return the exit code of a command that a new connection brings there, and back, before `answer`, a future, is done; else None.

    On a line that is only slow it does not: a new connection takes many ways to and fro, and what is under way is ahead of it.
    Raises Unreachable if it does not get through either.
    """
    async with _task(call(far, command, kind=ssh.OWN)) as own:
        await asyncio.wait([answer, own], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            code = own.result()[1]
            await asyncio.wait([answer], timeout=AHEAD)
        return None if answer.done() else code


@contextlib.asynccontextmanager
async def _task(coroutine):
    """Give a task for a while; one that is not done in the end is told to stop, and waited for."""
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
