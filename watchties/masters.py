"""The shared ssh connections of a host, which the daemon opens and owns: one for short commands, one for bulk.

Knows: how a ControlMaster is started, noticed dead or hung, and started again.
Must not know: what travels over it. Hooks use these connections and never make one: a master that a hook had started
would end with the hook. Two, so that a slow transfer starves no heartbeat.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import tempfile

from watchties import children, ssh
from watchties.errors import Unreachable
from watchties.lanes import backoff

KINDS = tuple(ssh.ALIVE)
AGAIN, SELDOM = 1.0, 60.0  # seconds before a connection that ended is opened again: first, and at most
FORMER_ENDS = 5.0  # seconds for connections of a killed daemon to end
READY, GLANCE = 10.0, 0.02  # seconds for both to be there, and between two looks
LOOK, GREETS = 20.0, 10.0  # seconds between two looks at a connection, and for it to greet
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


class Masters:
    """The two shared connections of one host. problem(text) is told when one cannot be had."""

    def __init__(self, far, problem):
        self.far, self.problem, self._processes = far, problem, {}
        self._wanted, self._soon = asyncio.Event(), {kind: asyncio.Event() for kind in KINDS}
        self._wanted.set()

    async def run(self):
        """Hold both until cancelled."""
        await asyncio.gather(*(self._keep(kind) for kind in KINDS))

    async def end_former(self):
        """End what a killed daemon has left, before anything new goes over it and is cut: the host would count as down."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FORMER_ENDS):
                await asyncio.gather(*(self._end_former(kind) for kind in KINDS))

    def renew(self):
        """End both, to be opened again: after an outage a connection that survived may stall for minutes in TCP's backoff."""
        for kind, process in self._processes.items():
            if process.returncode is None:
                children.signal_to(process, signal.SIGTERM)
                asyncio.get_running_loop().call_later(FORMER_ENDS, children.signal_to, process, signal.SIGKILL)  # one that hangs
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_path(self.far, kind))  # nobody goes there any more
            self._soon[kind].set()

    def rest(self):
        """End both, and open none: the host is down, and one that knocks there is enough."""
        self._wanted.clear()
        self.renew()

    def go_on(self):
        """Have both open again: the host is up."""
        if not self._wanted.is_set():
            self._wanted.set()
            for soon in self._soon.values():
                soon.set()

    async def ready(self):
        """Wait until both can be used, but not for long. Who comes sooner makes one of his own: once that is cut it hangs, and nobody
        ends it."""
        paths = [_path(self.far, kind) for kind in KINDS]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY):
                while not all(map(os.path.lexists, paths)):
                    await asyncio.sleep(GLANCE)

    async def _keep(self, kind):
        failures, loop = 0, asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            began = loop.time()
            await self._end_former(kind)
            said = await self._hold(kind)
            failures = 0 if loop.time() - began > SELDOM else failures + 1
            if failures == 1 and said:
                self.problem(f"the shared connection ({kind}) ended: {said[-1]}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff(failures, AGAIN, SELDOM)):
                    await self._soon[kind].wait()
                    failures = 0
            self._soon[kind].clear()

    async def _hold(self, kind):
        """Open one connection and wait for its end; return what ssh said, as lines."""
        try:
            process = self._processes[kind] = await _ssh(ssh.master(self.far, kind))
        except Unreachable as error:
            return [str(error)]
        words, look = children.Words(process.stderr), asyncio.create_task(self._end_if_hung(kind, process))
        try:
            await process.wait()
            return await words.last()
        finally:
            look.cancel()
            await _end(process)

    async def _end_if_hung(self, kind, process):
        """End a connection that takes channels and answers none (stopped, or its disk hangs): what waits there waits for ever."""
        while await _greets(_path(self.far, kind)):
            await asyncio.sleep(LOOK)
        self.problem(f"the shared connection ({kind}) hangs; it is opened anew")
        children.signal_to(process, signal.SIGKILL)

    async def _end_former(self, kind):
        """End the connection that a daemon which was killed has left: nobody else would."""
        path = _path(self.far, kind)
        if os.path.lexists(path):
            with contextlib.suppress(Unreachable, TimeoutError):
                await self._tell_to_end(kind)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    async def _tell_to_end(self, kind):
        process = await _ssh(ssh.end_master(self.far, kind))
        try:
            async with asyncio.timeout(FORMER_ENDS):  # one that hangs answers nobody
                await process.communicate()
        finally:
            await children.end(process)


async def _greets(path):
    """Return whether the ssh behind a socket says its hello, as it does to everybody (PROTOCOL.mux); True if none is there yet."""
    try:
        async with asyncio.timeout(GREETS):
            reader, writer = await asyncio.open_unix_connection(path)
    except (OSError, TimeoutError) as error:
        return not isinstance(error, TimeoutError)
    try:
        async with asyncio.timeout(GREETS):
            await reader.read(1)
        return True
    except OSError as error:
        return not isinstance(error, TimeoutError)
    finally:
        writer.close()


async def _end(process):
    """End a program as it wishes, or, if it does not, by force."""
    if process.returncode is None:
        children.signal_to(process, signal.SIGTERM)
        try:
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=FORMER_ENDS)
        finally:  # a daemon that ends has no patience, and cancels once more
            await children.end(process)


def _path(far, kind):
    return ssh.control_path(far, kind).replace("%%", "%")


async def _ssh(argv):
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    return await children.start(argv, stdin=null, stdout=null, stderr=pipe)
