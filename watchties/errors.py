"""Exceptions and exit codes of both halves.

Knows: what kinds of failure there are, which are transient, which exit code each has.
Must not know: who raises them, and why.

Whether a failure is transient is in the type, never in the wording of its message.
"""

import errno
import shlex

OK, FAILURE, USAGE, AGAIN = 0, 1, 2, 75  # 75: EX_TEMPFAIL of sysexits.h, "again later" in the hook contract
MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ESTALE, errno.EROFS,
            errno.ENOTCONN, errno.ETIMEDOUT,  # a mirror on a network file system whose server is away
            errno.EACCES, errno.EPERM}  # one that nobody may enter for now; what one job alone forbids is that job's, in its hook  # fmt: skip


class WatchtiesError(Exception):
    """Any failure that is told in one line and without a traceback."""

    transient = False
    exit_code = FAILURE


class UserError(WatchtiesError):
    """What was asked cannot be done as it was asked; the message says what to do."""

    exit_code = USAGE


class ConfigError(UserError):
    """The configuration is wrong; `problems` holds one line each, in the order of the files."""

    def __init__(self, problems):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class BadJobName(UserError):
    """A name that no job may have; the message says why."""


class Rejected(WatchtiesError):
    """A job that can never be carried as it is: no command, unknown host, over a limit, refused by a scheduler."""


class Unsafe(WatchtiesError):
    """Something on disk is not what it must be (a link for a directory, say), so that it is not touched."""


class Transient(WatchtiesError):
    """May pass by itself; worth another try."""

    transient = True
    exit_code = AGAIN


class Unreachable(Transient):
    """A host as a whole does not answer, or its `compties` directory is not there; no job is to blame."""


class NotLetIn(Unreachable):
    """A host is there, but a login or a key is refused: knocking often does not help, and may have us banned there."""


class NotNow(Transient):
    """The far side answers, and asks to come back later (quota, controller down, lock held)."""


class CommandFailed(WatchtiesError):
    """A command ended badly: shows the command, the exit code and both streams."""

    def __init__(self, argv, code, out="", err="", why="", transient=False):
        self.argv, self.code, self.out, self.err, self.why = list(argv), code, out, err, why
        self.transient = transient
        self.exit_code = AGAIN if transient else FAILURE
        super().__init__(self.reason())

    def reason(self):
        """Return one line for people: what failed, how, and the last thing it said."""
        said = (self.err.strip() or self.out.strip()).splitlines()
        text = f"{self.argv[0] if self.argv else 'command'} ended with {self.code}"
        return text + (f" ({self.why})" if self.why else "") + (f": {said[-1].strip()}" if said else "")

    def details(self):
        """Return the lines for a log: command, exit code, both streams whole."""
        lines = [f"command: {shlex.join(map(str, self.argv))}", f"exit code: {self.code} {self.why}".rstrip()]
        for name, text in ("stdout", self.out), ("stderr", self.err):
            lines += [f"{name}: {line}" for line in text.splitlines()] or [f"{name}: (nothing)"]
        return lines
