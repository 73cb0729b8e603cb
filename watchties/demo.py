"""The demo's work: three trees on this machine, a configuration for them, example jobs, a real daemon, and looking on.

Knows: what stands for vision, v11 and b01; how a user's web application would hand jobs over.
Must not know: how it is shown (cli/demo.py). The daemon is a child process that hears of the jobs by their markers only.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import resources

from watchties import config, deploy, markers, ssh
from watchties.errors import UserError, WatchtiesError
from watchties.model import DONE, FAILED, MARKERS, OPEN_FLAG, PENDING, user_of

PEOPLE = {"ann": "ann@example.org", "zoë o'neil": "zoe@example.org", "bob": "bob@example.org"}
NAMES = ("Exp_{}", 'Exp {}, "closeness"; $(second try)', "Exp_{}_again")  # a name is never more than a name
DYADS, MOMENTS, NOISE = 8, 60, 2
RESULTS = ("parameters.csv", "curves.svg")
COMMAND = """#!/bin/sh
# The job. fit_oscillators.py lies in compties/bin of the compute host, which comes first on PATH.
exec fit_oscillators.py data.csv --out parameters.csv --plot curves.svg --moderator closeness
"""
PROGRAMS = ("fit_oscillators.py", "oscillators.py")
PATIENCE, PATIENCE_PER_JOB = 120, 3  # seconds
STOP_WITHIN = 60  # seconds, more than [daemon] stop_timeout
KEPT_RULES = "30-rules.toml"


@dataclass(frozen=True)
class Way:
    """How far a job has come: the markers that stand at each place; whether its mail is there; seconds since it was dropped."""

    job: str
    web: str
    mirror: str
    compute: str
    mail: bool
    seconds: float
    ended: bool

    @property
    def shown(self):
        return self.web, self.mirror, self.compute, self.mail


class Demo:
    """Three trees in a directory. count: jobs."""

    def __init__(self, folder, count, clock=time.monotonic):
        self.folder, self.clock = folder, clock
        people = list(PEOPLE)
        self.jobs = [f"{people[i % 3]}/{NAMES[i % 3].format(i + 1)}" for i in range(count)]
        self.web, self.mirror, self.compute = (self.at(host, "compties", "user_data") for host in ("vision", "v11", "b01"))
        self.conf, self.state, self.mail = self.at("conf.d"), self.at("state"), self.at("mail")
        self.dropped, self.took, self.daemon = {}, {}, None
        self.patience = PATIENCE + PATIENCE_PER_JOB * count

    def at(self, *parts):
        return os.path.join(self.folder, *parts)

    def words(self, *command):
        """Return the command line of watchties for these three trees."""
        return [sys.executable, "-P", "-m", "watchties.cli", "--config", self.conf, "--state", self.state, *command]

    # ---- before ----

    def prepare(self):
        """Make everything but the jobs. Raises UserError if the directory holds something already."""
        if os.path.isdir(self.folder) and os.listdir(self.folder):
            raise UserError(f"{self.folder} is not empty; name a directory that is, or that is not there yet")
        for path in self.conf, self.state, self.mail, self.web, self.mirror, self.compute:
            os.makedirs(path, mode=0o755, exist_ok=True)
        for name, text in self.fragments().items():
            fd = os.open(os.path.join(self.conf, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
        plain = config.plain(config.load(self.conf, self.state))
        for host in "vision", "b01":
            asyncio.run(deploy.deploy(ssh.from_config(plain, host), ["user_data"]))
        for name in PROGRAMS:
            path = self.at("b01", "compties", "bin", name)
            with resources.as_file(resources.files("watchties.examples") / name) as source:
                shutil.copyfile(source, path)
            os.chmod(path, 0o755)

    def fragments(self):
        """Return file name -> text of a configuration for three trees here; the rules are those that come with watchties."""
        running = max(4, os.cpu_count() or 0)
        root = {host: json.dumps(self.at(host, "compties"), ensure_ascii=False) for host in ("vision", "b01")}
        to = ", ".join(f"{json.dumps(user, ensure_ascii=False)} = {json.dumps(address)}" for user, address in PEOPLE.items())
        mirror, mail = (json.dumps(path, ensure_ascii=False) for path in (self.mirror, self.mail))
        return {
            "10-hosts.toml": f'[host.vision]\nrole = "web"\nroot = {root["vision"]}\n\n'
            f'[host.b01]\nrole = "compute"\nroot = {root["b01"]}\nscheduler = "shell"\nmax_running = {running}\npoll = "5s"\n',
            "20-trees.toml": f'[tree.demo]\nroot = {mirror}\nweb = "vision"\ncompute = ["b01"]\n',
            KEPT_RULES: (resources.files("watchties.conf") / KEPT_RULES).read_text(encoding="utf-8"),
            "40-mail.toml": f'[mail]\nfolder = {mail}\nfrom = "watchties@localhost"\nadmin = "root@localhost"\nto = {{ {to} }}\n',
            "50-daemon.toml": '[daemon]\ngrace = "5s"\ndisk_floor = "50MB"\n',
        }

    # ---- the daemon ----

    def start(self):
        """Start the daemon as a child process; what it says goes to its log, and to daemon.err."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WATCHTIES_")}
        with open(self.at("daemon.err"), "wb") as err:
            self.daemon = subprocess.Popen(self.words("run"), stdin=subprocess.DEVNULL, stdout=err, stderr=err, env=environment)

    def stop(self):
        """End the daemon and wait for it; raise WatchtiesError if it does not end, or ends badly."""
        if not self.daemon:
            return
        daemon, self.daemon = self.daemon, None
        with contextlib.suppress(ProcessLookupError):
            daemon.send_signal(signal.SIGTERM)
        try:
            code = daemon.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            raise WatchtiesError(f"the daemon (pid {daemon.pid}) did not end within {STOP_WITHIN} s of SIGTERM, and was killed") from None
        if code:
            raise WatchtiesError(f"the daemon ended with exit code {code}")

    def has_died(self):
        """Return whether the daemon has ended by itself."""
        return self.daemon is not None and self.daemon.poll() is not None

    # ---- the jobs ----

    def drop(self):
        """Hand the jobs over as a web application does: the inputs first, PENDING last, by renaming."""
        from watchties.examples import make_dyads

        for seed, job in enumerate(self.jobs, 1):
            where = os.path.join(self.web, job)
            os.makedirs(where)
            data, truth = make_dyads.make(DYADS, MOMENTS, NOISE, seed)
            make_dyads.write(os.path.join(where, "data.csv"), make_dyads.DATA, data)
            with open(os.path.join(where, "command"), "w", encoding="utf-8") as file:
                file.write(COMMAND)
            markers.put_request(where, PENDING)
            self.dropped[job] = self.clock()

    def look(self):
        """Return the Way of each job as it is now."""
        letters = {name.rsplit(".", 2)[-2] for name in os.listdir(self.mail) if name.endswith(".eml")}  # named by the attempt's token
        return [self._way(job, letters) for job in self.jobs]

    def _way(self, job, letters):
        state = next((m for m in markers.look(os.path.join(self.web, job)).markers.values() if m.name in (DONE, FAILED)), None)
        shown = [self._shown(root, job) for root in (self.web, self.mirror, self.compute)]
        mailed = bool(state and state.token in letters)
        at_rest = not os.path.lexists(os.path.join(self.mirror, job, OPEN_FLAG))  # all of it is in the record, too
        ended = mailed and at_rest and shown[0] == state.name
        seconds = self.took.get(job) or self.clock() - self.dropped[job]
        if ended:
            self.took[job] = seconds
        return Way(job, *shown, mailed, seconds, ended)

    @staticmethod
    def _shown(root, job):
        where = os.path.join(root, job)
        names = [name for name in MARKERS if os.path.lexists(os.path.join(where, name))]
        return "+".join(names) or ("..." if os.path.isdir(where) else "-")

    def lacking(self, ways):
        """Return a line on each thing that is not as it must be at the end; [] is success."""
        said = [f"{way.job}: {way.web} on the web host, not {DONE}" for way in ways if way.web != DONE]
        said += [f"{way.job}: no mail to {PEOPLE[user_of(way.job)]}" for way in ways if not way.mail]
        wanted = [(way.job, name) for way in ways if way.web == DONE for name in RESULTS]
        return said + [f"{job}: {name} is not on the web host" for job, name in wanted if not self._has(job, name)]

    def _has(self, job, name):
        path = os.path.join(self.web, job, name)
        return os.path.isfile(path) and os.path.getsize(path) > 0
