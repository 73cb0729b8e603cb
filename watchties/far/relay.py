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
"""

import argparse
import collections
import ctypes
import errno
import fnmatch
import os
import re
import select
import signal
import stat
import struct
import sys
import time

VERSION = 1

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
        self.inotify, self.paths, self.unwatched, self.seen, self.remember = None, {}, 0, set(), False

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
        seen, self.seen, self.remember, self.unwatched = self.seen, set(), self.polled(), 0
        for count, job in enumerate(self.explore(b"", 0), 1):
            if self.remember or self.unwatched or not self.relay.silent:  # else it is only watched, and nothing told
                self.look(job, () if all_of_it else seen)
            if count % PULSE == 0:
                self.relay.pulse()
        self.remember = self.polled()
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
            if answer is not False and entry.is_symlink() and entry.is_dir():
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
        self.relay.tell(self.name, name, job, str(found.st_mtime_ns), *token)

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


class Relay:
    """The trees, the caller on the standard streams, and the clock."""

    def __init__(self, options):
        self.names, self.poll, self.heartbeat = options.names, options.poll, options.heartbeat
        self.nonce, self.silent, self.relist = options.nonce, options.no_list, False
        self.out, self.input, self.listening = [], b"", True
        markers = [os.fsencode(marker) for marker in options.markers.split(",") if marker]
        self.trees = [Tree(spec, markers, self) for spec in options.tree]
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
        due = min([self.next_beat] + [self.next_poll for tree in self.trees if tree.polled()])
        for fd, _ in poller.poll(max(0, due - time.monotonic()) * 1000 + 1):
            if fd == 1:
                raise Gone()
            if fd == 0:
                self.hear()
            elif sources[fd].events():
                sources[fd].identity = LOST
        # Programs of the older protocol (a process id in a file, a signal, a file of names) would be heard here.

    def run(self):
        """Serve until the caller is gone."""
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        self.caller_lives()
        self.say("#relay %s %d" % (self.nonce, VERSION))
        self.flush()
        self.look_for_trees()
        self.silent = False
        while True:
            self.wait()
            if self.pulse() or LOST in [tree.identity for tree in self.trees]:
                self.look_for_trees()
            self.list_trees()
            self.flush()


def arguments(argv):
    parser = argparse.ArgumentParser(description="Announce markers, one line each, until standard input ends.")
    parser.add_argument("--nonce", default="-", help="a word that the first line repeats")
    parser.add_argument("--tree", action="append", required=True, metavar="NAME=DIR=PATTERN", help="for example exp=user_data=*/*")
    parser.add_argument("--markers", default="PENDING,CANCEL", metavar="MARKER,...")
    parser.add_argument("--heartbeat", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--poll", type=float, default=30.0, metavar="SECONDS", help="how often what cannot be watched is listed")
    parser.add_argument("--no-list", action="store_true", help="tell only what happens from now on")
    parser.add_argument("--names", action="store_true", help="print the names of jobs and nothing else, as the older programs had it")
    options = parser.parse_args(argv)
    for spec in options.tree:
        if spec.count("=") < 2:
            parser.error("--tree %s: it is not NAME=DIR=PATTERN" % printable(spec))
    return options


def main(argv=None):
    try:
        Relay(arguments(argv)).run()
    except (Gone, KeyboardInterrupt):
        # Nothing is left to say, and nobody to say it to: the interpreter must not try at exit.
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
