"""The hooks' logs: one file a hook, made to be followed with `tail -F` and read by run.

Knows: the form of a line (`TIME RUN text`), how a run's output gets there while it runs, rotation.
Must not know: what a run is for.

A hook writes to files of its own, so that it can outlive its daemon; their lines are copied here, each with the
run's name in front, so that two runs at once stay readable.
"""

import contextlib
import os
import re
import time

from watchties.model import printable

ROTATE_AT = 16 << 20  # bytes
NAMED = 10  # jobs named in a start line
AT_ONCE = 1 << 20  # bytes of a hook's output that are copied at one look; of more than that the end is kept
MAX_LINE = 4000  # characters


class HookLog:
    """Writes LOG_DIR/NAME.log; keep: seconds after which a rotated file goes."""

    def __init__(self, folder, keep, clock=time.time):
        self.folder, self.keep, self.clock = folder, keep, clock
        self._copied = {}  # run id -> {"out": offset, "err": offset}
        os.makedirs(folder, mode=0o755, exist_ok=True)

    def begin(self, run):
        """Write a run's start line."""
        names = [f"{j['tree']}:{j['job']}" for j in run.jobs]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        self.write(run.rule, run.id, [f"start host={run.host or '-'} jobs={len(names)}: {', '.join(names[:NAMED])}{more}"])

    def feed(self, run, whole=False):
        """Copy what the hook has printed since; an unfinished line only if `whole`."""
        offsets = self._copied.setdefault(run.id, {"out": 0, "err": 0})
        lines = []
        for name in offsets:
            size = size_of(run.path(name))
            if size - offsets[name] > AT_ONCE:  # a hook that has run wild must not fill our memory, nor the disk a second time
                lines.append(f"({size - offsets[name] - AT_ONCE} bytes of {name} are left out here)")
                offsets[name] = size - AT_ONCE
            data = read_from(run.path(name), offsets[name], AT_ONCE)
            data = data if whole else data[: data.rfind(b"\n") + 1]
            offsets[name] += len(data)
            lines += data.decode("utf-8", "replace").splitlines()
        if lines:
            self.write(run.rule, run.id, lines)

    def end(self, ended):
        """Write what is left of a run's output, a line for each job, and the end line."""
        run = ended.run
        self.feed(run, whole=True)
        self._copied.pop(run.id, None)
        count, lines = {"done": 0, "retry": 0, "failed": 0, "interrupted": 0}, []
        for job in run.ids():
            told = ended.outcome(job)
            outcome, reason = (told.outcome, told.reason) if told else ("interrupted", "")
            count[outcome] += 1
            lines.append(f"job {job} {outcome}" + (f": {reason}" if reason else ""))
        counts = "".join(f" {k}={n}" for k, n in count.items() if n)
        code = "unknown" if ended.code is None else ended.code
        self.write(run.rule, run.id, [*lines, f"end host={run.host or '-'}{counts} exit={code} seconds={ended.seconds:.2f}"])

    def write(self, name, label, lines):
        """Append lines to a log, each with the time and a label in front."""
        now = self.clock()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d}"
        text = "".join(f"{stamp} {label} {printable(line, MAX_LINE)}\n" for line in lines)
        path = self.path(name)
        try:
            with open(path, "ab") as file:
                file.write(text.encode("utf-8", "replace"))
                size = file.tell()
            if size > ROTATE_AT:
                self._rotate(path)
        except OSError:
            pass  # a full disk must not stop a job for the sake of its log

    def path(self, name):
        return os.path.join(self.folder, f"{name}.log")

    def _rotate(self, path):
        os.rename(path, path + time.strftime(".%Y%m%dT%H%M%S", time.localtime(self.clock())))

    def prune(self):
        """Remove rotated files that are older than `keep`."""
        with contextlib.suppress(OSError):  # it is another's to remove them as well; and the disk may take nothing
            for entry in os.scandir(self.folder):
                if re.search(r"\.log\.\d{8}T\d{6}$", entry.name) and entry.stat().st_mtime < self.clock() - self.keep:
                    os.unlink(entry.path)


def size_of(path):
    """Return the size of a file, 0 if it cannot be seen."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def read_from(path, offset, most):
    """Return so many bytes of a file at most, from an offset on; b"" if it cannot be read now."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(most)
    except OSError:
        return b""
