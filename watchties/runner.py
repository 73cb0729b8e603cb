"""Starting a hook and learning how it ended: environment, lock, time limit, outcome.

Knows: the hook contract's environment, how a process is started and ended.
Must not know: why a run is started, what its results mean, records, markers, lanes.

Each slot has a lock file. The daemon takes the lock before it starts the hook and lets go when the hook has it:
an flock belongs to the open file, so it is held from the first moment to the last, by the hook and by whatever
the hook handed it on to. A run directory that outlives its daemon is read by the next one, once its slot is free.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import current_process, forkserver

from watchties import hookstart
from watchties.errors import AGAIN
from watchties.runs import Ended

NEVER = {errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELOOP}  # not ENOENT: an upgrade may be putting the hook there anew
REMEDIES = {  # EMFILE: open files; the others: processes, of which the server that starts hooks may have died
    errno.EMFILE: "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
    errno.EAGAIN: "; raise the limit of processes (ulimit -u, TasksMax=)",
    errno.ECONNREFUSED: "; is the limit of processes reached (ulimit -u, TasksMax=)?",
}
KILL_AFTER = 10.0  # seconds between SIGTERM and SIGKILL
GLANCE = 0.5  # seconds between two looks at a run at work


class Runner:
    """Starts hooks for one configuration. dirs: the RunDirs; config: the file that hooks read."""

    def __init__(self, dirs, config, environ=None):
        self.dirs, self.config = dirs, config
        self.environ = dict(os.environ if environ is None else environ)
        self.environ = {k: v for k, v in self.environ.items() if not k.startswith("WATCHTIES_")}
        self.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), self.environ.get("PATH", os.defpath)])
        self._server, self._sockets, self._serves, self._kinds = None, None, "", {}
        self.leave = False  # hooks outlive us, for the next daemon to take up

    def environment(self, run):
        """Return the environment of a hook, as the contract has it."""
        env = self.environ | {
            "WATCHTIES_RULE": run.rule,
            "WATCHTIES_HOST": run.host,
            "WATCHTIES_RUN": run.id,
            "WATCHTIES_CONFIG": self.config,
            "WATCHTIES_JOBS": run.path("jobs"),
            "WATCHTIES_RESULT": run.path("result"),
        }
        if run.notice:
            env["WATCHTIES_NOTICE"] = run.path("notice")
        if len(run.jobs) == 1:
            job = run.jobs[0]
            env |= {f"WATCHTIES_{k.upper()}": str(job[k]) for k in ("tree", "job", "marker", "attempt")}
            env["WATCHTIES_JOB_DIR"] = job["dir"]
        return env

    def warm_up(self):
        """Start the forkserver, so that the first hook does not wait for its imports."""
        if self._server is None:
            current_process()._config["tempdir"] = self._room()  # else one in /tmp, which a daemon that is killed leaves
            self._server = forkserver.ForkServer()
            self._server.set_forkserver_preload(hookstart.PRELOAD)
        self._server.ensure_running()
        if self._serves != self._server._forkserver_address:
            self._serves = self._server._forkserver_address
            self._remove_others(self._serves)

    def _room(self):
        """Return the directory for the forkserver's socket, empty now. As a short path: a socket's has at most 104 characters."""
        where = os.path.join(self.dirs.state, "fork")
        shutil.rmtree(where, ignore_errors=True)
        os.mkdir(where, 0o700)
        self._sockets = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._sockets}"

    def _remove_others(self, mine):
        """Remove the sockets of forkservers that were killed."""
        where, mine = os.path.split(mine)
        for name in os.listdir(where):
            if name != mine:
                os.unlink(os.path.join(where, name))

    def close(self):
        """Let the forkserver go; hooks at work are not touched."""
        if self._server is not None:
            self._server._stop()
            os.close(self._sockets)
            self._server = None

    async def run(self, run, watch=None):
        """Start the hook, wait for its end, and return Ended. `watch`, if given, is called now and then meanwhile.

        The slot's lock must be free. A hook that cannot be started at all has failed (126), or is to be tried again.
        """
        try:
            process = self._start(run)
        except OSError as error:
            reason = f"the hook {run.hook} cannot be started: {error.strerror or error}{REMEDIES.get(error.errno, '')}"
            return Ended(run, 126 if error.errno in NEVER else AGAIN, {}, reason, 0.0)
        return self.dirs.collect(run, await self._wait(run, process, watch))

    def _start(self, run):
        """Take the slot's lock, start the hook with it, let go of it."""
        lock = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, run.id.encode())
            return self._fork(run, lock) if self._is_ours(run.hook) else self._execute(run, lock)
        finally:
            os.close(lock)

    def _is_ours(self, hook):
        """Return whether the forkserver can run it: a Python file whose first line leads to this very interpreter."""
        try:
            stamp = os.stat(hook).st_mtime_ns
            if self._kinds.get(hook, (0, 0))[0] != stamp:
                self._kinds[hook] = stamp, os.access(hook, os.X_OK) and same_interpreter(hook, self.environ["PATH"])
            return self._kinds[hook][1]
        except OSError:
            return False

    def _fork(self, run, lock):
        self.warm_up()
        message = hookstart.HookStart(run.hook, self.environment(run), run.dir, run.path("out"), run.path("err"))
        status, data = self._server.connect_to_new_process([lock])
        with open(data, "wb") as file:
            file.write(pickle.dumps({}) + pickle.dumps(message))  # no preparation: the daemon's __main__ is not imported
        return Forked(status)

    def _execute(self, run, lock):
        env = self.environment(run) | {"WATCHTIES_LOCK_FD": str(lock)}
        with open(run.path("out"), "ab") as out, open(run.path("err"), "ab") as err:
            return Executed(
                subprocess.Popen(
                    [run.hook], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=run.dir, pass_fds=[lock],
                    start_new_session=True,
                )
            )

    async def _wait(self, run, process, watch):
        """Return the exit code of a hook; end it with its children when its time is over or we are cancelled."""
        deadline = time.monotonic() + run.timeout
        ending = asyncio.ensure_future(process.wait())
        try:
            while not ending.done():
                await asyncio.wait([ending], timeout=GLANCE)
                if watch:
                    watch()
                if time.monotonic() >= deadline and not ending.done():
                    self._stop(run, process, deadline)
            return ending.result()
        except asyncio.CancelledError:
            if not self.leave:
                process.signal(signal.SIGTERM)
            raise
        finally:
            ending.cancel()

    def _stop(self, run, process, deadline):
        run.timed_out = True
        process.signal(signal.SIGKILL if time.monotonic() > deadline + KILL_AFTER else signal.SIGTERM)


