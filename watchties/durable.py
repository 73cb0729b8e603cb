"""Writing so that a crash leaves either the old or the new, and many such writes for the price of one.

Knows: fsync, syncfs, and how plans of several jobs share one barrier.
Must not know: what is written, or for whom.

A *plan* is a generator: it does some steps on disk and yields the paths that must be durable before its next
step. `carry_out` drives many plans in step with each other, so that a thousand jobs wait for one syncfs and not
for a thousand fsyncs. Python 3.11 has no os.syncfs, hence ctypes.
"""

import contextlib
import ctypes
import errno
import os
import stat

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FEW = 12  # up to so many paths are synced one by one; above, the whole file system once

_libc = ctypes.CDLL(None, use_errno=True)


def sync(paths):
    """Make files and directories durable; a path that is gone is nobody's concern any more."""
    paths = list(dict.fromkeys(paths))
    if len(paths) <= FEW:
        for path in paths:
            _with_descriptor(path, os.fsync)
        return
    devices = set()
    for path in paths:
        _with_descriptor(path, lambda fd: _syncfs_once(fd, devices))


def sync_filesystems(root, directories):
    """Make durable all that was written to the file systems on which a root and directories below it lie: once each.

    A directory may be a disk of its own. One that is gone, or is none, is nobody's concern; it is no way to another place either.
    """
    devices = set()
    _with_descriptor(root, lambda fd: _syncfs_once(fd, devices))
    for path in directories:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            if os.stat(path, follow_symlinks=False).st_dev not in devices:
                _with_descriptor(path, lambda fd: _syncfs_once(fd, devices), os.O_DIRECTORY | os.O_NOFOLLOW)


def _with_descriptor(path, action, flags=0):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except FileNotFoundError:
        return
    try:
        action(fd)
    finally:
        os.close(fd)


def _syncfs_once(fd, devices):
    device = os.fstat(fd).st_dev
    if device in devices:
        return
    devices.add(device)
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"syncfs: {os.strerror(code)}")


def carry_out(plans):
    """Drive plans, a dict key -> generator, to their ends; return key -> value returned, or the OSError it met.

    One plan's failure is its own. A barrier that fails (the disk itself) fails every plan that waited there.
    """
    results, live = {}, dict(plans)
    while live:
        paths = []
        for key, plan in list(live.items()):
            try:
                paths += next(plan)
            except StopIteration as stop:
                results[key] = stop.value
                del live[key]
            except OSError as error:
                results[key] = error
                del live[key]
        try:
            sync(paths)
        except OSError as error:
            results.update(dict.fromkeys(live, error))
            return results
    return results


def write_new(path, data):
    """Write bytes to a file made anew (or emptied), and return its mtime in nanoseconds. A link or a pipe there gives way to it."""
    try:
        fd = os.open(path, NEW_FILE, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        os.unlink(path)
        fd = os.open(path, NEW_FILE, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


def read_plain(path):
    """Return the bytes of a file of ours; raise OSError also where a link, or anything else that is no file, stands in its place."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        return file.read()


def replace(path, data, before=()):
    """Plan: put `data` (bytes) in place of the file `path`, whole or not at all; after the paths `before` are durable."""
    new = f"{path}.new"
    write_new(new, data)
    yield [new, *before]
    os.rename(new, path)
    yield [os.path.dirname(path)]
