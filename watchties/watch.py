"""Says which jobs of a mirror may have changed, and lists them all.

Knows: inotify, when polling takes its place, and what a rename or a lost event means for the watches.
Must not know: what a marker means, what is done about a job, any host.

Events are hints, the disk is the truth: every directory is watched first and read then, a queue that overflowed and a tree that
went and came back are a reason to scan again, and what cannot be watched lives on the daemon's reconcile. It never looks deeper
than the job directories, and follows no symbolic link below the tree's root.
"""

import collections
import contextlib
import errno
import os
import pathlib
import time

from inotify_simple import INotify, flags, parse_events

from watchties.jobdirs import COUNT, LINK, Entry, JobDirs
from watchties.model import check_job_name, printable
from watchties.mounts import backend_for, file_system

LIMIT = pathlib.Path("/proc/sys/fs/inotify/max_user_watches")
SLICE = 0.005  # seconds that a new directory may be explored before the loop has its turn
MAX_BAD = 1000  # refused names that are told and remembered

# No DELETE_SELF: whatever way a directory goes, IGNORED follows.
_EVER = flags.MOVED_TO | flags.MOVED_FROM | flags.MOVE_SELF | flags.ONLYDIR
DIR_MASK = _EVER | flags.CREATE
# No CREATE here: a marker that is being written is seen when it is closed, or one request would have two identities.
JOB_MASK = _EVER | flags.CLOSE_WRITE | flags.ATTRIB | flags.DELETE
RARE = int(flags.CREATE | flags.MOVE_SELF | flags.UNMOUNT | flags.Q_OVERFLOW | flags.IGNORED | flags.ISDIR)
LOST = int(flags.IGNORED | flags.MOVE_SELF | flags.UNMOUNT)  # said of the root
OVERFLOW, IGNORED, MOVE_SELF, MOVED_FROM = map(int, (flags.Q_OVERFLOW, flags.IGNORED, flags.MOVE_SELF, flags.MOVED_FROM))


