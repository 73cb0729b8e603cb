"""One daemon or pass to a mirror: two with different state directories would both carry its jobs, and each would run twice.

Knows: names in the kernel that end with their holder (unix(7), abstract sockets), who holds one.
Must not know: what is done in a tree.

No file is kept open in a tree for this, as it could not be unmounted then; nothing is left by a crash. A mirror has two names, its
path and its device and inode, so that neither a link nor a disk that is mounted later hides one from another. It holds on one machine.
A name that a stranger holds, who can not write there anyway, stops nobody.
"""

import contextlib
import hashlib
import os
import socket
import struct
import time

from watchties.errors import UserError

IN_DOUBT, GLANCE = 3.0, 0.05  # seconds to find out who has a name; between two looks
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred


class TreeLocks:
    """The mirrors that this process holds: tree's root -> its sockets."""

    def __init__(self):
        self.held = {}

    def take(self, trees):
        """Hold the mirrors of these trees, name -> Tree, and let go of others. Raises UserError, with nothing changed, if another one has one."""
        wanted, new = {os.path.realpath(tree.root): name for name, tree in trees.items()}, {}
        try:
            for root, name in wanted.items():
                if root not in self.held:
                    new[root] = _hold(name, root)
        except UserError:
            _close(new.values())
            raise
        _close(self.held.pop(root) for root in self.held.keys() - wanted.keys())
        self.held |= new

    def close(self):
        """Let go of all."""
        _close(self.held.values())
        self.held = {}


def _close(many):
    for sockets in many:
        for each in sockets:
            each.close()


def _hold(name, root):
    """Return the sockets that hold a mirror; raise UserError that says who has it."""
    os.makedirs(root, exist_ok=True)
    about, found = os.stat(root), []
    for text in root, f"{about.st_dev}:{about.st_ino}":
        try:
            found.append(_bind(b"\0watchties-" + hashlib.sha256(os.fsencode(text)).hexdigest().encode(), {0, os.geteuid(), about.st_uid}))
        except BlockingIOError as held:
            _close([found])
            raise UserError(
                f"tree {name}: {root} is in the hands of another watchties (pid {held.errno or 'unknown'}), which has another state "
                "directory; two would run its jobs twice: stop one of them, or take the tree out of its configuration"
            ) from None
    return found


def _bind(name, users):
    """Return a socket that has a name, or would have it but for a stranger; raise BlockingIOError(pid) if one of these users has it."""
    deadline = time.monotonic() + IN_DOUBT
    while True:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # closed in what is executed
        try:
            one.bind(name)
            one.listen()
            return one
        except OSError:
            pid, uid = _holder(name)
            if uid in users or (uid is None and time.monotonic() > deadline):
                one.close()
                raise BlockingIOError(pid, "held") from None
            if uid is not None:
                return one
        one.close()
        time.sleep(GLANCE)  # whoever has it has just come, or has just gone


def _holder(name):
    """Return (pid, uid) of who has a name; (0, None) if he has just come, or gone."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(1)
        other.connect(name)
        return CREDENTIALS.unpack(other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[:2]
    return 0, None
