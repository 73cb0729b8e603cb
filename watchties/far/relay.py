#!/usr/bin/env python3
"""Announces the markers of one or more trees on a far host, one line each, until its caller goes away.

Knows: which directories are jobs, which files are markers, when a marker has changed, how the caller is told.
Must not know: what is done about a marker; any other file of watchties (this one is copied to hosts alone: standard
library, Python 3.6 or newer).

Standard output (what stands before the #relay line is the login's banner; bytes, UTF-8, TAB separated):
    #relay NONCE VERSION
    TREE MARKER JOB IDENTITY [TOKEN]    a marker that stands: mtime in ns; TOKEN ("-": none) for SUBMITTED, DONE, FAILED
    #listed TREE                        every marker that stands in the tree has been told by now
    #watching TREE                      with --no-list: what happens from now on will be told; who missed something asks now
    #beat                               every heartbeat
    #error TEXT                         something does not work as it should, told once; what is done about it
    #bad TREE REASON                    a name that is refused, told once
Standard input: `beat` (the caller lives), `list` (tell all again). At its end, or after three heartbeats without a line, exit 0.

Events are hints, the disk is the truth: a directory is watched first and read then; a queue that overflowed, a tree that went
and came back are read again whole; what cannot be watched (limits, network file systems) is read again every --poll seconds.

With --directory it serves programs of the older protocol as well, by three files there (class Older says how): a name left
in relay.names, with signal 30 to the process that relay.pid names, is announced as a PENDING of that job.
"""

import argparse
import collections
import ctypes
import errno
import fcntl
import fnmatch
import os
import re
import select
import signal
import stat
import struct
import sys
import time

VERSION = 2

OLDER_NAME = "relay_ties_directories"  # under this name it needs no options, and prints names as the older program did
OLDER_SIGNAL = 30  # SIGPWR on x86-64 and arm64
PID, NAMES, LOCK = "relay.pid", "relay.names", "relay.lock"
TAKEN, NEW_PID = ".relay.names.taken", ".relay.pid.new"
HALF = 2.0  # seconds that a last line without an end is waited for
RECENT = 60.0  # seconds for which, at least, it is known which PENDING was told

HIDDEN = b".watchties.taken."  # + PENDING or CANCEL: a request that the agent was taking off when it was killed
REQUESTS = (b"PENDING", b"CANCEL")
MAX_MARKER = 65536  # bytes that are read of a marker
MAX_BAD = 1000  # refused names that are told and remembered, for each tree
LOST = (-1, -1)  # identity of a tree whose events were lost: whatever stands there is begun with anew
PULSE = 256  # jobs that are read between two looks at clock and caller

# inotify(7), linux/inotify.h
CLOSE_WRITE, ATTRIB, MOVED_FROM, MOVED_TO, CREATE, MOVE_SELF = 0x8, 0x4, 0x40, 0x80, 0x100, 0x800
UNMOUNT, Q_OVERFLOW, IGNORED, ONLYDIR, DONT_FOLLOW, ISDIR = 0x2000, 0x4000, 0x8000, 0x1000000, 0x2000000, 0x40000000
DIR_MASK = CREATE | MOVED_TO | MOVED_FROM | MOVE_SELF | ONLYDIR
# No CREATE here: a marker that is being written is told when it is closed, or it would be told twice with two identities.
JOB_MASK = CLOSE_WRITE | MOVED_TO | ATTRIB | MOVE_SELF | ONLYDIR
RARE = CREATE | MOVE_SELF | UNMOUNT | Q_OVERFLOW | IGNORED | ISDIR
LIMIT = "fs.inotify.max_user_watches"

NETWORK = set("9p acfs afs beegfs ceph cifs coda davfs davfs2 drvfs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs "
              "prl_fs pvfs2 smb3 smbfs vboxsf virtiofs vmhgfs wekafs".split())  # others write there, and inotify never says so

EVENT = struct.Struct("iIII")
PLAIN = re.compile(rb"[!#-,/-~][ -~]*\Z")  # ASCII, not hidden, no leading dash: most names, judged at once
TOKEN = re.compile(rb"^token=([!-~]{1,200})\r?$", re.M)


