"""Says which directories of a tree on this machine are jobs, and which names in them count.

Knows: how deep jobs lie, what a directory must be and be called, what is refused and why.
Must not know: how changes are noticed, what is done about a job.

Paths are relative to the tree's root ("" is the root itself), depth 0 is the root. No symbolic link below the root is followed.
"""

import fnmatch
import os
import re

from watchties.errors import BadJobName
from watchties.model import MARKERS, REQUESTS, TAKEN, check_job_name

HIDDEN = ".watchties"  # every hidden name of ours begins with it
COUNT = frozenset(MARKERS) | {TAKEN + request for request in REQUESTS}  # a change of such a name concerns the daemon
LINK = "it is a symbolic link, which is not followed"

_plain = re.compile(r"[!#-,/-~][ -~]*\Z").match  # ASCII, not hidden, no leading dash: most names, judged at once


class JobDirs:
    """The directories of one tree. `refuse(path, reason)` is told of each that could be a job but for one thing."""

    def __init__(self, root, pattern):
        self.root, self.pattern = os.path.abspath(root), pattern
        self.globs = pattern.split("/")
        self.depth = len(self.globs)

    def at(self, path):
        """Return a path of the tree as an absolute one."""
        return f"{self.root}/{path}" if path else self.root

    def children(self, path, depth, refuse=lambda path, reason: None):
        """Return the directories in a directory that may be (a part of) a job; raise OSError where it cannot be read."""
        with os.scandir(self.at(path)) as entries:
            return [child for e in entries if self.may_be_job(child := f"{path}/{e.name}" if path else e.name, e, depth, refuse)]

    def may_be_job(self, path, entry, depth, refuse):
        """Return whether an entry (of os.scandir) in a directory of this depth may be (a part of) a job."""
        name, glob = entry.name, self.globs[depth]
        if name.startswith("."):
            return False
        if not entry.is_dir(follow_symlinks=False):
            if entry.is_symlink() and os.path.isdir(entry.path):  # DirEntry.is_dir raises for a link to itself
                refuse(path, LINK)
            return False
        if not _plain(name):
            try:
                check_job_name(name, "*")
            except BadJobName as bad:
                refuse(path, str(bad).rpartition(": ")[2])
                return False
        return glob == "*" or fnmatch.fnmatchcase(name, glob)

    def names(self, job):
        """Return the markers and our hidden names directly in a job, as a frozenset; raise OSError where it cannot be read."""
        return frozenset([name for name in os.listdir(self.at(job)) if name.startswith(HIDDEN) or name in COUNT])

    def link_in(self, path):
        """Return the first part of a path that is a symbolic link, "" if none is."""
        parts = path.split("/")
        paths = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
        return next((part for part in paths if os.path.islink(self.at(part))), "")


class Entry:
    """What os.DirEntry says, for one absolute path."""

    def __init__(self, path):
        self.path, self.name = path, os.path.basename(path)

    def is_symlink(self):
        return os.path.islink(self.path)

    def is_dir(self, follow_symlinks=True):
        return os.path.isdir(self.path) and (follow_symlinks or not self.is_symlink())
