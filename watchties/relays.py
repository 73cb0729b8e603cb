"""Far hosts' announcements: a relay kept alive on each host, or its markers listed now and then; and whether it answers.

Knows: the relay's lines, the agent's `list` and `version`, probes with backoff.
Must not know: what an announcement leads to; it only tells (see Listener). What a relay says is a stranger's input.
"""

import asyncio
import contextlib
import re
import shlex
import time
from dataclasses import dataclass, field

from watchties import children, ssh
from watchties.calls import call, knock, overtake
from watchties.errors import BadJobName, NotLetIn, Unreachable, WatchtiesError
from watchties.lanes import PROBE_MAXIMUM, PROBE_SELDOM, Breaker
from watchties.model import CANCEL, COMPUTE, DONE, FAILED, MARKERS, PENDING, REQUESTS, TAKEN, WEB, check_job_name, depth, printable

MISSED_BEATS = 4  # heartbeats without a line before a relay counts as dead
DOUBTED_BEATS = 2  # heartbeats without a line before it does, if a new connection gets through meanwhile
SSH_FAILED = 255  # as a relay's exit code: it was not the relay that ended
RELAY_ENDS = 3  # seconds for a relay to end by itself
RELAY_FAILURES = 3  # so many quick deaths, and the host's markers are listed instead
MARKERS_OF = {WEB: (PENDING, CANCEL), COMPUTE: (DONE, FAILED)}
HIDDEN = tuple(TAKEN + name for name in REQUESTS)
IDENTITY = re.compile(r"-?[0-9]{1,19}")  # an mtime in nanoseconds


@dataclass(frozen=True)
class Announcement:
    """One marker that a host has announced; ns is its identity, token that of a state marker or ""."""

    host: str
    tree: str
    marker: str
    job: str
    ns: int
    token: str = ""


@dataclass
class Listener:
    """What a Link calls. announce(Announcement); listed(host); up(host, news); down(host, reason); bad(tree, name,
    reason); problem(host, text)."""

    announce: object
    listed: object
    up: object
    down: object
    bad: object
    problem: object