class Gone(Exception):
    """The caller is no longer there."""


class Inotify:
    """One inotify descriptor; raises OSError where the system has none to give."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.checked(self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    @staticmethod
    def checked(result):
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def add(self, path, mask):
        """Return the watch descriptor of a directory; the same one again if it is watched already."""
        return self.checked(self.libc.inotify_add_watch(self.fd, ctypes.c_char_p(path), ctypes.c_uint32(mask)))

    def remove(self, wd):
        self.libc.inotify_rm_watch(self.fd, wd)

    def read(self):
        """Return a list of (wd, mask, name), empty if nothing has happened."""
        try:
            data, at, found = os.read(self.fd, 65536), 0, []
        except BlockingIOError:
            return []
        while at < len(data):
            wd, mask, _, size = EVENT.unpack_from(data, at)
            at += EVENT.size + size
            found.append((wd, mask, data[at - size:at].rstrip(b"\0")))
        return found


def file_system(path):
    """Return the type of the file system a path lies on, from /proc/self/mountinfo (proc(5)); "" if that does not tell."""
    path, best, kind = os.path.realpath(path) + b"/", b"", b""
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            for line in lines:
                mount, right = line.split()[4], line.split(b" - ", 1)[1]
                mount = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match.group(1), 8)]), mount).rstrip(b"/") + b"/"
                if path.startswith(mount) and len(mount) >= len(best):
                    best, kind = mount, right.split()[0]
    except (OSError, IndexError):
        pass
    return kind.decode("ascii", "replace")


def printable(name):
    """Return a name, bytes or text, fit for one line of output."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def judge(part, glob):
    """Return True if a directory of this name may be (a part of) a job, False if it is none, else why it is refused."""
    if part.startswith(b"."):
        return False
    if not PLAIN.match(part):
        if part.startswith(b"-"):
            return "a part begins with -"
        try:
            text = part.decode("utf-8")
        except UnicodeDecodeError:
            return "it is not valid UTF-8"
        if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029" for c in text):
            return "it has control characters"
    return glob == "*" or fnmatch.fnmatchcase(part.decode("utf-8"), glob)


def under(path, name):
    return path + b"/" + name if path else name


