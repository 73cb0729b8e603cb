"""Says on what kind of file system a path lies, and whether inotify serves there.

Knows: /proc/self/mountinfo (proc(5)), names of file systems.
Must not know: what is watched, and how.
"""

import os
import re

# Others write there, and inotify tells only of what this machine itself does (inotify(7), limitations).
NETWORK = frozenset(
    "9p acfs afs beegfs ceph cifs coda davfs davfs2 drvfs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs "
    "prl_fs pvfs2 smb3 smbfs vboxsf virtiofs vmhgfs wekafs".split()
)
LOCAL_FUSE = frozenset(["fuse.fuse-overlayfs"])


def backend_for(kind):
    """Return "inotify" or "polling" for a file system type; every FUSE file system that is not known is taken for a remote one."""
    remote = kind in NETWORK or kind == "fuse" or (kind.startswith("fuse.") and kind not in LOCAL_FUSE)
    return "polling" if remote else "inotify"


def file_system(path, mountinfo="/proc/self/mountinfo"):
    """Return the type of the file system that a path lies on, "" if /proc does not tell."""
    path, best, kind = os.path.realpath(path) + "/", "", ""
    try:
        with open(mountinfo, errors="surrogateescape") as lines:
            for mount, found in map(_mount, lines):
                if path.startswith(mount) and len(mount) >= len(best):  # of two at one place the later one is on top
                    best, kind = mount, found
    except OSError:
        pass
    return kind


def _mount(line):
    left, _, right = line.partition(" - ")
    raw = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left.split()[4])
    return raw.rstrip("/") + "/", right.split()[0]
