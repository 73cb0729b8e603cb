"""Waiting for many jobs at next to no cost.

Knows: how a job shows that it has gone its way, and that a site whose logs do not grow is not at work.
Must not know: what is measured meanwhile.
"""

import os
import time

SILENCE = 60.0  # seconds
SAID = 5000  # characters of the logs, when something goes wrong


def until_done(site, jobs):
    """Wait until every job's directory shows DONE; what is asked of the disk meanwhile is next to nothing."""
    left = list(jobs)
    while left:
        while left and (left[-1] / "DONE").exists():
            left.pop()
        failed = left and (left[-1] / "FAILED").exists()
        if failed or is_silent(site.state / "log") or site.process.poll() is not None:
            raise AssertionError(f"{len(left)} jobs at most are not DONE, such as {left[-1]}\n{site.said()[-SAID:]}")
        time.sleep(0.01)


def is_silent(folder):
    """Return whether no log has grown for so long that nothing can be going on."""
    return time.time() - max(os.stat(path).st_mtime for path in folder.glob("*.log")) > SILENCE