class Tree:
    """One tree: its directory, what is watched of it, what was refused."""

    def __init__(self, spec, markers, relay):
        name, rest = spec.split("=", 1)
        directory, pattern = rest.rsplit("=", 1)
        self.name, self.root, self.globs, self.relay = os.fsencode(name), os.fsencode(directory) + b"/", pattern.split("/"), relay
        self.markers = frozenset(markers)
        self.wanted = self.markers | {HIDDEN + marker for marker in self.markers & set(REQUESTS)}
        self.bad, self.told, self.identity = set(), set(), None
        self.inotify, self.paths, self.unwatched, self.seen, self.remember, self.listing = None, {}, 0, set(), False, False

    def error(self, kind, text):
        """Tell of a trouble once, until it is over."""
        if kind not in self.told:
            self.told.add(kind)
            self.relay.say("#error tree %s: %s" % (printable(self.name), printable(text)))

    def refuse(self, path, reason):
        if path not in self.bad and len(self.bad) < MAX_BAD:
            self.bad.add(path)
            self.relay.say(b"#bad " + self.name, "%s: %s" % (printable(path) or ".", reason))

    def polled(self):
        """Return whether something of the tree is not watched, so that it must be read again now and then."""
        return self.identity is not None and (self.inotify is None or self.unwatched > 0)

    # --- the tree as a whole

    def moved(self):
        """Return whether the root is another directory than before, or is gone, or came back."""
        try:
            found = os.stat(self.root)
            now = (found.st_dev, found.st_ino)
        except OSError as trouble:
            now = None
            self.error("root", "%s: %s; waiting until it is there" % (printable(self.root), trouble.strerror))
        changed, self.identity = now != self.identity, now
        if now:
            self.told.discard("root")
        return changed

    def open(self):
        """Begin anew, with nothing watched."""
        self.close()
        if self.identity is None:
            return
        kind = file_system(self.root)
        if kind in NETWORK or kind == "fuse" or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs"):
            return
        try:
            self.inotify = Inotify()
        except (OSError, AttributeError) as trouble:
            why = "fs.inotify.max_user_instances" if getattr(trouble, "errno", 0) == errno.EMFILE else trouble
            self.error("inotify", "no inotify here (%s); it is listed every %g seconds" % (why, self.relay.poll))

    def close(self):
        if self.inotify:
            os.close(self.inotify.fd)
        self.inotify, self.paths, self.unwatched, self.seen = None, {}, 0, set()

    def list(self, all_of_it):
        """Tell of every marker that stands or, if not `all_of_it`, of those not told by the last listing."""
        seen, self.seen, self.remember, self.unwatched, self.listing = self.seen, set(), self.polled(), 0, all_of_it
        for count, job in enumerate(self.explore(b"", 0), 1):
            if self.remember or self.unwatched or not self.relay.silent:  # else it is only watched, and nothing told
                self.look(job, () if all_of_it else seen)
            if count % PULSE == 0:
                self.relay.pulse()
        self.remember, self.listing = self.polled(), False
        if not self.unwatched:
            self.told.discard("limit")
            return
        self.error("limit", "the inotify watch limit is reached: %d directories are not watched but listed every %g seconds; "
                   "raise the sysctl %s, this tree needs %d" % (self.unwatched, self.relay.poll, LIMIT, len(self.paths) + self.unwatched))

    # --- directories

    def watch(self, path, depth):
        """Watch a directory; count it where the system's limit is reached. Return whether it is there and may be watched."""
        if not self.inotify:
            return True
        mask = JOB_MASK if depth == len(self.globs) else DIR_MASK
        try:
            self.paths[self.inotify.add(self.root + path, mask | (DONT_FOLLOW if path else 0))] = path
        except OSError as trouble:
            if trouble.errno == errno.ENOSPC:
                self.unwatched += 1
                return True
            if trouble.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.refuse(path, "it cannot be watched: " + trouble.strerror)
            return False
        return True

    def children(self, path, depth):
        """Return the directories in a directory that may be (a part of) a job, as paths below the root."""
        try:
            with os.scandir(self.root + path) as entries:
                return [under(path, entry.name) for entry in entries if self.may_be_job(path, entry, depth)]
        except OSError as trouble:
            if trouble.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.refuse(path, "it cannot be read: " + trouble.strerror)
            return []

    def may_be_job(self, path, entry, depth):
        answer = judge(entry.name, self.globs[depth])
        if answer is False or not entry.is_dir(follow_symlinks=False):
            if answer is not False and entry.is_symlink() and os.path.isdir(entry.path):  # DirEntry.is_dir raises for a link to itself
                self.refuse(under(path, entry.name), "a symbolic link, which is not followed")
            return False
        if answer is not True:
            self.refuse(under(path, entry.name), answer)
        return answer is True

    def explore(self, path, depth):
        """Yield the jobs at or below a directory, each watched by then. The upper directories come first: new jobs appear there."""
        if not self.watch(path, depth):
            return
        if depth == len(self.globs):
            yield path
            return
        level = [path]
        for depth in range(depth, len(self.globs) - 1):
            level = [child for parent in level for child in self.children(parent, depth) if self.watch(child, depth + 1)]
        for parent in level:
            for job in self.children(parent, len(self.globs) - 1):
                if self.watch(job, len(self.globs)):
                    yield job

    # --- markers

    def look(self, job, seen=()):
        """Tell of the markers in a job's directory, but for those in `seen`."""
        try:
            names = self.wanted.intersection(os.listdir(self.root + job))
        except OSError as trouble:
            if trouble.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.refuse(job, "it cannot be read: " + trouble.strerror)
            return
        for name in sorted(names):
            self.announce(job, name, seen)

    def announce(self, job, name, seen=()):
        """Tell of one marker if it stands; its identity and token are of one and the same file."""
        path, token = self.root + under(job, name), ()
        try:
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode) and name not in REQUESTS and not name.startswith(HIDDEN):
                found, token = read_token(path)
        except OSError:
            return  # it has gone since; another event, or a listing, says what came
        if not stat.S_ISREG(found.st_mode):
            self.refuse(under(job, name), "the marker is not a regular file")
            return
        if self.remember or self.unwatched:
            key = hash((job, name, found.st_mtime_ns))
            self.seen.add(key)
            if key in seen:
                return
        if self.relay.older and name == REQUESTS[0] and not self.relay.older.is_news(self, job, found.st_mtime_ns):
            return
        self.relay.tell(self.name, name, job, str(found.st_mtime_ns), *token)

    # --- jobs that are designated by name

    def designated(self, job):
        """Tell of the PENDING of a job that somebody has named; return why that is refused, or ""."""
        refused = self.not_a_job(job)
        if refused:
            return refused
        older, ns = self.relay.older, self.pending(job)
        if ns is not None:
            if older.is_news(self, job, ns, by_name=True):
                self.relay.tell(self.name, REQUESTS[0], job, str(ns))
        elif self.relay.names:
            self.relay.tell(self.name, REQUESTS[0], job, "-")  # to the older programs the name alone was the request
        elif not older.told(self, job):  # else it was told, and has been taken off since
            return "PENDING does not stand there"
        return ""

    def not_a_job(self, job):
        """Return why a name that came from elsewhere is none of a job of this tree, or ""."""
        parts = job.split(b"/")
        answers = [part != b"" and judge(part, glob) for part, glob in zip(parts, self.globs)]
        if len(parts) != len(self.globs) or False in answers:
            return "it is not of the form " + "/".join(self.globs)
        for answer, depth in zip(answers, range(1, len(parts) + 1)):
            if answer is not True:
                return answer
            try:
                mode = os.lstat(self.root + b"/".join(parts[:depth])).st_mode
            except OSError as trouble:
                return trouble.strerror
            if not stat.S_ISDIR(mode):
                return "a symbolic link, which is not followed" if stat.S_ISLNK(mode) else "it is not a directory"
        return ""

    def pending(self, job):
        """Return the identity of a job's PENDING, also of one that is being taken off; None if there is none."""
        for name in REQUESTS[0], HIDDEN + REQUESTS[0]:
            try:
                found = os.lstat(self.root + under(job, name))
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode):
                return found.st_mtime_ns
        return None

    # --- events

    def events(self):
        """Read what has happened and tell it. Return whether the tree must be listed again."""
        told, again = set(), False
        for wd, mask, name in self.inotify.read():
            if name not in self.markers and not mask & RARE:
                continue  # a job's own files: thousands of them
            path = self.paths.get(wd)
            if mask & Q_OVERFLOW or (path == b"" and mask & (IGNORED | MOVE_SELF | UNMOUNT)):
                again = True
            elif mask & IGNORED:
                self.paths.pop(wd, None)
            elif path is not None and mask & MOVE_SELF:
                self.rehome(wd, path)
            elif path is not None:
                self.happened(path, path.count(b"/") + 1 if path else 0, mask, name, told)
        return again

    def happened(self, path, depth, mask, name, told):
        if depth == len(self.globs):
            if name in self.markers and not mask & ISDIR and (path, name) not in told:
                told.add((path, name))
                self.announce(path, name)
            elif name in self.markers and mask & ISDIR:
                self.refuse(under(path, name), "the marker is not a regular file")
        elif not name:
            return  # about the directory itself
        elif mask & MOVED_FROM:
            self.forget(under(path, name), depth + 1)
        else:
            self.appeared(path, name, depth)

    def appeared(self, path, name, depth):
        """Take in a directory that was made or moved here, with all that is in it already."""
        entry = Entry(self.root + under(path, name), name)
        if self.may_be_job(path, entry, depth):
            for job in self.explore(under(path, name), depth + 1):
                self.look(job)

    def rehome(self, wd, path):
        """After a move: end the watch, and begin again with what is now where the directory is thought to be."""
        del self.paths[wd]
        self.inotify.remove(wd)
        for job in self.explore(path, path.count(b"/") + 1):
            self.look(job)

    def forget(self, path, depth):
        """End the watches on what was moved away with a directory above jobs; a job's own goes by its MOVE_SELF."""
        if depth < len(self.globs):
            for wd in [wd for wd, where in self.paths.items() if where == path or where.startswith(path + b"/")]:
                del self.paths[wd]
                self.inotify.remove(wd)


