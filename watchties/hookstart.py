"""What a hook's process does before the hook's first line, in a child of the forkserver.

Knows: how a process becomes a hook: session, descriptors, environment, working directory.
Must not know: rules, jobs, the daemon. It is imported in the forkserver, so it imports next to nothing.
"""

import gc
import os
import signal
import sys

from watchties.errors import AGAIN


# What every hook of ours imports. Importing sh and tenacity costs 90 ms; forking a process that has them, 5.
PRELOAD = [
    "sh", "tenacity", "watchties.hookstart", "watchties.hookkit", "watchties.transfer", "watchties.batches", "watchties.agent",
    "watchties.manifest", "watchties.judge", "watchties.results", "watchties.submission", "watchties.standing", "watchties.webstate",
    "watchties.mail", "watchties.schedulers.shell", "watchties.schedulers.slurm", "watchties.schedulers.sge",
]  # fmt: skip


class HookStart:
    """The message to the forkserver's child: what to become. It is unpickled there, and its _bootstrap is called."""

    def __init__(self, path, env, cwd, out, err):
        self.path, self.env, self.cwd, self.out, self.err = path, env, cwd, out, err

    def _bootstrap(self, parent_sentinel=None):
        """Run the hook and return its exit code (multiprocessing.spawn calls this by its name)."""
        from multiprocessing import forkserver

        gc.freeze()  # what was preloaded stays: looking through it would cost more than the hook, and copy its memory
        lock = forkserver.get_inherited_fds()[-1]
        os.setsid()
        os.chdir(self.cwd)
        try:
            self._redirect()
        except OSError:
            return AGAIN
        sys.stdin = open(0, closefd=False)
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD:
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(self.env, WATCHTIES_LOCK_FD=str(lock))
        sys.argv = [self.path]
        return run_file(self.path)

    def _redirect(self):
        for path, number in (os.devnull, 0), (self.out, 1), (self.err, 2):
            fd = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(fd, number)
            os.close(fd)


def run_file(path):
    """Run a Python file as a program; return its exit code. What cannot even write down what it has to say, is to come again."""
    try:
        return _run_file(path)
    except OSError:
        return AGAIN


def _run_file(path):
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, {"__name__": "__main__", "__file__": path, "__builtins__": __builtins__})
        return 0
    except SystemExit as stop:
        return exit_code(stop.code)
    except (ImportError, SyntaxError):  # half an upgrade: modules of two versions met; the next try finds one
        import traceback

        traceback.print_exc()
        return AGAIN
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        for stream in sys.stdout, sys.stderr:
            stream.flush()


def exit_code(code):
    """Return the number that SystemExit's argument stands for."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1
