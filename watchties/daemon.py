"""The daemon: joins watch, links and engine in one asyncio loop; signals, reconcile, disk, notices, sd_notify.

Knows: what is started and stopped, in which order.
Must not know: what a marker means, how a run ends; it only passes on who is to be looked at.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from watchties import config as configuration
from watchties import markers, masters, rebuild, relays, roots, runs, ssh, systemd
from watchties.engine import Engine
from watchties.errors import MAY_PASS, WatchtiesError
from watchties.glance import Glance
from watchties.hooklog import HookLog
from watchties.journal import Journal
from watchties.model import CANCEL, PENDING, TAKEN, WEB, JobId
from watchties.notices import Notices
from watchties.relays import Link, Listener
from watchties.runner import Runner
from watchties.teller import Teller
from watchties.watch import MirrorWatch

SHORT = 5.0  # seconds before a part goes on for which this machine had not enough
RESCAN_PAUSE = 0.5  # seconds before a mirror is scanned once more: after an overflow, the storm may go on
REBUILD = 500  # jobs of which the journal is told at once
SLICE = 0.02  # seconds that a scan may keep the loop to itself
THREADS = 2  # one writes to disks, one fills a journal that is new
SHUTDOWN = 12.0  # seconds for hooks that were told to stop

log = logging.getLogger("watchties")


class Daemon:
    """One daemon for one configuration. state: the state directory; hooks: rule name -> path of its hook; manager: of services."""

    looks_at_all = True  # that a scan finds; else they are counted only
    def __init__(self, config, state, hooks, manager=None):
        self.config, self.state, self.hooks = config, state, hooks
        self.manager = manager or systemd.Manager()
        self.journal = Journal(os.path.join(state, "journal.sqlite"))
        self.hooklog = HookLog(os.path.join(state, "log"), config.daemon.log_keep)
        self.teller = Teller(self.journal, self.hooklog)
        self.dirs = runs.RunDirs(state)
        self.plain = configuration.plain(config)
        self.plain["control"] = masters.directory(state, self.plain["host"])
        self.plain["trees"] = os.path.join(state, roots.FOLDER)
        self.runner = Runner(self.dirs, runs.write_config(self.plain, state))
        self.engine = Engine(config, self.runner, self.dirs, hooks, self.teller)
        self.teller.on_host_failed = self._host_failed
        self.teller.on_notice = lambda subject, text: self._notices.put(subject, text)
        self.watches = {n: MirrorWatch(t.root, t.jobs, t.backend) for n, t in config.tree.items()}
        self.links = {name: self._link(name) for name in config.host if relays.trees_of(config, name)}
        self.stop, self._tasks, self._scans = asyncio.Event(), set(), {}
        self._engine, self._broken = asyncio.ensure_future(asyncio.sleep(0)), None
        self._notices = Notices(config.find_rule("notice"), hooks["notice"], self.dirs, self.runner, self.teller)
        self._glance = Glance(self, self._notices, self._tree_is_back)

    # ---- life ----

    async def run(self, again=lambda: False):
        """Work until `stop` is set. again(): another daemon takes over at once, so hooks at work are left to it."""
        await self._begin_threads()
        self.runner.warm_up()
        try:
            await self._start()
            await self.stop.wait()
        finally:
            await self._shut_down(again())
        if self._broken:
            raise WatchtiesError(f"a part of the daemon failed: {self._broken!r}; the log has the details") from self._broken

    @staticmethod
    async def _begin_threads():
        """Begin all threads that the loop will ever use, so that none is missing when there are no more to be had."""
        pool, met = ThreadPoolExecutor(THREADS), threading.Barrier(THREADS + 1)
        asyncio.get_running_loop().set_default_executor(pool)
        for _ in range(THREADS):
            pool.submit(met.wait)
        met.wait()

    async def _start(self):
        """Take in what an earlier daemon has left, look at all mirrors, call all hosts."""
        self.engine.roots.begin()
        for name, watch in self.watches.items():
            self._watch(name, watch)
        self._glance.at_disks()
        await asyncio.gather(*(link.masters.end_former() for link in self.links.values() if link.masters))
        await self.engine.recover()
        self._engine = self._spawn(self.engine.run())
        self._first_scan()
        for link in self.links.values():
            self._keep(link.run)
            if link.masters:
                self._keep(link.masters.run)
        self._keep(self._glance.run)
        if self.journal.fresh:
            self._keep(self._rebuild)
        self._go_on()

    def _go_on(self):
        """Begin what a daemon does again and again, and tell that it is at work."""
        self._keep(self._reconcile)
        self._keep(self._notices.run)
        log.info("[%d] watchties is at work: %s", os.getpid(), ", ".join(f"{n} ({w.backend})" for n, w in self.watches.items()))
        self.manager.stands(systemd.how_it_stands(self.engine))
        self.manager.ready()
        how = "started again, after a crash," if self._notices.begin() else "started"
        self.teller.notice(f"watchties {how} on {socket.gethostname()}", f"state directory: {self.state}\n")

    def _watch(self, tree, watch):
        watch.start(
            asyncio.get_running_loop(),
            lambda job: self.engine.touch(JobId(tree, job)),
            lambda reason: self._rescan(tree),
            lambda text: self.teller.problem(f"tree {tree}", text),
            lambda job, reason: self.teller.refuse_name(tree, job, reason),
        )

    async def _shut_down(self, leave):
        """Start nothing more, wait for the hooks at work, then tell them to stop; what is undone is found at the next start.

        leave: let the hooks be; they hold their locks, and the next daemon takes in what they leave.
        """
        if not leave:
            self.manager.stopping(self.config.daemon.stop_timeout)
        self.engine.starting, self.runner.leave = True, leave
        for watch in self.watches.values():
            watch.stop()
        runs_at_work = self.engine.dispatch.tasks
        if runs_at_work and not leave:
            log.info("waiting up to %g s for %d runs", self.config.daemon.stop_timeout, len(runs_at_work))
            await asyncio.wait(runs_at_work, timeout=self.config.daemon.stop_timeout)
        await self._cancel(runs_at_work)
        if not leave:
            await self._await_locks()
        self.engine.halt()
        await asyncio.wait([self._engine], timeout=SHUTDOWN)
        self.engine.flush()
        await self._cancel(self._tasks)
        self._glance.end()
        self.runner.close()
        self.journal.close()
        if not self._broken:
            self._notices.end()

    async def _await_locks(self):
        deadline = time.monotonic() + SHUTDOWN
        with contextlib.suppress(OSError):  # one that cannot be read now is the next daemon's
            while time.monotonic() < deadline and any(not self.dirs.is_free(run.lock) for run in self.dirs.left_over()):
                await asyncio.sleep(0.1)

    @staticmethod
    async def _cancel(tasks):
        """Cancel tasks until they have ended: a single cancellation may meet a task at its very end and be lost."""
        for _ in range(int(SHUTDOWN)):
            live = [task for task in tasks if not task.done()]
            if not live:
                return
            for task in live:
                task.cancel()
            await asyncio.wait(live, timeout=1)

    def _spawn(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)
        return task

    def _keep(self, part):
        """Begin a part of the daemon that goes on for ever, part(): also where this machine is short of something for a while."""

        async def kept():
            while True:
                try:
                    return await part()
                except OSError as error:
                    if error.errno not in MAY_PASS:
                        raise
                    self.teller.problem("daemon", str(error))
                    await asyncio.sleep(SHORT)

        return self._spawn(kept())

    def _ended_task(self, task):
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a part of the daemon failed", exc_info=task.exception())
            self._broken = task.exception()
            self.stop.set()  # a daemon that is half alive loses jobs in silence: end, and be started again

    # ---- the mirror ----

    def _first_scan(self):
        """Read all mirrors; no host is given more jobs than it may hold while nobody knows how many it has."""
        self.engine.dispatch.unread.update(self.watches)
        for name in self.watches:
            self._rescan(name)

    def _rescan(self, tree):
        """Scan a mirror, from the beginning if a scan is under way: what that one has seen may be out of date."""
        under_way = self._scans.get(tree)
        if under_way and not under_way.done():
            under_way.cancel()
        self._scans[tree] = self._keep(lambda: self._scan(tree, RESCAN_PAUSE if under_way else 0))

    async def _scan(self, tree, pause):
        """Look at every job directory of a mirror, in slices; have looked at what may need something done, forget who was removed."""
        await asyncio.sleep(pause)
        began, seen = time.monotonic(), set()
        for job, names in self.watches[tree].scan():
            seen.add(job)
            if markers.waiting(names):
                self.engine.read(JobId(tree, job), self.looks_at_all)
            if time.monotonic() - began > SLICE:
                await asyncio.sleep(0)
                began = time.monotonic()
        self.engine.has_read(tree)
        with contextlib.suppress(roots.TreeGone):
            self.journal.forget(tree, seen, lambda name: self.engine.has_left(JobId(tree, name)))

    def _tree_is_back(self, tree):
        """Look at all of a tree that was gone; what was announced of it meanwhile was not believed, so it is asked for again."""
        self.engine.tree_is_back(tree)
        self._rescan(tree)
        self.links[self.config.tree[tree].web].list_again()

    async def _reconcile(self):
        """Find what nobody has announced; forget what is old, at once: a daemon that is often told to reload may never come to it later."""
        while True:
            self.hooklog.prune()
            self.journal.prune(time.time() - self.config.daemon.journal_keep)
            await asyncio.sleep(self.config.daemon.reconcile)
            for name in self.watches:
                self._rescan(name)
            for link in self.links.values():
                link.list_again()

    async def _rebuild(self):
        """Fill a journal that is new from the records, a few jobs at a time."""
        rows, loop = rebuild.rows(self.config), asyncio.get_running_loop()
        while some := await loop.run_in_executor(None, lambda: list(itertools.islice(rows, REBUILD))):
            self.journal.put_many([row for row in some if not self.engine.jobs.get(JobId(*row[:2]))])
        self.journal.fresh = False

    # ---- hosts ----

    def _link(self, name):
        host, every = self.config.host[name], self.config.daemon.heartbeat
        far = ssh.from_config(self.plain, name)
        listener = Listener(
            self._announced, self._listed, self._host_up, self._host_down, self.teller.refuse_name, self._host_problem
        )
        shared = masters.Masters(far, lambda text: self._host_problem(name, text)) if far.ssh else None
        return Link(far, host.role, relays.trees_of(self.config, name), host.trigger, host.poll, every, listener, shared)

    def _announced(self, said):
        job = JobId(said.tree, said.job)
        if self.config.host[said.host].role != WEB:
            self.engine.hear_compute(job, said.marker, said.token)
        elif said.marker == PENDING:
            self.engine.hear_web(job, pending=said.ns)
        elif said.marker == CANCEL:
            self.engine.hear_web(job, cancel=said.ns)
        elif said.marker.startswith(TAKEN):
            self.engine.hear_web(job, taken=True)

    def _listed(self, host):
        """A compute host's relay has just (re)connected: what ended meanwhile is asked for, not listed."""
        if self.config.host[host].role != WEB:
            self.engine.ask_again(host)

    def _host_up(self, host, news):
        self.engine.host_is(host)
        if news:
            log.info("host %s is up again", host)
        self._notices.over(f"host {host}", f"host {host} is up again")

    def _host_down(self, host, reason):
        if host not in self.engine.down:
            log.warning("host %s is down: %s", host, reason.removeprefix(f"host {host}").lstrip(": "))
        self.engine.host_is(host, reason)

    def _host_failed(self, host, reason):
        if host in self.links:
            self.links[host].failed(reason)

    def _host_problem(self, host, text):
        self.teller.problem(f"host {host}", text)
