"""A site on one machine for tests: web host, mirror, compute host, in three directories; hooks run on it as programs.

    site = make_site(tmp_path)
    job = site.job("ann/e1")                       # a line of WATCHTIES_JOBS
    write(site.web / "ann/e1", command="echo hello")
    ended = site.run_hook("pull", [job])
    assert ended.outcome("ann/e1") == "done"
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HOOKS = REPOSITORY / "hooks"
AGENT = REPOSITORY / "watchties" / "far" / "agent.sh"
TREE = "ties"


@dataclass
class Ended:
    """How a hook ended: exit code, both streams, the lines of its results file."""

    code: int
    out: str
    err: str
    rows: list

    def row(self, job, tree=TREE):
        """Return the last line about a job; fail if there is none."""
        found = [row for row in self.rows if (row["tree"], row["job"]) == (tree, job)]
        assert found, f"nothing said of {job}: exit {self.code}\n{self.out}\n{self.err}"
        return found[-1]

    def outcome(self, job):
        return self.row(job)["outcome"]

    def fields(self, job):
        return self.row(job)["fields"]

    def reason(self, job):
        return self.row(job)["reason"]


class Site:
    """Three directories that stand for vision, v11 and b01. config: the plain configuration that hooks read."""

    def __init__(self, base):
        self.base = Path(base)
        self.home = self.base / "home"
        self.mirror = self.base / "v11" / "user_data"
        self.roots = {name: self.base / name / "compties" for name in ("vision", "b01")}
        self.web, self.compute = (self.roots[name] / "user_data" for name in ("vision", "b01"))
        for directory in self.home, self.mirror, self.web, self.compute:
            directory.mkdir(parents=True)
        for root in self.roots.values():
            (root / "scripts").mkdir()
            (root / "bin").mkdir()
            if AGENT.exists():
                shutil.copy(AGENT, root / "scripts")
        self.config = plain_config(self)
        self.runs, self.token = 0, secrets.token_hex(8)  # of a first attempt; unique, as processes are looked for by it

    def job(self, name, attempt=1, token=None, **more):
        """Return what a hook is told of a job; `more` replaces or adds keys."""
        token = token or self.token
        return {
            "tree": TREE, "job": name, "dir": str(self.mirror / name), "place": "web", "marker": "PENDING", "attempt": attempt,
            "token": token, "host": "b01", "identity": "", "accepted": [], "fields": {}, "ended": {},
        } | more  # fmt: skip

    def prepare(self, name, jobs, host=None, rule=None, **env):
        """Return (environment, results file) for a run of a hook, with its files written."""
        self.runs += 1
        where = self.base / "runs" / f"{self.runs}"
        where.mkdir(parents=True)
        (where / "config").write_text(json.dumps(self.config))
        (where / "jobs").write_text("".join(json.dumps(job) + "\n" for job in jobs))
        (where / "result").touch()
        host = host or ("vision" if name in ("pull", "report", "push") else "b01")
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        contract = {
            "WATCHTIES_RULE": rule or name, "WATCHTIES_HOST": host, "WATCHTIES_RUN": f"run-{self.runs}",
            "WATCHTIES_CONFIG": str(where / "config"), "WATCHTIES_JOBS": str(where / "jobs"), "WATCHTIES_RESULT": str(where / "result"),
            "HOME": str(self.home), "PATH": path, "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip
        return os.environ | contract | env, where / "result"

    def run_hook(self, name, jobs, host=None, rule=None, timeout=120, hooks=HOOKS, **env):
        """Execute a hook file as the program it is and return how it Ended."""
        environment, result = self.prepare(name, jobs, host, rule, **env)
        done = subprocess.run([sys.executable, str(hooks / name)], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, errors="surrogateescape", timeout=timeout, check=False)  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr, read_rows(result))


def make_site(base, **changes):
    """Return a Site below a directory; `changes` are put into its configuration, dicts merged: tree={"ties": {...}}."""
    site = Site(base)
    merge(site.config, changes)
    return site


def plain_config(site):
    """Return a configuration in the plain form that hooks read."""
    return {
        "host": {
            "vision": {"role": "web", "ssh": None, "root": str(site.roots["vision"]), "become": None, "chmod": None, "bwlimit": None},
            "b01": {"role": "compute", "ssh": None, "root": str(site.roots["b01"]), "become": None, "chmod": None, "bwlimit": None,
                    "scheduler": "shell", "setup": None, "submit_options": [], "resources": {}, "caps": {}},
        },
        "tree": {
            TREE: {"root": str(site.mirror), "jobs": "*/*", "web": "vision", "compute": ["b01"], "path": {},
                   "success": {"stderr_empty": False, "require": [], "forbid": []}, "limits": {"size": None, "files": None}},
        },
        "rule": [],
        "mail": {},
        "daemon": {"grace": 60.0},
        "home": str(site.home),
    }  # fmt: skip


def merge(table, changes):
    """Put changes into a table, dict by dict."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            merge(table[key], value)
        else:
            table[key] = value


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


def write(directory, **files):
    """Make a directory with files: name=content (text or bytes); "__" in a name stands for "/", "_dot_" for "."."""
    for name, content in files.items():
        put(Path(directory) / name.replace("__", "/").replace("_dot_", "."), content)
    Path(directory).mkdir(parents=True, exist_ok=True)


def put(path, content=b""):
    """Write a file whole, with the directories it needs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return path


def identity(path):
    """Return a marker's identity: its mtime in nanoseconds, as text."""
    return str(os.lstat(path).st_mtime_ns)


def files_below(directory):
    """Return {path: content} of the regular files below a directory, hidden ones of ours left out."""
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file() and not path.is_symlink() and not any(part.startswith(".watchties") for part in path.parts):
            found[str(path.relative_to(directory))] = path.read_bytes()
    return found


def free_port():
    """Return a TCP port of 127.0.0.1 that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def runs(pid):
    """Return whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=20, every=0.02):
    """Wait until condition() is true, and return what it returned; fail after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"not so after {seconds} s: {condition}")
