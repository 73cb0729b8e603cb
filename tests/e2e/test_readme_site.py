"""README's "A real site, in ten minutes", followed word for word on the lab's hosts, from a v11 on which nothing is yet.

What is typed stands in README.md, block by block and in its order, into a terminal on v11 as webapp; host keys and
passwords are answered there. What differs from README's words, and why:

- the clone and its .venv are this checkout, which v11 may read: `make demo` needs the network, and has a test of its own;
- `watchties deploy`, `check` and `run` of "Set it up for real" come with the site's section, which has them once more;
- the configuration's blocks are written as the whole of 10-hosts.toml, as an editor would;
- "install the new version" is a copy of the package with other versions of agent and relay, found first by PYTHONPATH;
- carrier and its line in sudoers, the passwords, and the logins' keys that the lab makes otherwise, are the hosts' administrators' part.
"""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import put, wait_for
from lab_kit import CHECKOUT, Lab, give, why_not
from watchties.model import parse_marker

pytestmark = pytest.mark.slow

README = (CHECKOUT / "README.md").read_text()
LOGINS = ("runcompties@b01", "root@vision", "www-data@vision", "carrier@vision")
PASSWORDS = {login: f"the password of {login}" for login in LOGINS}
PROMPT = r"(?:\(\.venv\) )?<v11 waits, (\d+)> "  # with the exit code of what was typed before
HOLD = "echo run >>runs.log\nfor _ in $(seq 1200); do [ -e go ] && exit 0; sleep 0.1; done\nexit 1\n"


