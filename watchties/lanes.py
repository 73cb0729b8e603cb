"""Queues: which jobs go into the next run of a rule on a host, and whether the host is to be bothered now.

Knows: lanes with slots, batches, fairness over users, jobs that travel alone, alarms, and the breaker of a host.
Must not know: what a run does, records, disks. Time is passed in.
"""

import heapq
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field

ALONE = "alone"  # the extra slot of jobs above the lane's size threshold, so that they hold up nobody
PROBE_FIRST, PROBE_MAXIMUM = 5.0, 30.0  # seconds between two probes of a host that is down: jobs wait no longer than this once it is up
PROBE_SELDOM = 300.0  # the longest pause where it is up, but keeps us out
ALARM_FIRST, ALARM_MAXIMUM = 1.0, 10.0  # the same after a false alarm: a connection that was cut, and is there again, is one too
STEADY = 60.0  # seconds a host must be up for its next failure to be taken for the first


def backoff(count, first, maximum, draw=random.random):
    """Return the seconds before the next try after `count` failures: doubled each time, with up to a quarter of jitter."""
    return min(maximum, first * 2 ** min(count, 40)) * (1 - 0.25 * draw())


class FairQueue:
    """Items in the order they came, taken round robin over their users."""

    def __init__(self):
        self._users = OrderedDict()
        self._user_of = {}

    def __len__(self):
        return len(self._user_of)

    def __contains__(self, item):
        return item in self._user_of

    def add(self, user, item):
        """Append an item; one that is in already keeps its place."""
        if item not in self._user_of:
            self._user_of[item] = user
            self._users.setdefault(user, deque()).append(item)

    def take(self, count):
        """Return up to `count` items, one of each user in turn."""
        taken = []
        while self._users and len(taken) < count:
            user, items = self._users.popitem(last=False)
            item = items.popleft()
            del self._user_of[item]
            taken.append(item)
            if items:
                self._users[user] = items
        return taken


@dataclass
class Lane:
    """The queue of one rule for one host. `busy` holds the slots at work.

    Jobs in `bounded` need room on the host (max_running) as well; jobs in `large` travel alone; those in `both`, both.
    """

    rule: str
    host: str
    batch: int = 1
    parallel: int = 1
    alone_above: int | None = None
    queue: FairQueue = field(default_factory=FairQueue)
    large: FairQueue = field(default_factory=FairQueue)
    bounded: FairQueue = field(default_factory=FairQueue)
    both: FairQueue = field(default_factory=FairQueue)
    busy: set = field(default_factory=set)

    def __contains__(self, item):
        return any(item in queue for queue in self._queues())

    def _queues(self):
        return self.queue, self.large, self.bounded, self.both

    def offer(self, item, user, size=0, needs_room=False):
        """Queue a job, unless it is queued already."""
        if item not in self:
            alone = self.alone_above is not None and size > self.alone_above
            self._queues()[alone + 2 * needs_room].add(user, item)

    def waiting(self):
        """Return how many jobs are queued."""
        return sum(map(len, self._queues()))

    def next_batch(self, room=None):
        """Return (slot, jobs) for the next run, or None while every slot is busy or nothing may go.

        room: how many more jobs the host may hold, None for any number.
        """
        roomy = room is None or room > 0
        if ALONE not in self.busy and (self.large or (self.both and roomy)):
            return ALONE, (self.large or self.both).take(1)
        slot = next((str(n) for n in range(self.parallel) if str(n) not in self.busy), None)
        if slot is None:
            return None
        jobs = self.queue.take(self.batch)
        left = self.batch - len(jobs)
        jobs += self.bounded.take(left if room is None else max(0, min(left, room)))
        return (slot, jobs) if jobs else None


class Alarms:
    """When which item is to be looked at again."""

    def __init__(self):
        self._heap, self._known = [], set()

    def set(self, item, when):
        """Have an item fall due at a time; another alarm of the same item stays."""
        if (when, item) not in self._known:  # a job that is looked at often waits for the same moment each time
            self._known.add((when, item))
            heapq.heappush(self._heap, (when, item))

    def seconds(self, now):
        """Return the seconds until the next one, None if there is none."""
        return max(0.0, self._heap[0][0] - now) if self._heap else None

    def due(self, now):
        """Return the items whose time has come, and forget them."""
        items = []
        while self._heap and self._heap[0][0] <= now:
            alarm = heapq.heappop(self._heap)
            self._known.discard(alarm)
            items.append(alarm[1])
        return items


@dataclass
class Hold:
    """How long a lane is held back, because the far side takes no more of its jobs for now. Other lanes of that host go on."""

    reason: str = ""
    until: float = 0.0
    count: int = 0
    since: float = 0.0

    def holds(self, now):
        """Return whether it is held back now; not if the clock was set back since."""
        return self.since <= now < self.until

    def refused(self, reason, taken, now, retry):
        """Take note of a run in which jobs were put off; taken: others were not, so that this is a new beginning. Return how many
        such runs there were, 0 if it is one more that had begun before."""
        self.reason = reason
        if self.holds(now):
            return 0
        self.count = 0 if taken else self.count
        self.since, self.until = now, now + backoff(self.count, retry.first, retry.maximum)
        self.count += 1
        return self.count


@dataclass
class Breaker:
    """Whether a host is up. Once it is down, one probe at a time is let through, seldomer and seldomer.

    A failure that the first probe cannot confirm was a false alarm. The first costs nothing but that probe; where they go on, each
    one waits longer for it, or a hook that fails for another reason would have the host go down and up all day.
    """

    reason: str = ""
    since: float = 0.0
    probes: int = 0
    next_probe: float = 0.0
    up: float = float("-inf")
    alarms: int = 0

    @property
    def down(self):
        return bool(self.reason)

    def failed(self, reason, now):
        """Take note that something could not reach the host; return whether that is news."""
        if self.reason:
            return False  # one more run that had begun before
        self.alarms = self.alarms if now - self.up < STEADY else 0
        self.reason, self.since, self.probes = reason, now, 0
        self.next_probe = now + (backoff(self.alarms - 1, ALARM_FIRST, ALARM_MAXIMUM) if self.alarms else 0)
        return True

    def probe_failed(self, reason, now, maximum=PROBE_MAXIMUM):
        """Take note that a probe had no answer."""
        self.since, self.reason = self.since if self.reason else now, reason
        self.next_probe = now + backoff(self.probes, PROBE_FIRST, maximum)
        self.probes += 1

    def answered(self, now):
        """Take note that the host answered; return whether that is news."""
        news = bool(self.reason)
        if news:
            self.up, self.alarms = now, 0 if self.probes else self.alarms + 1
        self.reason, self.probes = "", 0
        return news
