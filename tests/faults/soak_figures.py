"""What a soak measures, line by line, and whether it grows.

Knows: what watchties takes: memory, descriptors, threads, files, processor time; and what it leaves behind.
Must not know: what a job is.

Flat means: the mean of the last third of the lines is at most a tenth above that of the second third, or above it by no more
than a little that is named. The journal keeps history for journal_keep, here a minute, so its size is to stand still once
the first is pruned; logs rotate, and are to take as many bytes a job as before. The wall time of a job is printed, not judged: it
tells of whatever else the machine does. Memory, descriptors and threads go up and down with each batch, so they are looked at all
the while, and a line holds their means. Processor time is that of all processes which watchties has started, jobs included.
"""

import contextlib
import os
import sqlite3
import statistics
import time

import procs_kit as procs

HEADS = ("jobs", "own MB", "RSS MB", "fds", "threads", "journal kB", "rows", "state files", "state kB", "log B/job", "CPU ms/job",
         "wall ms/job", "faults")  # fmt: skip
# column -> how much more the last third may be, whatever its tenth is
JUDGED = {"own MB": 1.0, "RSS MB": 2.0, "fds": 4, "threads": 2, "journal kB": 300, "state files": 15, "state kB": 200,
          "log B/job": 0, "CPU ms/job": 0}  # fmt: skip
WIDTH, SAMPLE = 11, 1.0  # seconds between two looks at the daemon
STANDS = {".watchties.lock", ".watchties.coming", ".watchties.tree"}  # below a tree, as long as it is in use; the second is to be empty


class Figures:
    """The table of one soak. rows: {column: number}, a line each."""

    def __init__(self, site, flow, faults):
        self.site, self.flow, self.faults, self.rows = site, flow, faults, []
        self._samples, self._next = [], 0.0
        procs.adopt_orphans()
        self._before = self._sums()

    def go_on(self):
        """Take in the orphans that have ended, and look at the daemon."""
        procs.reap(self.site.process.pid)
        if time.monotonic() >= self._next and (sample := self._daemon()):
            self._samples.append(sample)
            self._next = time.monotonic() + SAMPLE

    def head(self):
        return " ".join(head.rjust(max(WIDTH, len(head))) for head in HEADS)

    def measure(self):
        """Measure a line, and return it as text."""
        now, before = self._sums(), self._before
        self._before = now
        jobs = max(1, now[0] - before[0])
        means = map(statistics.fmean, zip(*self._samples or [[0] * 4]))
        self._samples = []
        row = dict(zip(HEADS, (now[0], *means, *self._journal(), *self._state())))
        row |= {"log B/job": (now[3] - before[3]) / jobs, "CPU ms/job": 1000 * (now[1] - before[1]) / jobs}
        row |= {"wall ms/job": 1000 * (now[2] - before[2]) / jobs, "faults": now[4] - before[4]}
        self.rows.append(row)
        return self.line(row)

    @staticmethod
    def line(row):
        return " ".join(f"{row[head]:.1f}".removesuffix(".0").rjust(max(WIDTH, len(head))) for head in HEADS)

    def _sums(self):
        """Return what only grows: jobs, processor seconds, seconds, bytes of logs, faults."""
        cpu = procs.cpu_below(os.getpid())
        return self.flow.ended, cpu, time.monotonic(), self._logged(), self.faults.count.total()

    def _logged(self):
        """Return all bytes ever logged: rotated files go after a while, so each is remembered."""
        self._logs = getattr(self, "_logs", {})
        for folder in (self.site.state / "log", self.site.base):
            for entry in os.scandir(folder) if folder.exists() else ():
                if ".log" in entry.name or entry.name == "daemon.out":
                    self._logs[entry.inode()] = entry.stat().st_size
        return sum(self._logs.values())

    def _daemon(self):
        """Return memory of its own and RSS in MB, descriptors and threads, of the daemon and its forkserver; None if one has just been killed."""
        pids = [self.site.process.pid]
        pids += [pid for pid in procs.children().get(pids[0], ()) if "forkserver" in " ".join(procs.words_of(pid))]
        taken = []
        for pid in pids:
            try:
                taken.append((*(kb / 1024 for kb in procs.memory(pid)), procs.descriptors(pid), procs.threads(pid)))
            except OSError:
                return None
        return [sum(column) for column in zip(*taken)] if len(taken) == 2 else None

    def _journal(self):
        """Return the kB of the journal's files, and its lines of history and of jobs."""
        path = self.site.state / "journal.sqlite"
        size = sum(file.stat().st_size for file in self.site.state.glob("journal.sqlite*") if file.suffix[1:].startswith("sqlite"))
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                rows = sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("history", "job"))
        except sqlite3.Error:  # it was destroyed a moment ago
            rows = 0
        return size / 1024, rows

    def _state(self):
        """Return the number and kB of what else is in the state directory; journals that were put aside are kept for a person."""
        count = size = 0
        for folder, _, names in os.walk(self.site.state):
            for name in names:
                if "journal.sqlite" not in name and "/log" not in folder:
                    count += 1
                    try:
                        size += os.lstat(os.path.join(folder, name)).st_size
                    except FileNotFoundError:
                        continue
        return count, size / 1024

    # ---- what must hold ----

    def growth(self):
        """Return what grew, a line each."""
        third = len(self.rows) // 3
        second, last = self.rows[third:-third], self.rows[-third:]
        found = []
        for name, little in JUDGED.items():
            before, after = (statistics.fmean(row[name] for row in rows) for rows in (second, last))
            if after > max(before * 1.1, before + little):
                found.append(f"NOT FLAT: {name}: {before:.1f} in the second third of the lines, {after:.1f} in the last")
        return found

    def left_over(self):
        """Return what is there after the end and should not be: processes, runs, hidden names, notes of anything begun."""
        end = time.monotonic() + 20
        while (left := self._processes()) and time.monotonic() < end:
            time.sleep(0.1)
        found = [f"LEFT OVER: process {words}" for words in left]
        state, mail = self.site.state, self.site.mail
        found += [f"LEFT OVER: {path}" for path in [*(state / "runs").iterdir(), *mail.glob(".*")]]
        found += [f"LEFT OVER: {path}" for folder in (state, state / "fork") if folder.exists() for path in folder.glob("*.new")]
        for tree in self.site.web, self.site.mirror, self.site.compute:
            strange = [path for path in tree.glob(".*") if path.name not in STANDS]
            found += [f"LEFT OVER: {path}" for path in [*strange, *tree.glob("*/.*"), *tree.glob(".watchties.coming/*")]]
        return found

    def _processes(self):
        procs.reap(None)
        return [" ".join(words) for words in map(procs.words_of, procs.below(os.getpid())) if words]

    def summary(self):
        flow, kinds = self.flow, ", ".join(f"{name} {count}" for name, count in sorted(self.faults.count.items()))
        lost = sum("LOST" in text for text in flow.breaches())
        twice = sum("TWICE" in text for text in flow.breaches())
        asked = ", ".join(f"{name} {count}" for name, count in sorted(flow.kinds.items()))
        return (
            f"{flow.ended} jobs ({asked}); {self.faults.count.total()} faults ({kinds}); {lost} lost, {twice} twice, "
            f"{len(flow.mail_ids)} mails, {flow.repeats} repeated"
        )
