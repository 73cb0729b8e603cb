"""The words of watchties as values: states, places, names, markers, requests. No input or output.

Knows: what a job name may be, how a marker's content and a request's identity are written.
Must not know: where anything is stored, or what is to be done about it.
"""

import fnmatch
import re
from dataclasses import dataclass, field

from watchties.errors import BadJobName

PENDING, SUBMITTED, DONE, FAILED, CANCEL = "PENDING", "SUBMITTED", "DONE", "FAILED", "CANCEL"
REQUESTS = (PENDING, CANCEL)  # made by people; empty is fine
STATES = (SUBMITTED, FAILED, DONE)  # published by watchties; count only with the current attempt's token
FINAL = (DONE, FAILED)
READING_ORDER = (PENDING, SUBMITTED, FAILED, DONE)  # which counts for a reader who sees two
MARKERS = (PENDING, SUBMITTED, DONE, FAILED, CANCEL)

WEB, MIRROR, COMPUTE = PLACES = ("web", "mirror", "compute")

RECORD_DIR = ".watchties"  # in a job's directory; every hidden name of ours begins with it
OPEN_FLAG = ".watchties.open"  # stands in the mirror while anything is left to do for the job
NEW = ".watchties.new."  # + state: a marker before it is renamed into place
TAKEN = ".watchties.taken."  # + PENDING or CANCEL: a request while it is being taken off

CAUSES = ("exit", "rejected", "lost", "cancelled", "infrastructure", "success", "memory", "time", "node")

MAX_COMPONENT = 255  # bytes; no file system of ours takes more
MAX_VALUE = 2000  # characters of one value in a marker
MAX_MARKER = 65536  # bytes that are read of a marker


def state_rank(state):
    """Return how new a state is among those with the same token: DONE and FAILED above SUBMITTED."""
    return {SUBMITTED: 1, DONE: 2, FAILED: 2}.get(state, 0)


def depth(pattern):
    """Return how many directories below the tree's root a job of this pattern lies."""
    return pattern.count("/") + 1


def check_job_name(job, pattern="*/*"):
    """Return `job`; raise BadJobName with the reason if no job of a tree may be called so.

    A name comes from far hosts and from people: it is a stranger's input until it has passed here.
    """
    parts = job.split("/")
    if not job or len(parts) != depth(pattern):
        raise BadJobName(f"{printable(job)}: not {depth(pattern)} directories deep, as {pattern} is")
    for part, glob in zip(parts, pattern.split("/")):
        if reason := _bad_component(part, glob):
            raise BadJobName(f"{printable(job)}: {reason}")
    return job


def _bad_component(part, glob):
    if part in ("", ".", ".."):
        return f"a part is {part!r}"
    if part.startswith("-"):
        return "a part begins with -"
    if part.startswith("."):
        return "a part is hidden (begins with a dot)"
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029" for c in part):
        return "it has control characters"
    try:
        if len(part.encode()) > MAX_COMPONENT:
            return f"a part is longer than {MAX_COMPONENT} bytes"
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if not fnmatch.fnmatchcase(part, glob):
        return f"{part!r} does not match {glob!r}"
    return ""


def printable(text, limit=120):
    """Return text fit for one line of a log, whatever it holds."""
    clean = "".join(c if c.isprintable() else "?" for c in str(text))
    return clean if len(clean) <= limit else clean[:limit] + "..."


def one_line(text):
    """Return text as a marker's value or a reason: one line, no control characters, of bounded length."""
    return printable(" ".join(str(text).split()), MAX_VALUE)


def number(text):
    """Return the whole number that a hook or a host has told, 0 if it is none: either may say anything."""
    try:
        return int(text or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def user_of(job):
    """Return the user a job belongs to: the first part of its name."""
    return job.split("/", 1)[0]


@dataclass(frozen=True, order=True)
class JobId:
    """A job: the tree's name and the job's path in it."""

    tree: str
    job: str

    def __str__(self):
        return f"{self.tree}:{self.job}"


@dataclass(frozen=True)
class Request:
    """One appearance of PENDING or CANCEL: where, which, and the marker's mtime in nanoseconds."""

    place: str
    marker: str
    ns: int

    def __str__(self):
        return f"{self.place}:{self.marker}:{self.ns}"

    @classmethod
    def parse(cls, text):
        """Return the request that `str()` wrote; raise ValueError if it is none."""
        place, marker, ns = text.split(":")
        if place not in PLACES or marker not in REQUESTS:
            raise ValueError(text)
        return cls(place, marker, int(ns))


@dataclass(frozen=True)
class Marker:
    """A marker as it was read: its name, its identity in nanoseconds, its fields ({} if it is empty or junk)."""

    name: str
    ns: int
    fields: dict = field(default_factory=dict)

    @property
    def token(self):
        return self.fields.get("token", "")


def marker_text(fields):
    """Return a marker's content, `key=value` lines; empty values are left out."""
    return "".join(f"{key}={one_line(value)}\n" for key, value in fields.items() if value not in (None, ""))


_FIELD = re.compile(r"([a-z][a-z0-9_]*)=(.*)")


def parse_marker(content):
    """Return the fields in a marker's content (bytes); what is not a `key=value` line is passed over."""
    lines = content[:MAX_MARKER].decode("utf-8", "replace").splitlines()
    return dict(match.groups() for line in lines if (match := _FIELD.fullmatch(line)))


@dataclass(frozen=True)
class Outcome:
    """What a run says of one job: done, retry or failed; a reason for people; fields for the record."""

    outcome: str
    reason: str = ""
    fields: dict = field(default_factory=dict)


OUTCOMES = ("done", "retry", "failed")
