"""logs: what hooks and daemon have logged, all of it, of one hook, or of one job's runs; and as it grows.

Knows: the files of the log directory, rotated ones among them; which lines belong to a job.
Must not know: who writes them.
"""

import contextlib
import glob
import heapq
import os
import re
import time

import click

from watchties.cli.common import with_places
from watchties.cli.names import JOB, Names
from watchties.errors import UserError
from watchties.model import printable

LAST = 100  # lines that are shown where nothing is said
GLANCE = 0.25  # seconds between two looks while following
STAMP = len("2026-01-31 12:00:00.000")
DAEMON = "daemon"
OUTCOMES = "done|retry|failed|interrupted"


@click.command()
@click.argument("job", required=False, type=JOB)
@click.option("--hook", metavar="NAME", help="Only the log of this hook.")
@click.option("--daemon", "of_daemon", is_flag=True, help="Only the daemon's own log.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on; Ctrl-C ends it.")
@click.option("--lines", "-n", metavar="N", type=click.IntRange(0), help=f"Only the last N lines.  [{LAST}; with JOB all]")
@with_places
def logs(places, job, hook, of_daemon, follow, lines):
    """Show what hooks and daemon have logged: all of it, or only the runs that carried a JOB.

    The files are plain text, one for each hook: tail -F ~/.local/state/watchties/log/*.log shows the same.

    \b
    Example:  watchties logs ann/Exp_1
              watchties logs -f
              watchties logs --hook push -n 20
    """
    if sum(map(bool, (job, hook, of_daemon))) > 1:
        raise UserError("JOB, --hook and --daemon exclude one another; keep one")
    wanted = Names.at(places).find(job) if job else None
    name = DAEMON if of_daemon else hook
    if name and not rotated(places.log, name):
        there = ", ".join(names(places.log)) or "none yet"
        raise UserError(f"{places.log} has no log of {printable(name)}; there are: {there}")
    if not os.path.isdir(places.log):
        raise UserError(f"{places.log} is not there: no daemon has been at work here yet; start one: watchties run")
    with contextlib.closing(Following(places.log, name, wanted)) as following, contextlib.suppress(KeyboardInterrupt):
        earlier = following.new_lines()
        count = lines if lines is not None else len(earlier) if job else LAST
        for line in earlier[max(0, len(earlier) - count) :]:
            click.echo(line)
        while follow:
            time.sleep(GLANCE)
            for line in following.new_lines():
                click.echo(line)


def names(folder):
    """Return the names of all logs in a directory."""
    return sorted({os.path.basename(path).partition(".log")[0] for path in glob.glob(os.path.join(glob.escape(folder), "*.log*"))})


def rotated(folder, name):
    """Return the files of one log, the oldest first, the one that is written to last."""
    path = os.path.join(folder, f"{name}.log")
    older = [p for p in glob.glob(glob.escape(path) + ".*") if re.fullmatch(r"\.\d{8}T\d{6}", p[len(path) :])]
    return sorted(older) + ([path] if os.path.exists(path) else [])


class Following:
    """The lines of all logs, or of one, as they come; files that were looked at are kept open, so that rotation loses nothing."""

    def __init__(self, folder, name, job):
        self.folder, self.name, self.job = folder, name, job
        self._files, self._pickers = {}, {}  # inode -> (log, open file, unfinished line); log -> Picker

    def new_lines(self):
        """Return the lines that were written since the last call, by time."""
        self._look_for_files()
        by_log = {}
        for inode, (log, file, rest) in list(self._files.items()):
            *lines, rest = (rest + file.read()).split(b"\n")
            self._files[inode] = log, file, rest
            by_log.setdefault(log, []).extend(line.decode("utf-8", "replace") for line in lines)
        picked = ([line for raw in lines for line in self._pick(log, raw)] for log, lines in by_log.items())
        return list(heapq.merge(*(sorted(lines, key=_stamp) for lines in picked), key=_stamp))

    def close(self):
        """Let go of all files."""
        for _, file, _ in self._files.values():
            file.close()

    def _pick(self, log, line):
        if not self.job:
            return [line]
        return self._pickers.setdefault(log, Picker(self.job)).take(line)

    def _look_for_files(self):
        """Open what is new; let go of what rotation has removed, when it has been read."""
        seen = set()
        for log in [self.name] if self.name else names(self.folder):
            for path in rotated(self.folder, log):
                try:
                    inode = os.stat(path).st_ino
                    seen.add(inode)
                    if inode not in self._files:
                        self._files[inode] = log, open(path, "rb"), b""
                except FileNotFoundError:
                    continue  # it was rotated just now; the next look finds it under its new name
        for inode in [inode for inode in self._files if inode not in seen]:
            if not self._files[inode][1].peek(1):
                self._files.pop(inode)[1].close()


def _stamp(line):
    return line[:STAMP]


class Picker:
    """Picks from one log the lines of the runs that carried a job.

    A start line names a few jobs only: the lines of a larger run are kept until its `job` line, near its end, tells.
    """

    def __init__(self, job):
        name = re.escape(printable(str(job), 4000))
        self._own = re.compile(f"job {name} ({OUTCOMES})(: .*)?")
        self._named = re.compile(f"start host=\\S+ jobs=\\d+: (.*, )?{name}(, .*| and \\d+ more)?")
        self._any_outcome = re.compile(f"job \\S.* ({OUTCOMES})(: .*)?")
        self._mine, self._kept = set(), {}

    def take(self, line):
        """Return the lines that are certain now, this one among them or not."""
        _, _, run, text = [*line.split(" ", 3), "", "", "", ""][:4]
        if not text:
            return []
        if text.startswith("start host="):
            self._kept[run] = []
        mine = run in self._mine or bool(self._own.fullmatch(text) or self._named.fullmatch(text))
        if text.startswith("end host="):
            self._mine.discard(run)
        elif mine:
            self._mine.add(run)
        if not mine:
            self._keep(run, line, text)
            return []
        before = self._kept.pop(run, [])
        return before + ([] if self._any_outcome.fullmatch(text) and not self._own.fullmatch(text) else [line])

    def _keep(self, run, line, text):
        if text.startswith("end host="):
            self._kept.pop(run, None)
        elif not self._any_outcome.fullmatch(text):
            self._kept.setdefault(run, []).append(line)
