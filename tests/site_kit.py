"""A whole site on this machine for tests: three trees, a configuration, and a real daemon as a process.

Nothing here stands in for a part of watchties: the daemon is the installed command, hooks, rsync, relay and agent are real.
"""

import email
import email.policy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers import put
from watchties import recordfile
from watchties.model import one_line, parse_marker

FAR = Path(__file__).parent.parent / "watchties" / "far"
RULES = Path(__file__).parent.parent / "conf.d" / "30-rules.toml"
COMMAND = "echo run >> runs.log\ncat in.txt > out.txt\n"

CONFIG = """
[host.vision]
role = "web"
root = "{base}/vision/compties"
[host.b01]
role = "compute"
scheduler = "shell"
root = "{base}/b01/compties"
max_running = {max_running}
[tree.main]
root = "{base}/v11/user_data"
web = "vision"
compute = ["b01"]
{tree}
[mail]
folder = "{base}/mail"
from = "watchties@localhost"
to = "{{user}}@localhost"
admin = "root@localhost"
[daemon]
disk_floor = "1MB"
{daemon}
"""


class Site:
    """One site below `base`. tree, daemon: more lines for those tables; rules: more [[rule]] tables; edit: their text -> text.

    change: the text of all other tables -> text; hooks: name -> shell text of hooks of the site's own.
    """

    def __init__(self, base, *, max_running=50, tree="", daemon='grace = "2s"', rules="", edit=lambda text: text,
                 change=lambda text: text, hooks=()):  # fmt: skip
        self.base = Path(base)
        self.web = self.base / "vision/compties/user_data"
        self.mirror = self.base / "v11/user_data"
        self.compute = self.base / "b01/compties/user_data"
        self.mail, self.state, self.conf = self.base / "mail", self.base / "state", self.base / "etc/conf.d"
        self.process = None
        for host in self.web.parent, self.compute.parent:
            for name in "scripts", "bin", "user_data":
                (host / name).mkdir(parents=True)
            for name in "agent.sh", "relay.py":
                shutil.copy(FAR / name, host / "scripts")
        for folder in self.mirror, self.conf, self.conf.parent / "hooks":
            folder.mkdir(parents=True, mode=0o755)
        text = CONFIG.format(base=self.base, max_running=max_running, tree=tree, daemon=daemon)
        (self.conf / "10-site.toml").write_text(change(text))
        (self.conf / "30-rules.toml").write_text(edit(RULES.read_text()) + rules)
        for name, text in dict(hooks).items():
            put(self.conf.parent / "hooks" / name, f"#!/bin/sh\n{text}").chmod(0o755)

    # ---- the daemon ----

    def environment(self):
        return os.environ | {"WATCHTIES_CONF_DIR": str(self.conf), "WATCHTIES_STATE_DIR": str(self.state)}

    def watchties(self, *words, check=True, **more):
        """Run a command of watchties; return the CompletedProcess with text."""
        argv = [os.path.join(os.path.dirname(sys.executable), "watchties"), *words]
        return subprocess.run(argv, env=self.environment(), capture_output=True, text=True, check=check, timeout=120, **more)

    def start(self):
        argv = [os.path.join(os.path.dirname(sys.executable), "watchties"), "run"]
        with open(self.base / "daemon.out", "ab") as out:
            self.process = subprocess.Popen(argv, env=self.environment(), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        return self

    def wait_ready(self):
        """Wait until the daemon that was started last says that it is at work."""
        out = self.base / "daemon.out"
        self.wait(lambda: f"[{self.process.pid}] watchties is at work" in out.read_text(errors="replace"), 30, "at work")

    def kill(self):
        """End the daemon as a crash does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """End the daemon as an administrator does; return its exit code."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        return self.process.returncode if self.process else None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # ---- jobs ----

    def drop(self, job, command=COMMAND, files=None, **texts):
        """Write a job on the web host, and its PENDING by rename, as contrib/web does."""
        where = self.web / job
        where.mkdir(parents=True, exist_ok=True)
        for name, content in {"in.txt": f"input of {job}\n", **(files or {}), **texts}.items():
            put(where / name, content)
        if command is not None:
            (where / "command").write_text(command)
        self.touch(job)

    def touch(self, job, marker="PENDING", tree=None):
        """Make a request appear."""
        where = (tree or self.web) / job
        (where / ".request").write_text("")
        os.rename(where / ".request", where / marker)

    def marker(self, job, tree=None):
        """Return (name, fields) of the state marker that stands for a job on the web host (or another tree), or ("", {})."""
        for name in "PENDING", "SUBMITTED", "FAILED", "DONE":
            try:
                return name, parse_marker(((tree or self.web) / job / name).read_bytes())
            except FileNotFoundError:
                continue
        return "", {}

    def record(self, job):
        return recordfile.load(str(self.mirror / job))

    def runs(self, job):
        """Return how often a job's command has run on the compute host."""
        log = self.compute / job / "runs.log"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def letter(self, job):
        """Return the last mail about a job as an EmailMessage, or None. Jobs of a test need experiments of different names."""
        read = (email.message_from_string(text, policy=email.policy.default) for text in self.letters())
        about = f"Experiment:  {one_line(job.partition('/')[2])}\n"
        return next((found for found in reversed(list(read)) if about in found.get_body(("plain",)).get_content()), None)

    def letters(self):
        """Return the text of each mail to a user."""
        return [p.read_text() for p in sorted(self.mail.glob("*.eml")) if not p.name.startswith("notice")]

    def wait(self, condition, seconds=60, what=""):
        """Wait until a condition holds; fail with what the daemon and the hooks have said."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"not in time: {what}\n{self.said()}")
            if self.process and self.process.poll() is not None:
                raise AssertionError(f"the daemon has ended ({self.process.returncode}): {what}\n{self.said()}")
            time.sleep(0.05)
        return value

    def wait_state(self, job, state, seconds=60):
        self.wait(lambda: self.marker(job)[0] == state, seconds, f"{job} {state}, it is {self.marker(job)}")
        return self.marker(job)[1]

    def said(self):
        parts = [self.base / "daemon.out", *sorted((self.state / "log").glob("*.log"))]
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in parts if p.exists())

    def quiet(self):
        """Return whether every job in the mirror is at rest: no open flag stands, no run is left."""
        return not list(self.mirror.glob("*/*/.watchties.open")) and not list((self.state / "runs").iterdir())