@dataclass
class Link:
    """What watchties holds with one host. trees: tree -> (directory under the host's root, job pattern)."""

    far: ssh.Far
    role: str
    trees: dict
    trigger: str
    poll: float
    heartbeat: float
    listener: Listener
    masters: object = None
    breaker: Breaker = field(default_factory=Breaker)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _process: object = None
    _hopeless: asyncio.Event = field(default_factory=asyncio.Event)  # the relay was told to end, and does not
    _failures: int = 0

    async def run(self):
        """Keep the link until cancelled."""
        try:
            while True:
                if await self._answers():
                    await (self._relay_once() if self._uses_relay() else self._list_once())
        finally:
            await self._end_relay()

    def failed(self, reason, cut=False):
        """Take note that the host could not be reached: probe now and with backoff, until it answers. cut: the shared connections are.

        Where only a hook says so they stay: it may mean something else, and others' transfers would be cut for it.
        """
        if self.breaker.failed(reason, time.time()):
            self.listener.down(self.far.name, reason)
        if cut and self.masters:
            self.masters.renew()
        self._wake.set()
        if self._process and self._process.returncode is None:  # one that is cut off must be started anew, and lists all that waits
            self._process.stdin.close()
            asyncio.get_running_loop().call_later(RELAY_ENDS, self._hopeless.set)

    def list_again(self):
        """Ask for all that waits, now: a web host's relay is asked, a poll is brought forward; of a compute host the scheduler is."""
        self._failures = min(self._failures, RELAY_FAILURES - 1)  # a relay that did not run is given another chance
        if self.role != WEB:
            self.listener.listed(self.far.name)
        elif self._process and self._process.returncode is None and not self._process.stdin.is_closing():
            self._process.stdin.write(b"list\n")
        self._wake.set()

    def _uses_relay(self):
        return self.trigger == "relay" and self._failures < RELAY_FAILURES

    async def _answers(self):
        """Return whether the host answers now; wait for the next probe if it does not."""
        if self.breaker.down:
            until = self.breaker.next_probe - time.time()
            await self._pause(min(PROBE_SELDOM, max(0.0, until)), wakes=False)  # the clock may have been set back
        try:
            code, cut = await knock(self.far, "sh scripts/agent.sh version")
            if code:
                name = self.far.name
                raise Unreachable(f"host {name}: {self.far.root}/scripts/agent.sh does not run; try: watchties deploy {name}")
        except WatchtiesError as error:
            self.breaker.probe_failed(str(error), time.time(), PROBE_SELDOM if isinstance(error, NotLetIn) else PROBE_MAXIMUM)
            self.listener.down(self.far.name, str(error))  # also where it is no news: the reason may be another one by now
            if self.masters:
                self.masters.rest()
            return False
        if self.masters:
            self.masters.go_on()
            if cut:
                self.masters.renew()
            await self.masters.ready()
        self.listener.up(self.far.name, self.breaker.answered(time.time()))
        return True

    async def _pause(self, seconds, wakes=True):
        if wakes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):  # never wait_for: in 3.11 it loses a cancellation that comes with the end
                    await self._wake.wait()
            self._wake.clear()
        else:
            await asyncio.sleep(seconds)

    # ---- listing ----

    async def _list_once(self):
        """List the host's markers once (a web host's: on a compute host the `poll` rule asks), then pause."""
        if self.role == WEB:
            for tree, (directory, pattern) in self.trees.items():
                words = [directory, depth(pattern), *MARKERS_OF[WEB]]
                try:
                    payload, code = await call(self.far, f"sh scripts/agent.sh list {shlex.join(map(str, words))}")
                except Unreachable as error:
                    self.failed(str(error))
                    return
                if code:
                    self.listener.problem(self.far.name, f"listing {directory} ended with {code}")
                for line in payload.splitlines():
                    self._announce([tree, *line.split("\t")])
        self.listener.listed(self.far.name)
        await self._pause(self.poll)

    # ---- the relay ----

    def relay_command(self, nonce):
        """Return the shell text that runs the relay in the host's root."""
        words = ["python3", "scripts/relay.py", "--nonce", nonce, "--markers", ",".join(MARKERS_OF[self.role])]
        # A web application may hand jobs over by the older protocol: relay.pid and relay.names lie in scripts, beside the relay.
        words += ["--heartbeat", f"{self.heartbeat:g}"] + (["--directory", "scripts"] if self.role == WEB else ["--no-list"])
        for tree, (directory, pattern) in self.trees.items():
            words += ["--tree", f"{tree}={directory}={pattern}"]
        return f"cd -- {shlex.quote(self.far.root)} && exec {shlex.join(words)}"

    async def _relay_once(self):
        """Run the relay until it ends; tell what it says."""
        nonce, began = ssh.new_nonce(), time.monotonic()
        argv = ssh.argv(self.far, self.relay_command(nonce))
        pipe = asyncio.subprocess.PIPE
        try:
            self._process = await children.start(argv, stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 20)
        except Unreachable as error:
            self.failed(str(error))
            return
        process, self._hopeless = self._process, asyncio.Event()
        beats = asyncio.create_task(self._send_beats())
        words = children.Words(self._process.stderr)
        try:
            await self._read(nonce)
        except TimeoutError:
            self.failed(f"host {self.far.name}: its relay fell silent", cut=True)  # before any job finds out the slow way
        except ValueError as error:
            self.listener.problem(self.far.name, f"the relay spoke nonsense ({error})")
        finally:
            beats.cancel()
            await self._end_relay()
            said = await words.last()
        lived, cut = time.monotonic() - began, self.breaker.down or process.returncode == SSH_FAILED
        if not cut:
            self._failures = self._failures + 1 if lived < self.heartbeat else 0
        if said:
            self.listener.problem(self.far.name, f"the relay ended: {said[-1]}")
        if self._failures == RELAY_FAILURES and not cut:
            self.listener.problem(self.far.name, f"its relay does not run; markers are listed every {self.poll:g} s instead")
        await asyncio.sleep(min(1.0, 0.1 * 2**self._failures) if not cut else 1.0)

    async def _send_beats(self):
        while True:
            await asyncio.sleep(self.heartbeat)
            if not self._process.stdin.is_closing():
                self._process.stdin.write(b"beat\n")

    async def _read(self, nonce):
        hello = f"#relay {nonce}".encode()
        heard = False
        while (line := await self._next_line()).endswith(b"\n"):  # one without an end was cut, and may say another thing by it
            if not heard:
                heard = line.startswith(hello)  # what comes before is a banner
            else:
                self._take(line)

    async def _next_line(self):
        """Return the relay's next line. Raises TimeoutError if none comes for too long, sooner where a new connection gets through."""
        line, hopeless = (asyncio.ensure_future(each) for each in (self._process.stdout.readline(), self._hopeless.wait()))
        try:
            await asyncio.wait([line, hopeless], timeout=self.heartbeat * DOUBTED_BEATS, return_when=asyncio.FIRST_COMPLETED)
            if hopeless.done():
                return b""
            if not line.done():
                await self._in_doubt(line)
            if not line.done():
                raise TimeoutError
            return line.result()
        finally:
            line.cancel()
            hopeless.cancel()

    async def _in_doubt(self, line):
        """Wait for a line that is late; no longer, once it is certain that it is cut off."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.heartbeat * (MISSED_BEATS - DOUBTED_BEATS)):
                with contextlib.suppress(WatchtiesError):
                    if await overtake(self.far, "true", line) is not None:
                        return
                await asyncio.wait([line])

    def _take(self, line):
        try:
            text = line.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError:
            self.listener.bad("", printable(line), "it is not valid UTF-8")
            return
        if not text.startswith("#"):
            self._announce(text.split("\t"))
        elif text.startswith(("#listed", "#watching")):
            self.listener.listed(self.far.name)
        elif text.startswith("#error"):
            self.listener.problem(self.far.name, printable(text[7:], 500))
        elif text.startswith("#bad"):
            self.listener.bad("", printable(text[5:]), "refused by the relay")

    def _announce(self, words):
        """Check one announced marker and pass it on, or tell why it is refused."""
        try:
            tree, marker, job, ns, *rest = words
            if tree not in self.trees or marker not in MARKERS + HIDDEN:
                raise ValueError("unknown tree or marker")
            if not IDENTITY.fullmatch(ns):
                raise ValueError("no identity")
            check_job_name(job, self.trees[tree][1])
            self.listener.announce(Announcement(self.far.name, tree, marker, job, int(ns), "" if rest in ([], ["-"]) else rest[0]))
        except BadJobName as error:
            self.listener.bad(tree, job, str(error))
        except ValueError as error:
            self.listener.bad("", printable("\t".join(words)), f"not an announcement ({error})")

    async def _end_relay(self):
        process, self._process = self._process, None
        if process and process.returncode is None:
            process.stdin.close()
            try:
                async with asyncio.timeout(RELAY_ENDS):
                    await process.wait()
            except TimeoutError:
                await children.end(process)


def trees_of(config, host):
    """Return tree -> (directory under the host's root, job pattern) of the trees that a host has."""
    return {name: (tree.path[host], tree.jobs) for name, tree in config.tree.items() if host == tree.web or host in tree.compute}
