"""What the disk of one machine holds after a power cut: what was synced for certain, and what a file system may show of the rest.

Knows: names and contents, as inodes; which calls make which of them lasting (fsync(2), syncfs(2)).
Must not know: what the files mean.

Nothing is recorded but the order of calls: each is held while the disk is looked at (calls.py), so that what a sync is about to
make lasting can be read from the disk itself. An open descriptor keeps each inode that was ever seen: it can be read
after its name is gone, and its number is nobody else's.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Inode(NamedTuple):
    """key: device and number; fd: an open descriptor (O_PATH for what is no file); kind: of stat.S_IFMT."""

    key: tuple
    fd: int
    kind: int
    link: str


class Disk:
    """One machine's directories. roots: what lies on its disk; skip(path): directories at rest, which nobody looks into.

    What stands when it is made counts as lasting: as after a `sync`.
    """

    def __init__(self, roots, skip=lambda path: False):
        self.roots, self.skip, self.inodes = [str(root) for root in roots], skip, {}
        self.names = self._scan()  # path -> key, as lasting; of a directory: all its names at its last sync
        self.contents = {key: self._read(key) for key in self.inodes}
        self.history = []  # what stood before each call since the last sync of anything: that writes a journal to its end

    def close(self):
        for inode in self.inodes.values():
            os.close(inode.fd)

    def holds(self, path):
        return any(path == root or path.startswith(root + "/") for root in self.roots)

    def before(self, call):
        """Take in a call that is about to be done."""
        if call.name in ("syncfs", "sync"):
            if call.name == "sync" or self.holds(call.path):
                self.sync_all()
        elif not any(map(self.holds, call.paths)):
            return
        elif call.name in ("fsync", "fdatasync"):
            self._sync_one(call.path)
            self.history = []
        elif call.name != "write":
            self.history.append(self._scan())

    def sync_all(self):
        self.names = self._scan()
        self.history = []
        self.contents |= {key: self._read(key) for key in self.names.values()}

    def is_lasting(self, path):
        """Return whether a file would be whole under its name after a power cut now."""
        key = self._key(path)
        return self.names.get(path) == key and self.has_lasting_content(path)

    def has_lasting_content(self, path):
        key = self._key(path)
        return key in self.contents and self.contents[key] == self._read(key)

    # ---- after the cut ----

    def rewind(self, how, draw):
        """Make the disk what it may be after a power cut now: how is one of "synced", "named", "mixed"; return the names that stand."""
        now = self._scan()
        history = [*self.history, now]
        names = {"synced": self._reachable(), "named": now}.get(how) or draw.choice(history)
        contents = {key: self._after(key, how, draw) for key in set(names.values())}
        modes = {key: os.fstat(self.inodes[key].fd) for key in contents}
        for path in sorted(now.keys() - names.keys(), reverse=True):
            (os.rmdir if self.inodes[now[path]].kind == stat.S_IFDIR else os.unlink)(path)
        made = {}
        for path in sorted(names):
            self._restore(path, names[path], now.get(path), contents, modes, made)
        for path in sorted(names, reverse=True):  # what a directory holds changes its time
            if self.inodes[names[path]].kind == stat.S_IFDIR:
                os.utime(path, ns=(modes[names[path]].st_mtime_ns,) * 2)
        return names

    def _reachable(self):
        """Return the lasting names whose directory is lasting too."""
        found = {}
        for path in sorted(self.names):
            if path in self.roots or os.path.dirname(path) in found:
                found[path] = self.names[path]
        return found

    def _after(self, key, how, draw):
        """Return what a file holds: as synced; or, of what was not, nothing, a part, or all."""
        current, lasting = self._read(key), self.contents.get(key, b"")
        if how != "mixed" or current == lasting:
            return lasting
        return draw.choice([lasting, current, current[: len(current) // 2]])

    def _restore(self, path, key, stands, contents, modes, made):
        inode = self.inodes[key]
        if stands is not None and stands != key:
            (os.rmdir if self.inodes[stands].kind == stat.S_IFDIR else os.unlink)(path)
        if key in made and inode.kind != stat.S_IFDIR:
            if stands != key:
                os.link(made[key], path)
        elif inode.kind == stat.S_IFDIR:
            Path(path).mkdir(exist_ok=True)
        elif inode.kind == stat.S_IFLNK:
            if stands != key:
                os.symlink(inode.link, path)
        elif inode.kind == stat.S_IFREG and (stands != key or self._read(key) != contents[key]):
            Path(path).write_bytes(contents[key])
        made[key] = path
        if inode.kind in (stat.S_IFREG, stat.S_IFDIR) and os.path.lexists(path):
            os.chmod(path, stat.S_IMODE(modes[key].st_mode))
            os.utime(path, ns=(modes[key].st_mtime_ns,) * 2)

    # ---- looking ----

    def _scan(self):
        """Return path -> key of all that stands, and keep every inode."""
        found, look = {}, [root for root in self.roots if os.path.isdir(root)]
        for root in look:
            self._keep(found, root)
        while look:
            folder = look.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            for entry in entries:
                if self.skip(entry.path):
                    continue
                self._keep(found, entry.path)
                if entry.is_dir(follow_symlinks=False):
                    look.append(entry.path)
        return found

    def _keep(self, found, path):
        try:
            info = os.lstat(path)
            key = info.st_dev, info.st_ino
            if key not in self.inodes:
                kind = stat.S_IFMT(info.st_mode)
                how = os.O_RDONLY if kind in (stat.S_IFREG, stat.S_IFDIR) else os.O_PATH
                fd = os.open(path, how | os.O_NOFOLLOW | os.O_CLOEXEC)
                self.inodes[key] = Inode(key, fd, kind, os.readlink(path) if kind == stat.S_IFLNK else "")
        except OSError:  # it went while we looked
            return
        found[path] = key

    def _key(self, path):
        info = os.lstat(path)
        return info.st_dev, info.st_ino

    def _read(self, key):
        inode = self.inodes[key]
        return os.pread(inode.fd, os.fstat(inode.fd).st_size, 0) if inode.kind == stat.S_IFREG else b""

    def _sync_one(self, path):
        try:
            key = self._key(path)
        except OSError:
            return
        if os.path.isdir(path):
            now = self._scan()
            direct = lambda names: {name: k for name, k in names.items() if os.path.dirname(name) == path}  # noqa: E731
            self.names = {name: k for name, k in self.names.items() if os.path.dirname(name) != path} | direct(now)
        elif key in self.inodes or self._scan() and key in self.inodes:
            self.contents[key] = self._read(key)


WAYS = ("synced", "named", "mixed")
