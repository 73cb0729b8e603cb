"""Polls the job directories of a tree where inotify does not serve, through watchdog's PollingObserverVFS.

Knows: watchdog, its threads, which names count (told by jobdirs).
Must not know: inotify, what a marker means, the event loop.

watchdog keeps a snapshot of all that its `listdir` shows it. So that shows only the directories down to the jobs and the names
in them that count, and `stat` gives back no more than watchdog compares: some 400 bytes for each directory and marker.
"""

import os
import stat
import threading

from watchdog.observers.polling import PollingObserverVFS

from watchties.jobdirs import COUNT


class Polling:
    """A polled tree. `tell(self, job)` is called in another thread: with "" once the first snapshot is taken (a scan after that
    misses nothing), then with each job that is dirty.
    """

    def __init__(self, dirs, interval, tell):
        self._dirs, self._tell, self._stopping = dirs, tell, False
        self._observer = PollingObserverVFS(stat=self._stat, listdir=self._listdir, polling_interval=interval)
        self._starter = threading.Thread(target=self._start, daemon=True, name=f"polling {dirs.root}")
        self._starter.start()  # the first snapshot takes as long as a scan: not in the event loop

    def _start(self):
        try:
            self._observer.schedule(self, self._dirs.root, recursive=True)
            self._observer.start()
        except OSError:
            return  # alive() says so
        if self._stopping:
            self._observer.stop()
        else:
            self._tell(self, "")

    def alive(self):
        """Return whether it polls, or is about to; it ends when the root goes or cannot be read."""
        return self._starter.is_alive() or (self._observer.is_alive() and all(e.is_alive() for e in self._observer.emitters))

    def stop(self, wait=2.0):
        """End the threads; wait at most so many seconds for one that hangs on a dead file system."""
        self._stopping = True
        self._starter.join(wait)
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join(wait)

    def dispatch(self, event):
        """Take an event from watchdog: only names that count, directly in a job's directory."""
        for path in filter(None, (event.src_path, event.dest_path)):
            job, _, name = path[len(self._dirs.root) + 1 :].rpartition("/")
            if name in COUNT and job.count("/") == self._dirs.depth - 1 and job:
                self._tell(self, job)

    def _listdir(self, place):
        path = place[len(self._dirs.root) + 1 :]
        depth = path.count("/") + 1 if path else 0
        if depth < self._dirs.depth:
            return [_Name(child.rpartition("/")[2]) for child in self._dirs.children(path, depth)]
        return [_Name(name) for name in self._dirs.names(path) if name in COUNT] if depth == self._dirs.depth else []

    def _stat(self, place):
        return _Stat(os.stat(place) if place == self._dirs.root else os.lstat(place))


class _Name:
    """What watchdog uses of an os.DirEntry."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


class _Stat:
    """What watchdog compares of an os.stat_result; the time in nanoseconds, and none for directories, which do not count."""

    __slots__ = ("st_ino", "st_dev", "st_mode", "st_size", "st_mtime")

    def __init__(self, found):
        self.st_ino, self.st_dev = found.st_ino, found.st_dev
        is_dir = stat.S_ISDIR(found.st_mode)
        self.st_mode, self.st_size, self.st_mtime = (stat.S_IFDIR, 0, 0) if is_dir else (found.st_mode, found.st_size, found.st_mtime_ns)
