"""Bad weather over a lab's hosts: every way in which a network breaks, one after another, in an order and at times from a seed.

    weather = Weather(lab, draw, (3, 6), (0.5, 2), print)
    weather.begin(["b01", "elgato"], rounds=1)        # a lane: one fault at a time there
    ...
    weather.end()                                     # all is mended
    weather.log                                       # Fault(kind, host, began, ended), in seconds since 1970

A host that is switched off loses what runs there; all other faults cut nothing but the network.
"""

import random
import threading
import time
from dataclasses import dataclass

KINDS = ("down", "drop", "reset", "loss", "delay", "rate", "freeze", "kill", "reboot", "move")
AT_ONCE = {"reset": 1.5, "move": 1.0}  # seconds that these last: what they do is done with their beginning
LOSS, DELAY, RATE = 0.3, 50, 64  # of packets; milliseconds; kbit/s


@dataclass
class Fault:
    kind: str
    host: str
    began: float
    ended: float = 0.0

    def __str__(self):
        return f"{time.strftime('%H:%M:%S', time.gmtime(self.began))} {self.kind} {self.host} {self.ended - self.began:.1f} s"


class Weather:
    """Faults over hosts. lasts, pauses: seconds from and to for a fault, and for the time after it. off(host): called while it is off."""

    def __init__(self, lab, draw, lasts, pauses, off):
        self.lab, self.draw, self.lasts, self.pauses, self.off = lab, draw, lasts, pauses, off
        self.log, self.error, self.planned = [], None, 0
        self._stop, self._delayed, self._lanes = threading.Event(), threading.Lock(), []
        self._addresses = iter(range(100, 250))

    def begin(self, hosts, rounds):
        """Let faults come over these hosts, one at a time: every kind on each of them `rounds` times, and more until `end`."""
        draw = random.Random(self.draw.random())
        plan = [[(kind, draw.choice(hosts)) for kind in KINDS]] if rounds < 1 else [[(k, h) for k in KINDS for h in hosts]] * rounds
        self.planned += sum(map(len, plan))
        self._lanes.append(threading.Thread(target=self._lane, args=(draw, plan), daemon=True))
        self._lanes[-1].start()

    def share(self):
        """Return how much of what was planned has come, 1 or more for all."""
        return len(self.log) / self.planned

    def end(self):
        """Wait until the faults under way are over; return when the last one was, in seconds since 1970. Raises what a lane met."""
        self._stop.set()
        for lane in self._lanes:
            lane.join(120)
            assert not lane.is_alive(), "the weather does not end"
        if self.error:
            raise self.error
        return max(fault.ended for fault in self.log)

    # ---- one lane ----

    def _lane(self, draw, plan):
        try:
            while True:
                for faults in plan:
                    for kind, host in draw.sample(faults, len(faults)):
                        if self._stop.is_set():
                            return
                        self._one(draw, kind, host)
                        self._stop.wait(draw.uniform(*self.pauses))
        except BaseException as error:  # told by `end`
            self.error = error
            self._stop.set()

    def _one(self, draw, kind, host):
        lasts = AT_ONCE.get(kind) or draw.uniform(*self.lasts)
        if kind == "delay":  # there is one at a time
            with self._delayed:
                self._come(kind, host, lasts, lambda: self.lab.delay(DELAY, host), lambda: self.lab.delay(0))
        else:
            self._come(kind, host, lasts, lambda: self._break(kind, host), lambda: self._mend(kind, host))

    def _come(self, kind, host, lasts, start, over):
        fault = Fault(kind, host, time.time())
        try:
            start()
            time.sleep(lasts)
        finally:
            over()
            fault.ended = time.time()
            self.log.append(fault)
            print(fault, flush=True)

    def _break(self, kind, host):
        if kind == "reboot":
            self.lab.stop_host(host)
            self.off(host)
        else:
            more = {"loss": [LOSS], "rate": [RATE], "move": [self._new_address()]}.get(kind, [])
            self.lab.fault("reject" if kind == "reset" else kind, host, *more)

    def _mend(self, kind, host):
        if kind == "reboot":
            self.lab.start_host(host)
        else:
            self.lab.fault("clear", host)

    def _new_address(self):
        return f"10.77.0.{next(self._addresses)}"