class Entry(collections.namedtuple("Entry", "path name")):
    """What os.DirEntry says, for one path."""

    def is_symlink(self):
        return os.path.islink(self.path)

    def is_dir(self, follow_symlinks=True):
        return os.path.isdir(self.path) and (follow_symlinks or not self.is_symlink())


def read_token(path):
    """Return (stat, (token,)) of a marker, "-" if it has none; raises OSError. Never waits for a FIFO, never follows a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        tokens = TOKEN.findall(os.read(fd, MAX_MARKER)) if stat.S_ISREG(found.st_mode) else []
        return found, (tokens[-1] if tokens else b"-",)
    finally:
        os.close(fd)


class Older:
    """The protocol of older programs: names of jobs in a file, and a signal. Three files in one directory:

    relay.lock   whoever appends names, takes them or puts up a process id holds an exclusive flock(2) on it meanwhile
    relay.names  one JOB a line; renamed to a hidden name before it is read, removed when all of it has been told
    relay.pid    the process id of the relay that lives, which holds an exclusive flock on that very file. It is renamed into
                 place with the lock on it, so under its name there is never a stale id that is locked.

    A sender, holding relay.lock: append the line; ask for a *shared* flock on relay.pid, without waiting; if it is refused,
    a relay lives: signal it. Else leave the names for the next one. In shell:
        exec 9>>relay.lock; flock 9; echo JOB >>relay.names; flock -s -n relay.pid true || kill -30 "$(cat relay.pid)"
    """

    def __init__(self, directory, relay):
        self.directory, self.relay, self.pid_file = directory, relay, None
        self.due, self.tries, self.half, self.troubles = 0.0, 0, None, set()
        self.recent, self.before, self.turn = {}, {}, 0.0
        self.pipe, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(OLDER_SIGNAL, lambda *_: None)  # before the process id is put up: until here the signal kills
        signal.set_wakeup_fd(writer)  # the signal itself wakes no poll(2), as Python repeats it (PEP 475)

    def path(self, name):
        return os.path.join(self.directory, name)

    # --- what was told

    def is_news(self, tree, job, ns, by_name=False):
        """Return whether a PENDING is to be told: an event may tell what a name has told already, and the other way."""
        if time.monotonic() > self.turn:
            self.before, self.recent, self.turn = self.recent, {}, time.monotonic() + RECENT
        told, named = self.told(tree, job) or (None, False)
        if told == ns and (by_name or named or self.relay.names) and not tree.listing:
            return False
        self.recent[tree.name, job] = ns, by_name
        return True

    def told(self, tree, job):
        """Return (identity, whether by name) of the PENDING of a job that was told not long ago, or None."""
        return self.recent.get((tree.name, job)) or self.before.get((tree.name, job))

    # --- when

    def drain(self):
        """A signal has come: look at once. However many have come, the file has all the names."""
        while True:
            try:
                if len(os.read(self.pipe, 4096)) < 4096:
                    break
            except BlockingIOError:
                break
        self.due, self.tries = 0.0, 0

    def look_again(self):
        """Look at each heartbeat: a writer may have been killed before its signal, another relay may have ended."""
        self.due = 0.0
        if self.pid_file is not None and not same_file(self.pid_file, self.path(PID)):
            os.close(self.pid_file)  # somebody has removed or replaced it, so that no sender finds us
            self.pid_file = None

    def serve(self):
        """Do what is due: put up the process id, tell the names that are there. Never waits for anybody."""
        if time.monotonic() < self.due:
            return
        self.due = float("inf")
        try:
            waits_for = self.pid_file is None and self.claim() or self.take()
        except OSError as trouble:
            self.error("files", "%s: %s; names left there are not heard" % (self.directory, trouble.strerror))
            return
        if not waits_for:
            self.tries = 0
            self.troubles.clear()
            return
        self.tries += 1
        if self.tries < 20:
            self.due = time.monotonic() + 0.1
        else:  # from now on at each heartbeat
            self.error(waits_for, waits_for)

    def error(self, kind, text):
        if kind not in self.troubles:
            self.troubles.add(kind)
            self.relay.say("#error " + printable(text))

    # --- the process id

    def locked(self):
        """Return a descriptor that holds relay.lock, or None if somebody else has it at the moment."""
        fd = os.open(self.path(LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        if flock(fd, fcntl.LOCK_EX):
            return fd
        os.close(fd)
        return None

    def claim(self):
        """Put up our process id. Return "", or what stands in the way."""
        lock = self.locked()
        if lock is None:
            return "%s is held by another program; names are not heard until it lets go" % self.path(LOCK)
        try:
            other = self.other_relay()
            if other:
                return "another relay (process %s) serves %s; the names left there go to that one while it lives" % (other, self.directory)
            self.put_up()
            return ""
        finally:
            os.close(lock)

    def other_relay(self):
        """Return the process id of the relay that lives, "" if none does. A shared lock: senders ask for one at any time."""
        try:
            fd = os.open(self.path(PID), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        try:
            return "" if flock(fd, fcntl.LOCK_SH) else printable(os.read(fd, 20).strip()) or "?"
        finally:
            os.close(fd)

    def put_up(self):
        new = self.path(NEW_PID)
        try:
            os.unlink(new)
        except FileNotFoundError:
            pass
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            flock(fd, fcntl.LOCK_EX)
            os.write(fd, b"%d\n" % os.getpid())
            os.rename(new, self.path(PID))
        except OSError:
            os.close(fd)
            raise
        self.pid_file = fd

    def leave(self):
        """Empty relay.pid, for senders that test no lock."""
        if self.pid_file is not None:
            os.ftruncate(self.pid_file, 0)

    # --- the names

    def take(self):
        """Tell the names that are there, first those that an earlier relay had taken. Return "", or what stands in the way."""
        if any(tree.identity is None for tree in self.relay.trees):
            return "names in %s wait until all trees are there" % self.path(NAMES)  # or each would be refused, and lost
        while True:
            if os.path.lexists(self.path(TAKEN)):
                if not self.tell_taken():
                    return ""
            if not os.path.lexists(self.path(NAMES)):
                return ""
            if not stat.S_ISREG(os.lstat(self.path(NAMES)).st_mode):
                return "%s is not a regular file; remove it" % self.path(NAMES)
            lock = self.locked()
            if lock is None:
                return "%s is held by another program; names are not heard until it lets go" % self.path(LOCK)
            try:
                os.rename(self.path(NAMES), self.path(TAKEN))
            finally:
                os.close(lock)

    def tell_taken(self):
        """Tell the names that were taken; remove them when they are told. Return False if the last one is waited for."""
        fd = os.open(self.path(TAKEN), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            data = file.read()
        if data[-1:] not in (b"", b"\n") and self.waits_for_end():
            return False
        self.half = None
        self.tell(line for line in data.split(b"\n") if line.strip())
        self.relay.flush()  # raises Gone if nobody reads: then the next relay tells them
        os.unlink(self.path(TAKEN))
        return True

    def waits_for_end(self):
        """Return whether to wait for the end of a last line: its writer, who holds no lock, may be about to write it."""
        now = time.monotonic()
        self.half = self.half or now + HALF
        self.due = self.half
        return now < self.half

    def tell(self, lines):
        """Tell each job once, and each name that is refused."""
        refused = 0
        for count, job in enumerate(collections.OrderedDict.fromkeys(line[:-1] if line.endswith(b"\r") else line for line in lines), 1):
            reasons = [tree.designated(job) for tree in self.relay.trees]
            if all(reasons):
                refused += 1
                if refused <= MAX_BAD:
                    self.relay.say(b"#bad " + self.relay.trees[0].name, "%s: %s (a name in %s)" % (printable(job), reasons[0], NAMES))
            if count % PULSE == 0:
                self.relay.pulse()
        if refused > MAX_BAD:
            self.relay.say("#error %d more names in %s were refused" % (refused - MAX_BAD, NAMES))


def flock(fd, kind):
    """Return whether a lock on an open file was to be had at once."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def same_file(fd, path):
    """Return whether an open file is the one that stands under a name."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False


class Relay:
    """The trees, the caller on the standard streams, and the clock."""

    def __init__(self, options):
        self.names, self.poll, self.heartbeat = options.names, options.poll, options.heartbeat
        self.nonce, self.silent, self.relist = options.nonce, options.no_list, False
        self.out, self.input, self.listening = [], b"", True
        markers = [os.fsencode(marker) for marker in options.markers.split(",") if marker]
        self.trees = [Tree(spec, markers, self) for spec in options.tree]
        self.older = Older(options.directory, self) if options.directory else None
        self.next_beat = time.monotonic() + self.heartbeat
        self.next_poll = 0.0

    # --- the caller

    def say(self, *fields):
        """Write one line about the relay itself; with --names there are none on standard output."""
        line = b" ".join(f if isinstance(f, bytes) else f.encode("utf-8", "replace") for f in fields)
        if not self.names:
            self.out.append(line + b"\n")
        elif line.startswith((b"#error", b"#bad")):
            os.write(2, b"relay: " + line[1:] + b"\n")

    def tell(self, tree, marker, job, identity, *token):
        """Write the line of one marker."""
        if self.silent:
            return
        fields = (job,) if self.names else (tree, marker, job, identity.encode()) + token
        self.out.append(b"\t".join(fields) + b"\n")
        if len(self.out) >= 500:
            self.flush()

    def flush(self):
        data, self.out = b"".join(self.out), []
        try:
            while data:
                data = data[os.write(1, data):]
        except (BrokenPipeError, ConnectionResetError):
            raise Gone()

    def hear(self):
        """Read what the caller says; raise Gone at its end."""
        data = os.read(0, 65536)
        if not data and not self.names:
            raise Gone()
        self.listening = bool(data)  # older callers may have no standard input: their end shows at standard output
        lines = (self.input + data).split(b"\n")
        self.input = lines.pop()[-1000:]
        self.relist = self.relist or b"list" in [line.strip() for line in lines]
        if lines:
            self.caller_lives()

    def caller_lives(self):
        """Wind up the clock that ends this process, also while it hangs in a write or on a dead disk."""
        if not self.names:
            signal.setitimer(signal.ITIMER_REAL, 3 * self.heartbeat)

    def pulse(self):
        """Beat and listen, also during a long listing. Return whether it was time for a beat."""
        beat = time.monotonic() >= self.next_beat
        if beat:
            self.next_beat = time.monotonic() + self.heartbeat
            self.say("#beat")
            self.flush()
        if self.listening and select.select([0], [], [], 0)[0]:
            self.hear()
        return beat

    # --- the work

    def list(self, tree, all_of_it=True):
        """List a tree and set the time for the next listing of what is not watched."""
        began = time.monotonic()
        tree.list(all_of_it)
        if all_of_it and tree.identity:
            self.say(b"#watching" if self.silent else b"#listed", tree.name)
        self.flush()
        now = time.monotonic()
        self.next_poll = max(self.next_poll, now + max(self.poll, 4 * (now - began)))  # a slow disk is not read all the time

    def list_trees(self):
        """List what the caller asked for, and what is not watched when its time has come."""
        asked, self.relist = self.relist, False
        due = time.monotonic() >= self.next_poll
        for tree in self.trees:
            if asked or (due and tree.polled()):
                self.list(tree, all_of_it=asked)

    def look_for_trees(self):
        """Begin anew with trees that went, came or were replaced."""
        for tree in self.trees:
            if tree.moved():
                tree.open()
                self.list(tree)

    def wait(self):
        """Wait for the caller, an event or the clock, and answer."""
        poller = select.poll()
        sources = {tree.inotify.fd: tree for tree in self.trees if tree.inotify}
        for fd in sources:
            poller.register(fd, select.POLLIN)
        poller.register(1, 0)  # says only that nobody reads any more
        if self.listening:
            poller.register(0, select.POLLIN)
        if self.older:
            poller.register(self.older.pipe, select.POLLIN)
        due = min([self.next_beat] + [self.next_poll for tree in self.trees if tree.polled()] + ([self.older.due] if self.older else []))
        for fd, _ in poller.poll(max(0, due - time.monotonic()) * 1000 + 1):
            if fd == 1:
                raise Gone()
            if fd == 0:
                self.hear()
            elif fd not in sources:
                self.older.drain()
            elif sources[fd].events():
                sources[fd].identity = LOST

    def run(self):
        """Serve until the caller is gone."""
        signal.signal(signal.SIGALRM, lambda *_: self.end())
        self.caller_lives()
        self.say("#relay %s %d" % (self.nonce, VERSION))
        self.flush()
        self.look_for_trees()
        self.silent = False
        beat = False
        while True:
            if self.older:
                beat and self.older.look_again()
                self.older.serve()
                self.flush()
            self.wait()
            beat = self.pulse()
            if beat or LOST in [tree.identity for tree in self.trees]:
                self.look_for_trees()
            self.list_trees()
            self.flush()

    def end(self):
        """End at once: nothing is left to say, and nobody to say it to; the interpreter must not try at exit."""
        if self.older:
            self.older.leave()
        os._exit(0)


OLDER_HELP = """\
files of the older protocol (--directory):
  relay.pid    process id of the relay that lives and holds an flock(2) on this file; it listens to signal 30
  relay.names  names of jobs to be announced, one a line; taken at the start, at signal 30 and at each heartbeat
  relay.lock   held (flock) by whoever appends to relay.names
