"""Real hosts on this machine for tests, and a whole site on them: vision, v11, b01, elgato, with sshd, over a network that can break.

    with Lab(folder) as lab:
        lab.on("v11", ["ssh", "runcompties@b01", "hostname"], user="webapp").stdout
        lab.fault("down", "b01")
        with LabSite(lab) as site:
            site.drop("ann/one")
            site.wait_state("ann/one", "DONE")

The hosts are those of lab/hosts.sh: namespaces, an sshd each. What lies on them is looked at from outside, below the
lab's folder; whatever is done there by watchties goes over ssh.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from helpers import put
from site_kit import COMMAND, RULES, Site

SCRIPTS = Path(__file__).parent / "lab"
CHECKOUT = Path(__file__).resolve().parent.parent
HOSTS = ("vision", "v11", "b01", "elgato")
TOOLS = ("sshd", "ssh", "rsync", "ip", "iptables", "tc", "nsenter", "unshare", "setpriv")
USERS = {"www-data": 33, "webapp": 2001, "runcompties": 2002}


def why_not():
    """Return why hosts cannot be made here, in one line; "" if they can."""
    if os.geteuid():
        return "the lab's hosts need root (network namespaces)"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if missing := [tool for tool in TOOLS if not shutil.which(tool, path=path)]:
        return f"the lab's hosts need {', '.join(missing)}: run contrib/setup.sh"
    trial = "mount -t tmpfs tmpfs /mnt && ip link add lab0 type veth peer name lab1"
    words = ["unshare", "-n", "-u", "-i", "-m", "-p", "-f", "--mount-proc", "sh", "-c", trial]
    tried = subprocess.run(words, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    return "the lab's hosts need namespaces, which are not to be had here: " + tried.stderr.strip() if tried.returncode else ""


def readable():
    """Return the paths that users of v11 have to see: this checkout, and the Python that it runs on."""
    paths = dict.fromkeys([str(CHECKOUT), sys.prefix, sys.base_prefix])
    return [p for p in paths if not p.startswith("/usr") and not (p != str(CHECKOUT) and p.startswith(f"{CHECKOUT}/"))]


class Lab:
    """Hosts, all they have being below one folder. shared: host -> the host whose /home is its home, too."""

    def __init__(self, folder, hosts=HOSTS, shared={}):
        self.folder, self.hosts = Path(folder).resolve(), hosts
        for host, other in shared.items():
            (self.folder / host).mkdir(parents=True)
            (self.folder / host / "home").symlink_to(f"../{other}/home")
        self._delay = None

    def up(self):
        """Switch all hosts on, with the keys and known hosts of webapp on v11; again, if they are on."""
        self._script("hosts.sh", "up", HOSTS=" ".join(self.hosts))
        for name, source, mode in ("id_ed25519", "id", 0o600), ("known_hosts", "known_hosts", 0o644):
            target = self.home("v11", "webapp") / ".ssh" / name
            shutil.copy(self.folder / source, target)
            target.chmod(mode)
            os.chown(target, USERS["webapp"], USERS["webapp"])
        return self

    def down(self):
        """Switch all off: no process, namespace or mount of the lab is left."""
        self.delay(0)
        self._script("hosts.sh", "down")

    def __enter__(self):
        return self.up()

    def __exit__(self, *_):
        self.down()

    def home(self, host, user):
        """Return where the home of a user on a host lies, seen from outside."""
        return self.folder / host / {"root": "root", "www-data": "www"}.get(user, f"home/{user}")

    def on(self, host, argv, user=None, input=None, check=True, timeout=60, **more):
        """Run a command inside a host, as root in / or as a user in their home; return the CompletedProcess with text."""
        streams = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(self.words(host, argv, user), env=self._environment(), capture_output=True, text=True, check=check,
                              timeout=timeout, **streams, **more)  # fmt: skip

    def start_on(self, host, argv, user=None, **more):
        """Start a command inside a host; return the Popen, whose pid is not that inside: see `signal_on`."""
        return subprocess.Popen(self.words(host, argv, user), env=self._environment(), stdin=subprocess.DEVNULL, **more)

    def words(self, host, argv, user=None):
        return [str(SCRIPTS / "on.sh"), *(["-u", user] if user else []), host, *map(str, argv)]

    # ---- what can go wrong ----

    def fault(self, op, host, *args):
        """Break or mend the network of a host; op as in lab/faults.sh: down up drop drop22 reject loss rate kill move freeze thaw clear."""
        self._script("faults.sh", op, host, *map(str, args))

    def delay(self, ms, *hosts):
        """Keep packets back for ms at each of these hosts' cables (all of them if none is named); 0 takes it back.

        From one host to another are two cables: with both of them, a round trip takes 4 * ms longer.
        """
        if self._delay:
            self._delay.terminate()
            self._delay.wait(10)
            self._delay.stdout.close()
            self._delay = None
        if ms:
            pid = (self.folder / "lan.pid").read_text().split()[0]
            argv = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, SCRIPTS / "delay.py", str(ms), *(hosts or self.hosts)]
            self._delay = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=self._environment())
            assert self._delay.stdout.readline() == "up\n", "the delay does not come up"

    @contextlib.contextmanager
    def delayed(self, ms, *hosts):
        self.delay(ms, *hosts)
        try:
            yield
        finally:
            self.delay(0)

    def stop_host(self, host):
        """Pull a host's plug."""
        self._script("hosts.sh", "stop", host)

    def start_host(self, host):
        """Switch a host on again: disks are as they were, but for its /etc, /var and /run."""
        self._script("hosts.sh", "start", host)

    def inside(self, host, script, *words, **variables):
        """Run a script of the lab as root inside a host, which may not see this checkout; return what it printed."""
        assigned = [f"{key}={value}" for key, value in variables.items()]
        done = self.on(host, ["env", *assigned, "bash", "-s", "--", *words], input=(SCRIPTS / script).read_text(), check=False)
        assert done.returncode == 0, f"{script} {' '.join(words)} on {host}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _script(self, name, *words, **more):
        more["READABLE"] = "\n".join(readable())
        done = subprocess.run([SCRIPTS / name, *words], env=self._environment() | more, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60)  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{name} {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")

    def _environment(self):
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("WATCHTIES_", "PYTEST_", "PYTHON"))}
        return keep | {"LAB": str(self.folder), "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])}


CONFIG = """
[host.vision]
role = "web"
{vision}
{web}
{computes}
[tree.main]
root = "~/compties/user_data"
web = "vision"
compute = [{names}]
{tree}
[mail]
folder = "~/mail"
from = "watchties@v11"
to = "{{user}}@localhost"
admin = "root@localhost"
[daemon]
disk_floor = "1MB"
{daemon}
"""
COMPUTE = """
[host.{name}]
role = "compute"
scheduler = "shell"
ssh = "runcompties@{name}"
max_running = {max_running}
{more}
"""
AS_ROOT = 'ssh = "root@vision"\nbecome = "www-data"'  # the two ways into the web host
WITHOUT_ROOT = 'ssh = "www-data@vision"'


class LabSite(Site):
    """A site as site_kit's, on a lab's hosts: the daemon is webapp's on v11, all else is reached by ssh.

    vision: AS_ROOT or WITHOUT_ROOT. web, host: more lines for the table of the web host, and of each compute host; the
    rest as in site_kit. A site begins with nothing but what `watchties deploy` puts on the hosts; an earlier one is
    wiped away.
    """

    def __init__(self, lab, *, vision=AS_ROOT, compute=("b01", "elgato"), max_running=50, web="", host="", tree="",
                 daemon='grace = "2s"', rules="", edit=lambda text: text, change=lambda text: text, hooks=(), deploy=True):  # fmt: skip
        self.lab, self.process, self._pid = lab, None, None
        self.base = home = lab.home("v11", "webapp")
        roots = {name: lab.home(name, "runcompties") / "compties" for name in compute}
        for path in lab.home("vision", "www-data") / "compties", *roots.values(), *(home / n for n in OURS):
            shutil.rmtree(path, ignore_errors=True)
        self.web = lab.home("vision", "www-data") / "compties/user_data"
        self.computes = {name: root / "user_data" for name, root in roots.items()}
        self.compute = self.computes[compute[0]]
        self.mirror, self.mail = home / "compties/user_data", home / "mail"
        self.state, self.conf = home / ".local/state/watchties", home / ".config/watchties/conf.d"
        computes = "".join(COMPUTE.format(name=name, max_running=max_running, more=host) for name in compute)
        names = ", ".join(f'"{name}"' for name in compute)
        text = CONFIG.format(vision=vision, web=web, computes=computes, names=names, tree=tree, daemon=daemon)
        put(self.conf / "10-site.toml", change(text))
        put(self.conf / "30-rules.toml", edit(RULES.read_text()) + rules)
        for name, text in dict(hooks).items():
            put(self.conf.parent / "hooks" / name, f"#!/bin/sh\n{text}").chmod(0o755)
        give(home / ".config", "webapp")
        if deploy:
            self.watchties("deploy", "vision", *compute)

    # ---- the daemon ----

    def watchties(self, *words, check=True, **more):
        """Run a command of watchties as webapp on v11; return the CompletedProcess with text."""
        done = self.lab.on("v11", [PROGRAM, *words], user="webapp", check=False, timeout=120, **more)
        assert not check or done.returncode == 0, f"watchties {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(self):
        note = 'echo $$ >"$0"; exec "$@"'  # its pid there, which is not that of the process outside
        (self.base / "daemon.pid").unlink(missing_ok=True)
        with open(self.base / "daemon.out", "ab") as out:
            argv = ["sh", "-c", note, "/home/webapp/daemon.pid", PROGRAM, "run"]
            self.process = self.lab.start_on("v11", argv, user="webapp", stdout=out, stderr=out)
        return self

    def pid(self):
        """Return the daemon's pid on v11."""
        return int(self.wait(lambda: (self.base / "daemon.pid").exists() and (self.base / "daemon.pid").read_text(), 10, "a pid"))

    def wait_ready(self):
        said = f"[{self.pid()}] watchties is at work"
        self.wait(lambda: said in (self.base / "daemon.out").read_text(errors="replace"), 30, "at work")

    def signal(self, number):
        """Send a signal to the daemon."""
        self.lab.on("v11", ["kill", f"-{int(number)}", self.pid()])

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            self.process.wait(60)
        return self.process.returncode if self.process else None

    # ---- jobs ----

    def drop(self, job, command=COMMAND, files=None, **texts):
        """Write a job on the web host as www-data's, and its PENDING. A command that begins with #! may be executed."""
        if command is not None:
            put(self.web / job / "command", command).chmod(0o755 if command.startswith("#!") else 0o644)
        super().drop(job, None, files, **texts)

    def touch(self, job, marker="PENDING", tree=None):
        """Make a request appear: on the web host as www-data's, in another tree as its owner's."""
        owner = {self.mirror: "webapp"}.get(tree, "www-data" if tree in (None, self.web) else "runcompties")
        where = (tree or self.web) / job
        give(where, owner)
        give(where.parent, owner, deep=False)
        put(where / ".request")
        give(where / ".request", owner)
        os.rename(where / ".request", where / marker)

    def runs(self, job):
        """Return how often a job's command has run, on all compute hosts together."""
        logs = [tree / job / "runs.log" for tree in self.computes.values()]
        return sum(len(log.read_text().splitlines()) for log in logs if log.exists())


OURS = ("compties", ".config", ".local", "mail", "daemon.out", "daemon.pid")
PROGRAM = str(Path(sys.prefix) / "bin" / "watchties")


def give(path, user, deep=True):
    """Make a user the owner of a path, and of all below."""
    paths = [path, *path.rglob("*")] if deep else [path]
    for each in paths:
        os.chown(each, USERS[user], USERS[user], follow_symlinks=False)