class Forked:
    """A hook in a child of the forkserver, which tells first its pid, then its exit code: None if the forkserver was killed."""

    def __init__(self, status):
        self.status, self.pid = status, 0

    async def wait(self):
        try:
            self.pid = await self._number()
            return await self._number() if self.pid else AGAIN
        finally:
            os.close(self.status)

    async def _number(self):
        loop, told = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        loop.add_reader(self.status, lambda: told.done() or told.set_result(None))
        try:
            await told
        finally:
            loop.remove_reader(self.status)
        data = os.read(self.status, forkserver.SIGNED_STRUCT.size)
        return forkserver.SIGNED_STRUCT.unpack(data)[0] if len(data) == forkserver.SIGNED_STRUCT.size else None

    def signal(self, number):
        if self.pid:
            end_group(self.pid, number)


class Executed:
    """A hook that was executed as a program of its own."""

    def __init__(self, process):
        self.process, self.pidfd = process, None
        with contextlib.suppress(OSError):  # no descriptor is to be had; the program is started all the same
            self.pidfd = os.pidfd_open(process.pid)

    async def wait(self):
        while self.pidfd is None:
            if self.process.poll() is not None:
                return self.process.returncode
            await asyncio.sleep(GLANCE)
        loop, ended = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        loop.add_reader(self.pidfd, lambda: ended.done() or ended.set_result(None))
        try:
            await ended
        finally:
            loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
        return self.process.wait()

    def signal(self, number):
        end_group(self.process.pid, number)


def end_group(pid, number):
    """Send a signal to a hook and its children (each hook leads a process group of its own)."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


def same_interpreter(hook, path):
    """Return whether the `#!` line of a file leads to the interpreter that runs us."""
    with open(hook, "rb") as file:
        line = file.readline(256).decode("utf-8", "replace").strip()
    words = line[2:].split() if line.startswith("#!") else []
    if words[:1] == ["/usr/bin/env"] and len(words) == 2:
        words = [shutil.which(words[1], path=path) or ""]
    return len(words) == 1 and os.path.exists(words[0]) and _program(words[0]) == _program(sys.executable)


def _program(path):
    """Return what tells two interpreters apart: the directory (a virtual environment) and the real program."""
    return os.path.dirname(os.path.abspath(path)), os.path.realpath(path)


