"""The markers of a job in the mirror: looking at them, publishing a state, taking a request off.

Knows: the files in a job's directory, and the order of steps that survives a crash between any two.
Must not know: why a state is published, or what the record holds beyond "is this request accepted".

A marker is published like this: whole under a hidden name, durable, renamed, then the other state markers are
removed. A request is taken off like this: renamed to a hidden name, looked at again, removed if it was accepted,
put back if it was not. Whoever finds a leftover under the hidden name puts it back before anything else.
Functions that write are plans (durable.py).
"""

import contextlib
import os
import stat
from dataclasses import dataclass, field

from watchties import durable
from watchties.model import CANCEL, MARKERS, MAX_MARKER, NEW, OPEN_FLAG, PENDING, REQUESTS, STATES, TAKEN, Marker, marker_text, parse_marker


@dataclass(frozen=True)
class Standing:
    """What stands in a job's directory: markers by name, requests left under their hidden name, our open flag."""

    markers: dict = field(default_factory=dict)
    taken: dict = field(default_factory=dict)
    junk: tuple = ()
    open: bool = False
    exists: bool = True

    def request_ns(self, name):
        """Return the identity of a request that stands, or 0."""
        return self.markers[name].ns if name in self.markers else 0

    def states(self):
        """Return the names of the state markers that stand, junk among them."""
        return tuple(s for s in STATES if s in self.markers or s in self.junk)


def look(job_dir, names=None):
    """Return what stands in a job's directory; `names`, if known from a scan, spares looking for what is not there.

    A marker that vanishes while it is read does not stand; one that is no regular file is junk.
    """
    try:
        names = set(os.listdir(job_dir)) if names is None else names
    except (FileNotFoundError, NotADirectoryError):
        return Standing(exists=False)
    markers, junk, taken = {}, [], {}
    for name in MARKERS:
        if name in names:
            marker = _read(job_dir, name)
            if marker:
                markers[name] = marker
            elif marker is not None:
                junk.append(name)
    for name in REQUESTS:
        if TAKEN + name in names and (marker := _read(job_dir, TAKEN + name)):
            taken[name] = marker.ns
    return Standing(markers, taken, tuple(junk), OPEN_FLAG in names)


def _read(job_dir, name):
    """Return a marker, None if it is gone, False if it is no regular file."""
    path = os.path.join(job_dir, name)
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(info.st_mode):
            return False
        if name in STATES and info.st_size:
            with open(path, "rb") as file:
                return Marker(name, info.st_mtime_ns, parse_marker(file.read(MAX_MARKER)))
        return Marker(name, info.st_mtime_ns)
    except FileNotFoundError:
        return None
    except PermissionError:
        return Marker(name, info.st_mtime_ns)


def publish(job_dir, state, fields):
    """Plan: make `state` (SUBMITTED, DONE, FAILED) the one state marker that stands."""
    new, final = os.path.join(job_dir, NEW + state), os.path.join(job_dir, state)
    durable.write_new(new, marker_text(fields).encode())
    yield [new]
    _move_junk_aside(final)
    os.rename(new, final)
    _remove_states(job_dir, but=state)
    _remove_unpublished(job_dir)
    yield [job_dir]


def prepare_pending(job_dir):
    """Write the PENDING of our own under its hidden name; return its identity, for the record to hold first."""
    return durable.write_new(os.path.join(job_dir, NEW + PENDING), b"")


def publish_pending(job_dir):
    """Plan: put the prepared PENDING in place unless one stands, and remove the state markers."""
    new, final = os.path.join(job_dir, NEW + PENDING), os.path.join(job_dir, PENDING)
    if os.path.lexists(new):
        _move_junk_aside(final)
        try:
            os.link(new, final)  # not rename: a person's PENDING that stands there is a request
        except FileExistsError:
            pass
        os.unlink(new)
    _remove_states(job_dir)
    yield [job_dir]


def take_off(job_dir, name, is_accepted):
    """Plan: take PENDING or CANCEL off, only if what stands is still accepted (is_accepted: ns -> bool)."""
    if mirror_careful():
        hidden = os.path.join(job_dir, TAKEN + name)
        try:
            os.rename(os.path.join(job_dir, name), hidden)
        except FileNotFoundError:
            return
        yield []  # a crash here leaves the hidden name; restore() finds it
        yield from restore(job_dir, name, is_accepted)
    else:
        os.unlink(os.path.join(job_dir, name))


def mirror_careful():
    """Return True: in the mirror, too, a request is looked at again under a hidden name before it goes."""
    return True


def restore(job_dir, name, is_accepted):
    """Plan: deal with a request under its hidden name: gone if accepted, else put back."""
    hidden, place = os.path.join(job_dir, TAKEN + name), os.path.join(job_dir, name)
    marker = _read(job_dir, TAKEN + name)
    if not marker:
        return
    if is_accepted(marker.ns):
        os.unlink(hidden)
    else:
        _put_back(hidden, place, is_accepted)
    yield [job_dir]


def _put_back(hidden, place, is_accepted):
    _move_junk_aside(place)
    try:
        os.link(hidden, place)
        os.unlink(hidden)
    except FileExistsError:
        standing = os.lstat(place).st_mtime_ns
        if back_over_accepted(is_accepted, standing):
            os.rename(hidden, place)
        else:
            os.unlink(hidden)  # a later request stands, which this one merges into


def back_over_accepted(is_accepted, standing):
    """Return whether a request is put back over the one that stands there: only if that one is accepted."""
    return is_accepted(standing)


def put_request(job_dir, name):
    """Make a new request (PENDING or CANCEL) appear, as a person's touch would; return its identity in ns."""
    hidden = os.path.join(job_dir, f"{NEW}{name}.{os.getpid()}")
    ns = durable.write_new(hidden, b"")
    os.rename(hidden, os.path.join(job_dir, name))
    return ns


def raise_flag(job_dir):
    """Make the flag that says something is left to do; return what must be durable before there is: its name is all it says."""
    path = os.path.join(job_dir, OPEN_FLAG)
    if os.path.lexists(path):
        return []
    durable.write_new(path, b"")
    return [job_dir]


def set_closed(job_dir):
    """Plan: take the flag down; nothing waits for that to be durable."""
    try:
        os.unlink(os.path.join(job_dir, OPEN_FLAG))
    except FileNotFoundError:
        pass
    yield []


def _remove_states(job_dir, but=""):
    for state in STATES:
        if state != but:
            path = os.path.join(job_dir, state)
            _move_junk_aside(path)
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


def _remove_unpublished(job_dir):
    """Remove what a crash has left under a marker's hidden name: nobody else is publishing."""
    for name in PENDING, *STATES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(job_dir, NEW + name))


def _move_junk_aside(path):
    """Rename what stands under a marker's name and is no regular file, so that the marker can be published."""
    try:
        if stat.S_ISREG(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    folder, name = os.path.split(path)
    number = 1
    while os.path.lexists(aside := os.path.join(folder, f".watchties.junk.{name}.{number}")):
        number += 1
    os.rename(path, aside)


def waiting(names):
    """Return whether what a scan found in a job's directory may need anything done: True when in doubt."""
    if OPEN_FLAG in names or PENDING in names or CANCEL in names or TAKEN + PENDING in names or TAKEN + CANCEL in names:
        return True
    states = [s for s in STATES if s in names]
    return bool(states != ["DONE"] and states != ["FAILED"] and ".watchties" in names)
