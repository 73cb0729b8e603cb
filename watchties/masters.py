"""The shared ssh connections of a host, which the daemon opens and owns: one for short commands, one for bulk.

Knows: how a ControlMaster is started, noticed dead, and started again.
Must not know: what travels over it. Hooks use these connections and never make one: a master that a hook had started
would end with the hook. Two, so that a slow transfer starves no heartbeat.
"""

import asyncio
import contextlib
import hashlib
import os
import tempfile

from watchties import ssh
from watchties.lanes import backoff

KINDS = tuple(ssh.ALIVE)
AGAIN, SELDOM = 1.0, 60.0  # seconds before a connection that ended is opened again: first, and at most
LONGEST = 80  # characters of a socket's path: the kernel takes 104, and ssh adds some of its own while it binds


def directory(state, hosts):
    """Return the directory for the sockets: in the state directory, or a private short one if that is too long.

    "" if none of the hosts (plain configuration) is reached by ssh.
    """
    if not any(host.get("ssh") for host in hosts.values()):
        return ""
    where = os.path.join(state, "ssh")
    if len(where) > LONGEST - 30:
        name = hashlib.sha256(os.fsencode(state)).hexdigest()[:12]
        where = os.path.join(tempfile.gettempdir(), f"watchties-{os.getuid()}-{name}")
    os.makedirs(where, mode=0o700, exist_ok=True)
    info = os.stat(where, follow_symlinks=False)
    if info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise PermissionError(f"{where} is not ours alone")
    return where


async def keep(far, kind, problem):
    """Hold one shared connection until cancelled; problem(text) is told when it cannot be had."""
    failures, loop = 0, asyncio.get_running_loop()
    while True:
        began = loop.time()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ssh.control_path(far, kind).replace("%%", "%"))  # what a daemon that was killed has left
        process = await asyncio.create_subprocess_exec(
            *ssh.master(far, kind), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            said = (await process.stderr.read(4096)).decode("utf-8", "replace").strip().splitlines()
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        failures = 0 if loop.time() - began > SELDOM else failures + 1
        if failures == 1 and said:
            problem(f"the shared connection ({kind}) ended: {said[-1]}")
        await asyncio.sleep(backoff(failures, AGAIN, SELDOM))