class MirrorWatch:
    """One mirror: its directory, what is watched of it, what was refused.

    `pattern` says how deep jobs lie; `backend` is auto, inotify or polling; `interval` is the seconds between two polls, `check`
    those between two looks at whether the root is there and the same. All callbacks are called in the loop's thread.
    """

    def __init__(self, root, pattern="*/*", backend="auto", interval=10.0, check=5.0):
        self._dirs = JobDirs(root, pattern)
        self.root, self._wanted, self._interval, self._check = self._dirs.root, backend, interval, check
        self.backend, self.there = "", True  # "inotify" or "polling" once started; whether the root is there
        self._on_dirty = self._on_rescan = self._on_problem = self._on_bad = lambda *_: None  # until start()
        self._loop = self._timer = self._inotify = self._polling = self._identity = None
        self._paths, self._missed = {}, 0  # wd -> path below the root; directories that the limit left unwatched
        self._bad, self.troubles = set(), {}  # kind -> what is wrong, until it is over
        self._fresh, self._advancing = collections.deque(), None

    def start(self, loop, on_dirty, on_rescan, on_problem, on_bad=lambda job, reason: None):
        """Begin to watch; call scan() after it, which adds the watches.

        on_dirty(job): something that counts may have changed in it. on_rescan(reason): drop a scan that is under way, scan again.
        on_problem(text): once, until it is over. on_bad(job, reason): a name that is refused, once; `job` is fit for a log.
        """
        self._loop = loop
        self._on_dirty, self._on_rescan, self._on_problem, self._on_bad = on_dirty, on_rescan, on_problem, on_bad
        self._root_changed()
        self._open()
        self._timer = loop.call_later(self._check, self._tick)

    def stop(self):
        """End all watches; no callback is called any more."""
        if self._timer:
            self._timer.cancel()
        self._close()
        self._loop = self._timer = None

    def scan(self):
        """Yield (job, names) of every job: the markers and our hidden names directly in it, as a frozenset.

        Each directory is watched before it is read, so that nothing is missed between the two. Before start(), and where
        the tree is polled, nothing is watched. Where the root is gone it yields nothing; `there` tells.
        """
        self._missed = 0
        yield from self._explore("", 0)
        self._tell_limit() if self._missed else self.troubles.pop("limit", None)

    def watch_job(self, job):
        """Watch a job directory that the daemon has made itself, without waiting for the event. Return whether it is watched."""
        parts = check_job_name(job, self._dirs.pattern).split("/")
        if link := self._dirs.link_in(job):
            self._refuse(link, LINK)
            return False
        paths = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        return self._inotify is not None and all([self._watch(path, depth) for depth, path in enumerate(paths, 1)])

    # --- the tree as a whole

    def _root_changed(self):
        """Return whether the root is another directory than before, went or came back."""
        try:
            found = os.stat(self.root)
            now = found.st_dev, found.st_ino
        except OSError as trouble:
            now = None
            self._problem("root", f"the tree {self.root} is not there ({trouble.strerror}): mount it or make it; it is waited for")
        changed, self._identity, self.there = now != self._identity, now, now is not None
        if self.there:
            self.troubles.pop("root", None)
        return changed

    def _tick(self):
        self._timer = self._loop.call_later(self._check, self._tick)
        if self._root_changed() or (self._polling and not self._polling.alive()):
            self._begin_anew(f"the tree {self.root} was away or replaced")

    def _begin_anew(self, reason):
        self._close()
        self._root_changed()
        self._open()
        if self.there:
            self._on_rescan(reason)

    def _open(self):
        if not self.there:
            return
        self.backend = backend_for(file_system(self.root)) if self._wanted == "auto" else self._wanted
        if self.backend == "inotify":
            try:
                self._inotify = INotify(nonblocking=True)
                self._loop.add_reader(self._inotify.fileno(), self._ready)
                return
            except OSError as trouble:
                self._problem("inotify", f"{self.root} is polled: {trouble.strerror}; raise the sysctl fs.inotify.max_user_instances")
                self.backend = "polling"
        from watchties.polling import Polling  # watchdog costs memory; most mirrors never need it

        self._polling = Polling(self._dirs, self._interval, self._from_polling)

    def _close(self):
        if self._inotify:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
        if self._polling:
            self._polling.stop()
        if self._advancing:
            self._advancing.cancel()
        self._inotify = self._polling = self._advancing = None
        self._paths, self._missed = {}, 0
        self._fresh.clear()

    def _from_polling(self, source, job):
        """Take what the polling thread says; what a former one said too late is passed over."""
        if loop := self._loop:
            with contextlib.suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(self._polled, source, job)

    def _polled(self, source, job):
        if source is self._polling:
            self._on_dirty(job) if job else self._on_rescan(f"polling of {self.root} has begun")

    # --- telling

    def _problem(self, kind, text):
        if kind not in self.troubles:
            self.troubles[kind] = text
            self._on_problem(text)

    def _tell_limit(self):
        now = LIMIT.read_text().strip() if LIMIT.exists() else "unknown"
        self._problem("limit", f"inotify watch limit reached: {self._missed} directories of {self.root} are not watched, "
                      f"only reconcile finds what changes there; raise the sysctl fs.inotify.max_user_watches (now {now}), this tree needs "
                      f"{len(self._paths) + self._missed}")

    def _refuse(self, path, reason):
        if path not in self._bad and len(self._bad) < MAX_BAD:
            self._bad.add(path)
            self._on_bad(printable(path or self.root), reason)

    def _not_there(self, path, trouble, what):
        """Tell why a directory cannot be used, unless it has just gone."""
        if trouble.errno not in (errno.ENOENT, errno.ENOTDIR):
            self._refuse(path, f"it cannot be {what}: {trouble.strerror}")

    # --- directories

    def _watch(self, path, depth):
        """Watch a directory, count it where the system's limit is reached. Return whether it is there and may be used."""
        if not self._inotify:
            return True
        mask = JOB_MASK if depth == self._dirs.depth else DIR_MASK
        try:
            self._paths[self._inotify.add_watch(self._dirs.at(path), mask | (flags.DONT_FOLLOW if path else 0))] = path
        except OSError as trouble:
            if trouble.errno == errno.ENOSPC:
                self._missed += 1
                return True
            self._not_there(path, trouble, "watched")
            return False
        return True

    def _children(self, path, depth):
        try:
            return self._dirs.children(path, depth, self._refuse)
        except OSError as trouble:
            self._not_there(path, trouble, "read")
            return []

    def _explore(self, path, depth):
        """Yield (job, names) at or below a directory. The upper directories are watched first: new jobs appear there."""
        if not self._watch(path, depth):
            return
        if depth == self._dirs.depth:
            yield from self._job(path)
            return
        level = [path]
        for depth in range(depth, self._dirs.depth - 1):
            level = [child for parent in level for child in self._children(parent, depth) if self._watch(child, depth + 1)]
        for parent in level:
            for job in self._children(parent, self._dirs.depth - 1):
                if self._watch(job, self._dirs.depth):
                    yield from self._job(job)

    def _job(self, job):
        try:
            names = self._dirs.names(job)
        except OSError as trouble:
            self._not_there(job, trouble, "read")
            return
        yield job, names

    # --- events

    def _ready(self):
        """Read a part of what has happened; the loop calls again while there is more."""
        dirty = {}
        try:
            events = parse_events(os.read(self._inotify.fileno(), 65536))
        except BlockingIOError:
            return
        for wd, mask, _, name in events:
            if name not in COUNT and not mask & RARE:
                continue  # a result, or a hidden file of ours: thousands of them
            path = self._paths.get(wd)
            if mask & OVERFLOW or (path == "" and mask & LOST):
                self._begin_anew("events were lost" if mask & OVERFLOW else f"the tree {self.root} was moved or removed")
                return
            if mask & IGNORED:
                self._paths.pop(wd, None)
            elif path is not None:
                self._happened(wd, path, path.count("/") + 1 if path else 0, mask, name, dirty)
        for job in dirty:
            self._on_dirty(job)

    def _happened(self, wd, path, depth, mask, name, dirty):
        if mask & MOVE_SELF:
            # End the watch, and begin again with what is now where the directory is thought to be.
            self._forget(wd)
            self._look_into(path, depth)
        if depth == self._dirs.depth:
            if name in COUNT or mask & MOVE_SELF:
                dirty[path] = True
        elif not name:
            return  # about the directory itself
        elif mask & MOVED_FROM:
            self._moved_away(f"{path}/{name}" if path else name, depth + 1)
        else:
            self._appeared(f"{path}/{name}" if path else name, depth)

    def _forget(self, wd):
        del self._paths[wd]
        with contextlib.suppress(OSError):  # it may have gone with its directory
            self._inotify.rm_watch(wd)

    def _moved_away(self, path, depth):
        """End the watches below a directory above jobs that was moved; a job's own ends by its MOVE_SELF."""
        if depth < self._dirs.depth:
            for wd in [wd for wd, where in self._paths.items() if where == path or where.startswith(path + "/")]:
                self._forget(wd)

    def _appeared(self, path, depth):
        """Take in a directory that was made or moved here, with all that is in it already."""
        if self._dirs.may_be_job(path, Entry(self._dirs.at(path)), depth, self._refuse):
            self._look_into(path, depth + 1)

    def _look_into(self, path, depth):
        self._fresh.append(self._explore(path, depth))
        if not self._advancing:
            self._advancing = self._loop.call_soon(self._advance)

    def _advance(self):
        """Explore what is new for a moment, then let the loop have its turn."""
        found, until = [], time.monotonic() + SLICE
        while self._fresh and time.monotonic() < until:
            step = next(self._fresh[0], None)
            if step is None:
                self._fresh.popleft()
            elif step[1]:
                found.append(step[0])
        self._advancing = self._loop.call_soon(self._advance) if self._fresh else None
        if self._missed and not self._fresh:
            self._tell_limit()
        for job in found:
            self._on_dirty(job)
