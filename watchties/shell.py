"""Starting outside commands, here and on far hosts. The only module that imports `sh`.

Knows: how `sh` is told to give back bytes, exit codes and time limits, and what a child inherits.
Must not know: what is run, or what its answer means.

Three things `sh` would do differently (2.4, seen when run). Its `_timeout` looks every 100 ms and so makes every
command last that long; a thread of ours kills the child instead. Its output threads read line by line; a file in
memory is read once. And it closes inherited descriptors, while the lock of the hook's slot has to be handed on,
so that an orphaned rsync keeps its jobs busy until it ends.
"""

import contextlib
import os
import select
import shlex
import signal
import threading
import time
import traceback
from typing import NamedTuple

import sh

from watchties import ssh
from watchties.errors import CommandFailed, WatchtiesError

FIRST_LOOK, LOOK = 2.0, 1.0  # seconds until a command's last words are looked at, if somebody wants to know, and between two looks
TAIL = 1000  # bytes of them
REST = 10.0  # seconds that what a failed command has started may take to end
MOST = 512 << 20  # bytes that a command may say: all of it is held in memory, and a host may say anything without end
STALE = 30  # seconds for which a command may hold a channel and wait for its input
PIPE = 65536  # bytes that a pipe takes though nobody reads (pipe(7)): so giving it all never blocks
FEW, ROOM = 50, 100_000  # items in one command line, and bytes of them: one word takes 128 kB (execve(2)), ssh's is a single one
PACKAGES = {"rsync": "rsync", "ssh": "openssh-client", "runuser": "util-linux", "sudo": "sudo", "sync": "coreutils"}


class Result(NamedTuple):
    """What a command left: exit code (128 + signal if it was killed), and both streams as text, odd bytes escaped."""

    code: int
    out: str
    err: str


def run(argv, *, timeout, stdin=None, cwd=None, env=None, look=None):
    """Run a command and return its Result, whatever the exit code. Its words must be valid UTF-8: odd names go by `stdin`.

    `timeout` is in seconds; when it has passed the command is killed and a transient CommandFailed raised. `stdin` is
    text or bytes, None for nothing. A command that is not there raises WatchtiesError, naming what to install.
    look(bytes), if given, is called once a second with the last that a long command has written to standard output.
    """
    with _memory(stdin) as given, _child(argv, given, cwd, env) as ended:
        return ended(timeout, look)


def far(far, command, stdin=None, timeout=120):
    """Run shell text in a host's root; return its Result, `out` being only what stood between the sentinels.

    Raises Unreachable if the answer is not whole: ssh's own 255 is never taken for the command's.
    """
    nonce = ssh.new_nonce()
    argv = ssh.argv(far, ssh.frame(nonce, far.root, command))
    return _answer(far, nonce, run(argv, stdin=stdin, timeout=timeout, env=outside_environment()))


def _answer(far, nonce, result):
    payload, code = ssh.unframe(nonce, far.name, result.out, result.err)
    return Result(code, payload, result.err)


@contextlib.contextmanager
def begun(far, command):
    """Start shell text in a host's root now, and yield a Begun that gives it its standard input later.

    So that what comes before costs no more than itself: a channel is opened and a program started meanwhile. What is given
    nothing must do nothing: it is stopped at the end, and its input closed if it has waited for too long.
    """
    nonce, (reader, writer) = ssh.new_nonce(), os.pipe()
    given = os.fdopen(writer, "wb")
    argv = ssh.argv(far, ssh.frame(nonce, far.root, command))
    with os.fdopen(reader, "rb") as taken, _child(argv, taken, None, outside_environment()) as ended:
        taken.close()  # or we would not learn that nobody reads
        waiting = Begun(given, lambda timeout: _answer(far, nonce, ended(timeout)))
        with waiting:
            yield waiting


class Begun:
    """A command that waits for its standard input."""

    def __init__(self, given, answer):
        self._given, self._answer = [given], answer
        self._timer = threading.Timer(STALE, self._close)

    def __enter__(self):
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_):
        self._timer.cancel()
        self._close()

    def finish(self, stdin, timeout):
        """Give it its input, wait for its end, and return what `far` does; None, nothing done, if it is used up or waits no more."""
        data = stdin.encode("utf-8", "surrogateescape")
        if len(data) > PIPE:
            return None
        try:
            pipe = self._given.pop()
        except IndexError:  # the timer's thread may take it at any moment
            return None
        with contextlib.suppress(BrokenPipeError), pipe:  # one that has ended says why
            pipe.write(data)
        return self._answer(timeout)

    def _close(self):
        with contextlib.suppress(IndexError):  # whoever takes it closes it
            self._given.pop().close()


def chunks(items):
    """Yield words or shell texts, so many at a time as fit into one command line: a path may have 4 kB, and quotes in it."""
    some, room = [], ROOM
    for item in items:
        if some and (len(some) == FEW or _length(item) > room):
            yield some
            some, room = [], ROOM
        some.append(item)
        room -= _length(item)
    if some:
        yield some


def fits(item):
    """Return whether a word or shell text fits into a command line at all."""
    return _length(item) <= ROOM


def _length(item):
    """Return the bytes that it takes, quoted as a word of a text that ssh is given, which quotes it once more."""
    return len(shlex.quote(shlex.quote(item)).encode("utf-8", "surrogateescape")) + 2


