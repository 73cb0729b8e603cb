"""Every call of a daemon and all its descendants that makes something durable, seen one by one, in one order, before it is done.

Knows: how the kernel holds a call and asks about it (seccomp_unotify(2)), and how to read what the call is given.
Must not know: watchties; who makes a call, and what its paths are to watchties, is roles.py.

strace follows one process at a time and counts for each by itself. Here a program is started below a filter that its descendants
inherit, whoever they become: hooks, rsync, shells and the mv and sync they start, a wrapper in a session of its own. Each call
that the filter names is held until `on_call` has returned: meanwhile nobody else's held call is done either, so that a look
at the disk from there is a look at one moment. A call whose process is killed while it is held is never done.
"""

import contextlib
import ctypes
import os
import platform
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import below_filter
from below_filter import CALLS, LASTING, NAMES, NETWORK, SYNCS  # noqa: F401  (one module for the tests)

# from linux/seccomp.h
RECEIVE, ANSWER, STILL_THERE = 0xC0502100, 0xC0182101, 0x40082102
CONTINUE, AT_FDCWD = 1, 0xFFFFFF9C
STATUS = re.compile(rb"\nTgid:\t(\d+)\n.*\nSigPnd:\t([0-9a-f]+)\n", re.DOTALL)  # of /proc/PID/status

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Call:
    """One call, held. number: its place in the order; name: as in CALLS; pid: of the process; paths: absolute, not resolved.

    path: of the descriptor that it is about ("socket:[7]", "pipe:[9]" too), else the first of paths. size: bytes, where told.
    target: where a rename or link leads, else "". argv: the command line. listener, id: of the kernel's question.
    """

    number: int
    name: str
    pid: int
    paths: tuple
    size: int
    listener: int
    id: int
    raw: int
    argv: tuple = ()
    role: str = ""  # for whoever names them
    killed: bool = False

    @property
    def path(self):
        return self.paths[0] if self.paths else ""

    @property
    def target(self):
        return self.paths[1] if len(self.paths) > 1 else ""

    def kill(self, *more):
        """Kill the process that makes the call, which is then never done, and others with it (the shell that started it)."""
        self.killed = True
        for pid in (*more, self.pid):  # a shell first, or it would go on when its program has ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Calls:
    """All calls of `names` of the programs that `popen` starts, and of their descendants; a context.

    on_call(call), if given, is called for each, in one thread, while it is held; returns nothing, or for how many seconds it is
    to be held still (others go on meanwhile). wanted(name, path): False for calls that are let go at once, uncounted: cheaper. What
    on_call raises is kept in `failed`, and raised at the end of the context.
    """

    def __init__(self, on_call=None, names=LASTING, wanted=lambda name, path: True):
        self.on_call, self.names, self.wanted, self.failed, self.count = on_call, names, wanted, None, 0
        self._poll, self._listeners, self._late, self._stopped = select.poll(), set(), [], False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for listener in (self._wake, *self._listeners):  # whoever still waits for an answer gets an error
            os.close(listener)
        if self.failed:
            raise self.failed

    def popen(self, argv, **how):
        """Start a program below the filter, as subprocess.Popen does, and return the Popen."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            words = [sys.executable, "-I", "-S", below_filter.__file__, str(theirs.fileno()), ",".join(sorted(self.names)), *argv]
            process = subprocess.Popen(words, pass_fds=[theirs.fileno()], **how)
            theirs.close()
            said, fds, *_ = socket.recv_fds(ours, 200, 1)
            if not fds:
                raise OSError(f"no filter: {said.decode(errors='replace')}")
            os.set_inheritable(fds[0], False)
            self._listeners.add(fds[0])
            self._poll.register(fds[0], select.POLLIN)
            os.eventfd_write(self._wake, 1)
        return process

    # ---- the thread ----

    def _serve(self):
        while not self._stopped:
            self._let_go(time.monotonic())
            wait = min((at for at, _ in self._late), default=time.monotonic() + 0.2) - time.monotonic()
            for fd, what in self._poll.poll(max(0, wait * 1000)):
                if fd == self._wake:
                    os.eventfd_read(fd)
                elif what & select.POLLIN:
                    self._take(fd)
                else:  # the last of them has ended
                    self._poll.unregister(fd)
                    self._listeners.discard(fd)
                    os.close(fd)

    def _let_go(self, now):
        for at, call in [late for late in self._late if late[0] <= now]:
            self._late.remove((at, call))
            _answer(call.listener, call.id)

    def _take(self, listener):
        """Take one question, have it looked at, and let the call go on, at once or later."""
        if not (call := self._next(listener)):
            return
        hold = None
        if self.on_call and not self.failed:
            try:
                hold = self.on_call(call)
            except BaseException as error:
                self.failed = error
        if call.killed:  # an answer that comes before the kernel has ended it would still have the call done
            return
        if hold:
            self._late.append((time.monotonic() + hold, call))
        else:
            _answer(call.listener, call.id)

    def _next(self, listener):
        data = ctypes.create_string_buffer(80)
        if _libc.ioctl(listener, ctypes.c_ulong(RECEIVE), data) < 0:
            return None  # its process has been killed meanwhile
        number, task = struct.unpack_from("QI", data)
        raw, args = struct.unpack_from("i", data, 16)[0], struct.unpack_from("6Q", data, 32)
        name, shape = CALLS[raw]
        paths, size = _read(task, shape, args)
        if not self.wanted(name, paths[0] if paths else ""):
            _answer(listener, number)
            return None
        pid, dying = process_of(task)
        if _libc.ioctl(listener, ctypes.c_ulong(STILL_THERE), ctypes.byref(ctypes.c_uint64(number))) < 0 or dying:
            return None  # what was read may be another process's; or it is killed, and must not get an answer
        if raw == 263 and args[2] & 0x200:  # AT_REMOVEDIR
            name = "rmdir"
        self.count += 1
        return Call(self.count, name, pid, paths, size, listener, number, raw, command_line(task))


def _answer(listener, number):
    data = ctypes.create_string_buffer(struct.pack("QqiI", number, 0, 0, CONTINUE), 24)
    _libc.ioctl(listener, ctypes.c_ulong(ANSWER), data)  # ENOENT: killed


def _read(task, shape, args):
    """Return (paths, size) of a call's arguments. Only what lies in one order can be read: a directory before its path."""
    paths, size, at = [], 0, None
    for kind, value in zip(shape, args):
        if kind == "d":
            at = value & 0xFFFFFFFF
        elif kind == "p":
            paths.append(_absolute(task, at, _text(task, value)))
            at = None
        elif kind == "f":
            paths.append(_link(f"/proc/{task}/fd/{value & 0xFFFFFFFF}"))
        elif kind == "i":
            size = value
    return tuple(paths), size


