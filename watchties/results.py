"""What an attempt has made: bringing it from the compute host, keeping the list, sending just that list on.

Knows: which of three versions of a file counts: as sent (manifest), in the mirror now, on the compute host.
Must not know: what counts as success (judge.py), rsync's options, the agent.

Rule [made_list]: fetch brings what differs on the compute host from the attempt's manifest, push sends only that.
A file of the manifest that has changed in the mirror since was edited by a user for the next attempt, and is spared;
unless it is just what the compute host has, for then an interrupted fetch has brought it.
"""

import contextlib
import os
import time
from typing import NamedTuple

from watchties import batches, manifest
from watchties.errors import Rejected, Unsafe
from watchties.model import DONE


CLOCK_STEPS = 60  # seconds by which the clock may have been set right after the start; an honest look too many harms nobody


class Brought(NamedTuple):
    """entries: what stands in the mirror. listed: paths on the compute host, but those spared. made: path -> Entry."""

    entries: dict
    listed: dict
    made: dict
    spared: set


def bring(run, route, jobs):
    """Bring the results of attempts that have ended; return job -> Brought. Jobs that fail are settled."""
    sent, touched = {}, {}
    for job in jobs:
        try:
            sent[job], now = _manifest(job), manifest.walk(job.dir)
            touched[job] = manifest.changed(sent[job], now)
        except (OSError, Unsafe) as error:
            run.retry(job, error)
    spared = edited(run, route, touched)
    _write(run, "spared", {job: dict.fromkeys(sorted(paths), manifest.Entry(0)) for job, paths in spared.items()})
    waiting = [job for job in spared if job not in run.settled]
    carried = batches.carry(route, {job: [job.job] for job in waiting}, spared=spared, inward=True, listing=True,
                             missing_ok=True, timeout=run.timeout)  # fmt: skip
    failed = run.failures(carried)
    brought = {}
    for job, listed in carried.items():
        try:
            if job not in failed:
                brought[job] = _look(job, sent[job], listed, spared[job])
        except (OSError, Unsafe) as error:  # one job's, and no other's: it may have made a path too long for us
            run.retry(job, error)
    return brought


def keep(run, route, brought):
    """Make durable what has come, then the list of what was made; return the jobs whose list stands."""
    if brought:
        batches.settle_on_disk(route, brought)
    _write(run, "made", {job: result.made for job, result in brought.items()})
    return [job for job in brought if job not in run.settled]


def _look(job, sent, listed, spared):
    entries = manifest.walk(job.dir)
    manifest.leave_links(job, entries)
    return Brought(entries, listed, manifest.made(sent, entries, listed), spared)


def _manifest(job):
    """Return what was sent for an attempt. Where the list is lost, what the mirror holds now is taken for it, and kept:
    no input can then be overwritten."""
    path = manifest.place(job, "manifest")
    sent = manifest.read(path)
    if sent is None:
        print(f"{job.id}: {path} is not there; what the mirror holds now is taken for what was sent")
        sent = manifest.walk(job.dir)
        if errors := manifest.write("manifest", {job: sent}):
            raise errors[job]
    return sent


def edited(run, route, touched):
    """Return job -> those of its touched paths that the compute host has in another version; jobs that fail are settled."""
    names = {job: [f"{job.job}/{path}" for path in sorted(paths)] for job, paths in touched.items()}
    found = batches.carry(route, names, inward=True, recursive=False, listing=True, dry=True, missing_ok=True, timeout=run.timeout)
    failed = run.failures(found)
    return {job: paths - _same(found[job]) for job, paths in touched.items() if job not in failed}


def _same(listed):
    return {path for path, item in listed.items() if item.startswith(".")}


def _write(run, kind, lists):
    for job, error in manifest.write(kind, lists).items():
        run.retry(job, error)


def to_send(job):
    """Return the paths below the tree's root that push sends: what the list names and still stands in the mirror.

    Only what a walk has met is sent, so that no directory on the way is a link. Raises Rejected for a DONE job
    without a list: DONE is never shown without its results.
    """
    made = manifest.read(manifest.place(job, "made"))
    if made is None:
        if job.marker == DONE:
            raise Rejected(f"{manifest.place(job, 'made')} is not there: what the job made is not known, fetch it again")
        return []
    entries = manifest.walk(job.dir)
    outside = set(manifest.leading_outside(job.dir, {path: entries[path] for path in made if path in entries}))
    return [f"{job.job}/{path}" for path in made if path in entries and path not in outside]


def begin_to_send(run, names):
    """Note that what jobs made is on its way; return those whose earlier run to the web host was cut off, or may have been.

    names: job -> paths. Jobs whose note cannot be written are settled. The note needs no barrier: it outlives all but a crash of
    this machine, and a list that is older than its last start is taken for one that was on its way.
    """
    up = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    jobs = [job for job, paths in names.items() if paths]
    cut = [job for job in jobs if os.path.exists(_note(job)) or _made_at(manifest.place(job, "made")) < up + CLOCK_STEPS]
    for job in jobs:
        try:
            os.close(os.open(_note(job), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            run.retry(job, f"{os.path.dirname(_note(job))}: {error.strerror}")
    return cut


def have_sent(jobs):
    """Take the note away again."""
    for job in jobs:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_note(job))


def _note(job):
    return manifest.place(job, "sending")


def _made_at(path):
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0
