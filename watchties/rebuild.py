"""The journal's index from the disk alone.

Knows: that every job's state is in its record.
Must not know: who asks, and when.
"""

import os

from watchties import recordfile
from watchties.errors import WatchtiesError
from watchties.watch import MirrorWatch


def rows(config):
    """Yield the journal's row of every job in every mirror: (tree, job, state, attempt, host, reason, since, waiting_on)."""
    for name, tree in config.tree.items():
        if not os.path.isdir(tree.root):
            continue
        for job, _ in MirrorWatch(tree.root, tree.jobs).scan():
            where = os.path.join(tree.root, job)
            try:
                rec = recordfile.load(where)
                since = os.stat(os.path.join(recordfile.directory(where), recordfile.FILE)).st_mtime
            except (WatchtiesError, OSError):
                continue
            if rec.phase:
                yield name, job, rec.phase, rec.attempt, rec.host, rec.fields.get("reason", ""), since, ""