def _absolute(task, at, path):
    if path.startswith("/"):
        return os.path.normpath(path)
    base = _link(f"/proc/{task}/cwd") if at in (None, AT_FDCWD) else _link(f"/proc/{task}/fd/{at}")
    return os.path.normpath(os.path.join(base, path)) if path else base


def _text(task, address):
    """Return the text at an address of a process: read page by page, as the next page may not be there."""
    found = b""
    try:
        with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
            while b"\0" not in found and len(found) < 4096:
                memory.seek(address + len(found))
                if not (more := memory.read(4096 - (address + len(found)) % 4096)):
                    break  # it has just ended, and its memory with it
                found += more
    except (OSError, ValueError, OverflowError):
        pass
    return os.fsdecode(found.partition(b"\0")[0])


def _link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def process_of(task):
    """Return (the process that a thread belongs to, whether it has been killed and does not know yet)."""
    try:
        with open(f"/proc/{task}/status", "rb", buffering=0) as file:
            found = STATUS.search(file.read(8192))
    except OSError:
        found = None
    return (int(found[1]), bool(int(found[2], 16) >> signal.SIGKILL - 1 & 1)) if found else (task, True)


def command_line(pid):
    """Return the words of a process's command line; none if it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return tuple(os.fsdecode(word) for word in file.read().split(b"\0")[:-1])
    except OSError:
        return ()


def why_not():
    """Return why calls cannot be seen on this machine, or ""."""
    if platform.machine() != "x86_64":
        return f"the numbers of calls are those of x86_64, and this is {platform.machine()}"
    if os.geteuid() != 0:
        return "only root may read what other processes' calls are given"
    probe = subprocess.run([sys.executable, "-I", "-S", below_filter.__file__, "-", "sync", "true"], capture_output=True, text=True)
    return probe.stderr.strip()