def section(title):
    return re.split(r"^## ", README.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def blocks(text):
    """Return the fenced blocks of a text in their order."""
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


SITE = section("A real site, in ten minutes")
KEYS, SSH_CONFIG, HOSTS_TOML, HOME, BEGIN, UPGRADE, UNINSTALL = blocks(SITE)
INSTALL, = blocks(section("Set it up for real"))
HAND_OVER = next(block for block in blocks(section("For whoever writes the web application")) if "CPU_SERVER" in block)


class Terminal:
    """A shell of webapp's on v11 in a terminal; what asks for a password or a host key is answered."""

    def __init__(self, lab, fingerprints):
        self.fingerprints, self.said = fingerprints, ""  # said: and not yet looked at
        self.pid, self.fd = pty.fork()
        if not self.pid:
            words = lab.words("v11", ["env", "PS1=<v11 waits, $?> ", "bash", "--norc", "--noprofile", "-i"], "webapp")
            os.execve(words[0], words, lab._environment() | {"TERM": "dumb"})
        self.until(PROMPT)
        self.run("bind 'set enable-bracketed-paste off'; stty -echo")

    def type(self, text):
        os.write(self.fd, f"{text}\n".encode())

    def until(self, wanted, seconds=60):
        """Return what is said until a pattern matches, and the match; answer what is asked meanwhile."""
        end = time.monotonic() + seconds
        while not (found := re.search(wanted, self.said)):
            assert time.monotonic() < end, f"{wanted!r} does not come: {self.said}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.said = self.answered(self.said + os.read(self.fd, 65536).decode("utf-8", "replace").replace("\r\n", "\n"))
        before, self.said = self.said[: found.start()], self.said[found.end() :]
        return before, found

    def answered(self, text):
        """Answer a question at the end of a text, and mark it as answered."""
        if text.endswith("(yes/no/[fingerprint])? "):
            asked = re.search(r"authenticity of host '(\w+).*key fingerprint is (\S+?)\.?\n", text.rpartition("The ")[2], re.DOTALL)
            assert self.fingerprints[asked[1]] == asked[2], text  # the one that the host's administrator gave us
            self.type("yes")
            return text + "(answered yes)\n"
        if asked := re.search(r"([\w-]+@\w+)'s password: $", text):
            self.type(PASSWORDS[asked[1]])
            return text + "(answered)\n"
        return text

    def run(self, line):
        """Type one line, which must end well; return what was said until the next prompt."""
        self.type(line)
        said, prompt = self.until(PROMPT)
        assert prompt[1] == "0", f"{line}: {said}"
        return said

    def run_all(self, block):
        return "".join(self.run(line) for line in block.splitlines() if line.split("#")[0].strip())

    def close(self):
        os.close(self.fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with Lab(tmp_path_factory.mktemp("readme")) as up:
        empty(up)
        yield up


def empty(lab):
    """Make v11 one on which nothing is yet, and the others hosts that let in by password; carrier is one more login on vision."""
    shutil.rmtree(lab.home("v11", "webapp") / ".ssh")
    lab.on("vision", ["useradd", "-m", "-s", "/bin/bash", "carrier"])
    lab.on("vision", ["chown", "root:root", "/var/www"])  # as Debian's web servers leave it
    for login, password in PASSWORDS.items():
        user, _, host = login.partition("@")
        hashed = subprocess.run(["openssl", "passwd", "-6", password], capture_output=True, text=True, check=True).stdout.strip()
        lab.on(host, ["usermod", "-p", hashed, user])
        (lab.home(host, user) / ".ssh/authorized_keys").unlink(missing_ok=True)
    for host in "vision", "b01":
        config = lab.folder / host / "ssh/sshd_config"
        config.write_text("PasswordAuthentication yes\nPermitRootLogin yes\n" + config.read_text())
        lab.on(host, ["pkill", "-HUP", "-o", "-x", "sshd"])
    wait_for(lambda: all((lab.folder / host / "log").read_text().count("Server listening on 0") == 2 for host in ("vision", "b01")))


def fingerprint(lab, host):
    key = lab.folder / host / "ssh/key.pub"
    return subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout.split()[1]


@pytest.fixture
def terminals(lab):
    """Give a function that opens a terminal in the activated environment, as every part of README begins."""
    opened, fingerprints = [], {host: fingerprint(lab, host) for host in ("vision", "b01")}

    def new(first="."):
        opened.append(terminal := Terminal(lab, fingerprints))
        terminal.run(f"cd {CHECKOUT}")
        terminal.run(INSTALL.splitlines()[0])
        return terminal

    yield new
    for terminal in opened:
        terminal.close()


def state(lab, job):
    """Return (name, fields) of the final marker of a job on the web host."""
    for name in "DONE", "FAILED":
        path = lab.home("vision", "www-data") / "compties/user_data" / job / name
        if path.exists():
            return name, parse_marker(path.read_bytes())
    return "", {}


def hand_over(lab, experiment):
    """Follow README's block for web applications, as the web server's user on vision."""
    lab.on("vision", ["sh", "-eu", "-c", HAND_OVER.replace("My experiment", experiment)], user="www-data")
    job = f"ann/{experiment}"
    wait_for(lambda: state(lab, job)[0] == "DONE", 60)
    assert (lab.home("vision", "www-data") / "compties/user_data" / job / "remote_ties_run.res").read_text() == "1\n2\n3\n"
    return state(lab, job)[1]


def begin(terminal):
    """Follow README's block that deploys, checks and runs; return when the daemon is at work."""
    *before, run = BEGIN.splitlines()
    said = "".join(terminal.run(line) for line in before)
    assert "WRONG" not in said and "Everything is as it must be." in said, said
    terminal.type(run)
    terminal.until("watchties is at work")


def end(terminal):
    """End the daemon as a person does."""
    os.write(terminal.fd, b"\x03")
    terminal.until(PROMPT)


def test_a_site_is_set_up_upgraded_and_taken_away_as_readme_says(lab, terminals):
    home = lab.home("v11", "webapp")
    webapp = terminals()
    webapp.run_all("\n".join(INSTALL.splitlines()[1:3]))
    webapp.run_all(KEYS)
    give(put(home / ".ssh/config", SSH_CONFIG), "webapp")
    for login in "runcompties@b01", "root@vision":
        assert webapp.run(f"ssh {login} whoami").split() == [login.partition("@")[0]]  # asked for nothing any more
    hosts = home / ".config/watchties/conf.d/10-hosts.toml"
    hosts.write_text(HOSTS_TOML)
    webapp.run_all(HOME)
    begin(webapp)
    assert hand_over(lab, "as root")["host"] == "b01"
    assert (lab.home("vision", "www-data") / "compties/user_data/ann/as root/DONE").owner() == "www-data"
    end(webapp)

    for login in "www-data@vision", "carrier@vision":
        (line,) = set(re.findall(rf'ssh = "{login}"', SITE))
        webapp.run(KEYS.splitlines()[2].split("#")[0].replace("root@vision", login))
        text = HOSTS_TOML.replace('ssh = "root@vision"', line)
        if login.startswith("carrier"):
            sudoers = re.search(r"^    (carrier .*)$", SITE, re.MULTILINE)[1]
            lab.on("vision", ["sh", "-c", "cat >/etc/sudoers.d/carrier && chmod 440 /etc/sudoers.d/carrier"], input=sudoers + "\n")
            assert 'become = "www-data"' in text
        else:
            text = re.sub(r"^become = .*\n", "", text, flags=re.MULTILINE)
        hosts.write_text(text)
        begin(webapp)
        hand_over(lab, f"as {login.partition('@')[0]}")
        end(webapp)

    hosts.write_text(HOSTS_TOML)
    begin(webapp)
    assert_upgrade(lab, webapp, terminals)
    assert_uninstall(lab, webapp)


def assert_upgrade(lab, webapp, terminals):
    """Upgrade while a job runs: it goes on, once, and what is on the hosts is the new version's."""
    data = lab.home("b01", "runcompties") / "compties/user_data/ann/runs"
    job = lab.home("vision", "www-data") / "compties/user_data/ann/runs"
    put(job / "command", HOLD)
    put(job / "PENDING")
    give(job, "www-data")
    wait_for(lambda: (data / "runs.log").exists(), 60)
    other = terminals()
    put_new_version(lab.home("v11", "webapp") / "new")
    other.run("export PYTHONPATH=~/new")
    deploy, run = UPGRADE.splitlines()
    said = other.run(deploy)
    assert said.count("(replaced)") == 6 and "agent 1000 runs there" in said, said
    end(webapp)
    other.type(run)
    other.until("watchties is at work")
    put(data / "go")
    wait_for(lambda: state(lab, "ann/runs")[0] == "DONE", 60)
    assert state(lab, "ann/runs")[1]["attempt"] == "1" and (data / "runs.log").read_text() == "run\n"
    hand_over(lab, "after the upgrade")
    end(other)


def put_new_version(where):
    """Make a newer watchties there: the same, but for the versions of agent and relay."""
    shutil.copytree(CHECKOUT / "watchties", where / "watchties", ignore=shutil.ignore_patterns("__pycache__"))
    for name, package in ("hooks", "hooks"), ("conf.d", "conf"):
        shutil.copytree(CHECKOUT / name, where / "watchties" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, line in ("agent.sh", "AGENT_VERSION=1000"), ("relay.py", "VERSION = 1000"):
        file: Path = where / "watchties/far" / name
        file.write_text(re.sub(rf"^{line.split('=')[0]}=.*$", line, file.read_text(), count=1, flags=re.MULTILINE))
    give(where, "webapp")


def assert_uninstall(lab, webapp):
    """Nothing of ours is left anywhere, and all jobs with their results are."""
    trees = [lab.home(*login) / "compties" for login in (("vision", "www-data"), ("v11", "webapp"), ("b01", "runcompties"))]
    theirs = put(trees[2] / "scripts/nightly.sh", "an administrator's\n")
    webapp.run_all(UNINSTALL)
    assert list((trees[2] / "scripts").iterdir()) == [theirs] and not (trees[0] / "scripts").exists()
    for tree in trees:
        assert not list(tree.rglob(".watchties*"))
        assert (tree / "user_data/ann/as root/remote_ties_run.res").read_text() == "1\n2\n3\n"
    home = lab.home("v11", "webapp")
    assert not (home / ".config/watchties").exists() and not (home / ".local/state/watchties").exists()