hand over a job, in that directory:
  (flock 9; echo USER/EXP >>relay.names; flock -s -n relay.pid true || kill -30 "$(cat relay.pid)") 9>>relay.lock

Started as relay_ties_directories it needs no options: it prints the names of the jobs with a PENDING in ../user_data
(seen from where this file lies) as they come, until nobody reads its standard output, and keeps its three files beside itself."""


def arguments(argv, called=""):
    """Return the options. called: the path by which the program was started; under its older name it needs none."""
    parser = argparse.ArgumentParser(
        description="Announce the markers in trees of jobs, one line each, until the reader is gone.",
        epilog=OLDER_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--nonce", help="a word that the first line repeats")
    parser.add_argument("--tree", action="append", metavar="NAME=DIR=PATTERN", help="for example exp=user_data=*/*")
    parser.add_argument("--markers", metavar="MARKER,...", help="default: PENDING,CANCEL")
    parser.add_argument("--heartbeat", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--poll", type=float, default=30.0, metavar="SECONDS", help="how often what cannot be watched is listed")
    parser.add_argument("--no-list", action="store_true", help="tell only what happens from now on")
    parser.add_argument("--names", action="store_true", help="print the names of jobs and nothing else, as the older programs had it")
    parser.add_argument("--directory", metavar="DIR", help="serve the older protocol by relay.pid, relay.names and relay.lock there")
    options = parser.parse_args(argv)
    if os.path.basename(called) == OLDER_NAME:
        beside = os.path.dirname(os.path.abspath(called))
        options.directory = options.directory or beside
        options.tree = options.tree or ["ties=%s=*/*" % os.path.join(os.path.dirname(beside), "user_data")]
        options.names = options.names or options.nonce is None
        options.markers = options.markers or "PENDING"  # a name alone cannot tell that it is a CANCEL
    if not options.tree:
        parser.error("--tree NAME=DIR=PATTERN is needed")
    for spec in options.tree:
        if spec.count("=") < 2:
            parser.error("--tree %s: it is not NAME=DIR=PATTERN" % printable(spec))
    options.nonce = options.nonce or "-"
    options.markers = options.markers or "PENDING,CANCEL"
    return options


def main(argv=None):
    relay = Relay(arguments(argv, sys.argv[0]))
    try:
        relay.run()
    except (Gone, KeyboardInterrupt):
        relay.end()


if __name__ == "__main__":
    sys.exit(main())
