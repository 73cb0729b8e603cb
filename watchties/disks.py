"""What is wrong with the disk below a directory: full, without inodes, read-only, away.

Knows: statvfs(3), and how much room counts as none.
Must not know: what the directory is for, what is done about it.
"""

import os

AMPLE = 1.1  # times the floor: so much must be free before a disk that was full is told to be well again
INODES = 50  # so few files more are none: a job brings that many
STATE_FLOOR = 1 << 18  # bytes that the state directory needs at least


def trouble(root, floor):
    """Return (why nothing may be brought to a directory, or "", whether there is so much room that it will not be so again at once)."""
    try:
        found = os.statvfs(root)
    except OSError as error:
        return f"{root} cannot be read ({error.strerror}); nothing is brought there", False
    if found.f_flag & os.ST_RDONLY:
        return f"the disk of {root} is read-only; look why, and remount it", False
    free = found.f_bavail * found.f_frsize
    if free < floor:
        return f"only {_size(free)} are free at {root}, less than {_floor(floor)}; make room", False
    if found.f_files and found.f_favail < INODES:
        return f"only {found.f_favail} more files can be made at {root}, its disk has no more inodes; remove files", False
    return "", free >= floor * AMPLE


def _size(size):
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} kB"


def _floor(floor):
    return f"{_size(floor)}, which it needs" if floor == STATE_FLOOR else f"disk_floor ({_size(floor)})"
