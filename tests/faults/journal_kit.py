"""What may befall the journal: it is deleted, truncated, replaced by garbage.

Knows: the names of SQLite's files. Must not know: what is in them.
"""

import contextlib
import os
import random

NAMES = ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm")


def deleted(paths, draw):
    """Remove all its files, or the journal alone."""
    for path in paths if draw.random() < 0.5 else paths[:1]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def truncated(paths, draw):
    """Cut the journal, or what was written ahead, somewhere."""
    path = draw.choice(paths[:2])
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, draw.choice([0, int(os.stat(path).st_size * draw.random())]))


def replaced(paths, draw):
    """Put garbage in place of the journal, as a new file, whatever is written ahead."""
    with open(f"{paths[0]}.garbage", "wb") as file:
        file.write(draw.randbytes(draw.choice([100, 5000, 100_000])))
    os.rename(f"{paths[0]}.garbage", paths[0])


SPOILS = {"deleted": deleted, "truncated": truncated, "replaced by garbage": replaced}


def spoiled(how, seed):
    """Return a function (site) that spoils its journal, if there is a place for one yet."""
    return lambda site: site.state.is_dir() and SPOILS[how]([str(site.state / name) for name in NAMES], random.Random(seed))
