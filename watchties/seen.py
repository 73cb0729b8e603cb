"""One job as seen at one moment, the world around it, and what can follow: the values that decide() works on.

Knows: what stands where, as far as it was looked at or heard of.
Must not know: what is to be done about it (decide.py), nor disks, clocks, processes.
"""

from dataclasses import dataclass, field

from watchties import markers
from watchties.model import CANCEL, MIRROR, PENDING, REQUESTS, WEB, JobId, Request
from watchties.record import Record


@dataclass(frozen=True)
class WebHint:
    """What the web host was last heard to hold: identities in ns, 0 for nothing."""

    pending: int = 0
    cancel: int = 0
    taken: bool = False


@dataclass(frozen=True)
class Seen:
    """One job as seen now. compute: "", DONE, FAILED or lost, for the current token. busy: places locked by runs.
    polled: when the scheduler was last asked, in seconds. removed: somebody has removed its record from the mirror, or all of it."""

    id: JobId
    record: Record
    mirror: markers.Standing
    web: WebHint = WebHint()
    compute: str = ""
    busy: frozenset = frozenset()
    polled: float = 0.0
    removed: bool = False


@dataclass(frozen=True)
class World:
    """What a decision depends on beside the job. tree, rules: from the configuration. down: host -> why.
    blocked: why nothing may be brought into the mirror (a full disk), or ""; poll: host -> seconds. held: (rule, host) -> Hold."""

    tree: object
    rules: dict
    now: float
    down: dict = field(default_factory=dict)
    blocked: str = ""
    poll: dict = field(default_factory=dict)
    held: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Something the daemon does itself: restore, accept, cancel, publish, take_off or close."""

    what: str
    reason: str
    request: Request | None = None
    marker: str = ""
    stop: bool = False


@dataclass(frozen=True)
class Start:
    """A run of a rule's hook that may begin now, on a host. `attempt`: the token that it is for."""

    rule: str
    host: str
    reason: str
    attempt: str = ""
    marker: str = ""
    request: Request | None = None


@dataclass(frozen=True)
class Wait:
    """Why something does not begin now; `until`: when to look again, in seconds, 0 if an event will tell."""

    rule: str
    reason: str
    until: float = 0.0


@dataclass(frozen=True)
class Decision:
    step: Step | None = None
    starts: tuple = ()
    waits: tuple = ()

    @property
    def reason(self):
        """Return one line for people: what happens now, else why nothing does."""
        if self.step:
            return self.step.reason
        return "; ".join(dict.fromkeys(a.reason for a in (*self.starts, *self.waits)))


def stands(seen):
    """Return whether the mirror shows what the record says, and nothing else."""
    record, mirror = seen.record, seen.mirror
    if record.phase == PENDING:
        return PENDING in mirror.markers and not mirror.states()
    marker = mirror.markers.get(record.phase)
    return bool(marker and marker.token == record.token and mirror.states() == (record.phase,))


def standing_request(seen, place, name):
    """Return the PENDING or CANCEL that stands at the web host or in the mirror, or None."""
    if place == MIRROR:
        ns = seen.mirror.request_ns(name)
    else:
        ns = seen.web.pending if name == PENDING else seen.web.cancel
    return Request(place, name, ns) if ns else None


def open_cancel(seen):
    """Return the CANCEL that stands and is not accepted yet, the mirror's first, or None."""
    requests = (standing_request(seen, place, CANCEL) for place in (MIRROR, WEB))
    return next((r for r in requests if r and not seen.record.has_accepted(r)), None)


def accepted_everything(seen):
    """Return whether each request that stands on the web host is in the record."""
    requests = (standing_request(seen, WEB, name) for name in REQUESTS)
    return not seen.web.taken and all(seen.record.has_accepted(r) for r in requests if r)