def outside_environment(**more):
    """Return our environment without the hook's own variables: a job that runs on this machine inherits it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WATCHTIES_")} | more


@contextlib.contextmanager
def _child(argv, given, cwd, env):
    """Start a command and yield a function (timeout) -> Result; one that is still at work in the end is told to stop."""
    with _memory() as out, _memory() as err:
        process, (holders, held) = None, os.pipe()
        try:
            with os.fdopen(held, "wb"), _undisturbed():
                process = _start(argv, held, _in=given, _out=out, _err=err, **({"_cwd": cwd} if cwd else {}), **({"_env": env} if env else {}))
            yield lambda timeout, look=None: _ended(argv, process, holders, out, err, timeout, look)
        finally:  # SIGTERM among the reasons
            os.close(holders)
            if process is not None:  # its truth would wait for its end
                _kill(process, process.terminate)


def _ended(argv, process, holders, out, err, timeout, look):
    """Wait for the end of a command and return its Result; it is killed when its time is over."""
    warden = _Warden(process, timeout, look and (lambda: look(_last(out))), lambda: _size(out) + _size(err))
    try:  # around its start, too: a SIGTERM in it would leave it beside files that are closed
        warden.start()
        code = _wait(process)
    finally:
        warden.dismiss()
    if code:
        _await_rest(holders)
    if warden.flooded:
        raise CommandFailed(argv, code, "", "", f"it said more than {MOST >> 20} MB, stopped", transient=True)
    result = Result(code, _text(out), _text(err))
    if warden.late:
        raise CommandFailed(argv, result.code, result.out, result.err, f"not done after {timeout:g} s, stopped", transient=True)
    return result


def _start(argv, held, **how):
    lock = os.environ.get("WATCHTIES_LOCK_FD", "")
    os.set_inheritable(held, True)  # to this command alone: sh closes all others in each child
    try:
        return sh.Command(argv[0])(
            *argv[1:], **how, _bg=True, _bg_exc=False, _return_cmd=True, _tty_out=False, _truncate_exc=False,
            _ok_code=range(256), _pass_fds={held, *([int(lock)] if lock.isdigit() else ())},
        )  # fmt: skip
    except sh.CommandNotFound:
        package = PACKAGES.get(argv[0], argv[0])
        raise WatchtiesError(f"{argv[0]} is not on this machine: install the package {package} (apt-get install {package})") from None
    except (sh.ForkException, BlockingIOError, ValueError) as error:
        said = (str(error).strip().splitlines() or ["no process to be had"])[-1]
        if isinstance(error, ValueError):  # sh 2.4: what its child says first is its number, and it has said nothing
            said = "its process was killed before it had become that program"
        raise CommandFailed(argv[:1], 255, "", said, "could not be started", transient=True) from None


@contextlib.contextmanager
def _undisturbed():
    """Put SIGTERM off until a child that is being started is known, and can be stopped too.

    Not by a signal mask: the child would inherit it.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
    if came:
        handler(signal.SIGTERM, None)


def _wait(process):
    try:
        process.wait()
    except sh.ErrorReturnCode:  # killed by a signal; any exit code is fine here
        pass
    code = process.process.exit_code
    return code if code >= 0 else 128 - code


def _await_rest(holders):
    """Wait until nobody holds the other end of a pipe that a failed command, and all that it started, were given; not for ever.

    A half of rsync whose other half was killed still puts away what it has got: it must not do so beside the next try, or after it.
    """
    poll = select.poll()
    poll.register(holders, 0)  # POLLHUP is told without being asked for
    poll.poll(REST * 1000)


class _Warden(threading.Thread):
    """Stands beside a command, and kills it when its time is over, or when it has said too much; until then calls look() every
    second, if there is one. size(): bytes that it has said."""

    def __init__(self, process, timeout, look, size):
        super().__init__()
        self.process, self.end, self.look, self.size = process, time.monotonic() + timeout, look, size
        self.late, self.flooded, self._dismissed = False, False, threading.Event()

    def run(self):
        pause = FIRST_LOOK
        while (left := self.end - time.monotonic()) > 0 and not self.flooded:
            if self._dismissed.wait(min(left, pause)):
                return
            pause, self.flooded = LOOK, self.size() > MOST
            try:
                if self.look:
                    self.look()
            except Exception:  # whatever it is, the command keeps its time limit
                traceback.print_exc()
                self.look = None
        self.late = not self.flooded
        _kill(self.process, self.process.kill)

    def dismiss(self):
        """Let it go; no look() is called after this."""
        self._dismissed.set()
        if self.is_alive():  # else it was not quite begun, and will look at once whether it was dismissed
            self.join()


def _kill(process, how):
    if process.process.exit_code is not None:
        return  # reaped: its number may be another one's by now
    try:
        how()
    except OSError:
        pass  # it has ended meanwhile


def _memory(content=None):
    """Return a file in memory, at its beginning."""
    file = os.fdopen(os.memfd_create("watchties", os.MFD_CLOEXEC), "r+b")
    if content:
        file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        file.seek(0)
    return file


def _last(file):
    """Return the last bytes of a file that another process writes to. It shares our place in it, which must stay."""
    return os.pread(file.fileno(), TAIL, max(0, os.fstat(file.fileno()).st_size - TAIL))


def _size(file):
    return os.fstat(file.fileno()).st_size


def _text(file):
    file.seek(0)
    return file.read().decode("utf-8", "surrogateescape")
