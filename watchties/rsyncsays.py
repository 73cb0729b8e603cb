"""What an rsync says: its exit codes, its last words, its list of what it has carried.

Knows: rsync(1) 3.1.3 and newer.
Must not know: how it was called (transfer.py), what is done about a failure (batches.py).
"""

import re

from watchties import errors
from watchties.errors import CommandFailed
from watchties.model import printable

OK, AGAIN, RESOURCES, PARTIAL, PERMANENT = "ok", "again", "resources", "partial", "permanent"
EXIT_CODES = {  # rsync(1), EXIT VALUES; 124 to 127 and 255 are the remote shell's
    0: (OK, ""),
    1: (PERMANENT, "an option that this rsync does not know"),
    2: (PERMANENT, "the two rsyncs do not understand each other: a login that prints, or one that is too old"),
    3: (PERMANENT, "the tree's directory is not there, or is none"),
    4: (PERMANENT, "asked for what this rsync cannot do"),
    5: (AGAIN, "the far side did not start"),
    6: (PERMANENT, "no log file can be written"),
    10: (AGAIN, "the connection broke"),
    11: (PARTIAL, "a file could not be read or written: is the disk full?"),
    12: (AGAIN, "the stream broke off: lost connection, a login that prints, no rsync there, or a full disk"),
    13: (AGAIN, "one of its processes was killed, or could not say what is wrong"),
    14: (RESOURCES, "no process or pipe to be had"),
    16: (RESOURCES, "it was told to stop"),
    19: (RESOURCES, "it was told to stop"),
    20: (RESOURCES, "it was told to stop"),
    21: (AGAIN, "its child went astray"),
    22: (RESOURCES, "not enough memory"),
    23: (PARTIAL, "some files were not carried: permissions, a full disk, or not there"),
    24: (PARTIAL, "files vanished while they were carried"),
    25: (PERMANENT, "a limit on deletions, which is never asked for"),
    30: (AGAIN, "no byte came for as long as its --timeout allows"),
    35: (AGAIN, "no answer from the far side's daemon"),
    124: (AGAIN, "the remote shell failed"),
    125: (PERMANENT, "the remote command was killed"),
    126: (PERMANENT, "rsync there cannot be run"),
    127: (PERMANENT, "there is no rsync on the far side: install it"),
    255: (AGAIN, "ssh failed"),
}
UNKNOWN = AGAIN, "an exit code that rsync(1) does not name"
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
# At the beginning of a line, where no file of a user's can have its name: rsync escapes line feeds in names.
NO_ROOT = re.compile(r'^rsync: (?:(?:\[[^]"]*\] )?change_dir|\[Receiver\] mkdir)\S* "(.*?)[/.]*" .*failed', re.MULTILINE)


class RsyncFailed(CommandFailed):
    """rsync ended badly; `kind` is that of EXIT_CODES, `no_space` whether a disk was full, `full` whose it was, if that is known."""

    full = ""

    def __init__(self, argv, result, route):
        self.kind, why = EXIT_CODES.get(result.code, UNKNOWN)
        self.route, self.no_space = route, bool(NO_SPACE.search(result.err))
        why = "a disk is full: make room" if self.no_space else why
        super().__init__(argv, result.code, result.out, result.err, why, transient=self.no_space or self.kind in (AGAIN, RESOURCES))
        if self.kind == PERMANENT:
            self.exit_code = errors.AGAIN  # not to be repeated at once; but the jobs wait until an administrator has mended it

    def reason(self):
        """Return one line: what failed, how, and the first files or causes that rsync named."""
        named = [line.strip() for line in self.err.splitlines() if line.startswith("rsync: ")]
        told = [line.strip() for line in self.err.splitlines() if line.strip()]
        said = named[:3] or [line for line in told if not line.startswith("rsync error:")][-3:] or told[-1:]
        return f"rsync with {self.route.name} ended with {self.code} ({self.why})" + (": " + "; ".join(said) if said else "")


def kind_of(code):
    """Return the kind of an exit code, one of EXIT_CODES."""
    return EXIT_CODES.get(code, UNKNOWN)[0]


def itemised(out):
    """Yield (path, item) for each line of rsync -ii --out-format="%i %n"; print what else it said."""
    for line in out.split("\n"):  # not splitlines: a name may hold other ends of line
        if re.match(r"[<>ch.][fdLDS].{9} ", line):
            yield _unescaped(line[12:]).rstrip("/"), line[:11]
        elif line.strip():
            print("rsync:", printable(line))


def _unescaped(name):
    """Return a name as it is on disk: rsync writes what is not printable as \\#ooo (rsync(1), --8-bit-output)."""
    raw = re.sub(rb"\\#(\d{3})", lambda match: bytes([int(match[1], 8)]), name.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")
