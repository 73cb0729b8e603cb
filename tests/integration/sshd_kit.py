"""One sshd of our own on 127.0.0.1, for tests that everybody can run: no root, no account, no file outside one folder.

    with Sshd(folder) as sshd:
        configuration = f'[host.vision]\n{sshd.toml()}\nroot = "{folder}/vision/compties"'

Who runs the tests logs in as themselves, with a key of the folder's, into a home below the folder: so a .bashrc or
.profile there is the test's own. Nobody's ssh_config, agent or known_hosts is looked at.
"""

import contextlib
import getpass
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from helpers import free_port, wait_for

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM {pam}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
MaxStartups 100
SetEnv HOME={home}
Subsystem sftp internal-sftp
"""


class Sshd:
    """An sshd below `folder` (which has no blanks in its name). more: lines for its sshd_config, first come first served."""

    def __init__(self, folder, more=""):
        self.folder = Path(folder) / "sshd"
        self.home, self.log = self.folder / "home", self.folder / "log"
        self.home.mkdir(parents=True)
        self.more, self.port, self.process = more, free_port(), None
        for name in "host_key", "id":
            keygen(self.folder / name)
        shutil.copy(self.folder / "id.pub", self.folder / "authorized_keys")
        self.trust()

    def trust(self):
        """Write known_hosts with the host key as it is now."""
        key = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key[0]} {key[1]}\n")

    # ---- how to get in ----

    ssh = "127.0.0.1"

    @property
    def options(self):
        """What `ssh_options` of the host has to be."""
        return [
            "-F none", f"Port={self.port}", f"User={getpass.getuser()}", f"IdentityFile={self.folder}/id", "IdentitiesOnly=yes",
            f"UserKnownHostsFile={self.folder}/known_hosts", "GlobalKnownHostsFile=none", "StrictHostKeyChecking=yes",
        ]  # fmt: skip

    def toml(self):
        """Return the lines for a [host.NAME] table."""
        return f"ssh = {json.dumps(self.ssh)}\nssh_options = {json.dumps(self.options)}\n"

    # ---- life ----

    def start(self):
        lines = CONFIG.format(folder=self.folder, home=self.home, port=self.port, pam=pam())
        (self.folder / "sshd_config").write_text(f"{self.more}\n{lines}")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # root's sshd separates privileges there, at no other place
        path = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
        assert path, "sshd is missing: run contrib/setup.sh"  # called by its whole path, as it starts itself again
        self.log.write_text("")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([path, "-D", "-e", "-f", self.folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log)
        wait_for(lambda: "Server listening" in self.log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def stop(self):
        """End it, with the connections that are open: a host that is switched off."""
        if self.process and self.process.poll() is None:
            for pid in [*sessions(self.process.pid), self.process.pid]:
                signal_to(pid, signal.SIGKILL)
            self.process.wait(10)

    def freeze(self):
        """Let it hang, with the connections that are open: new ones are accepted by the kernel and never answered."""
        for pid in [self.process.pid, *sessions(self.process.pid)]:
            signal_to(pid, signal.SIGSTOP)

    def thaw(self):
        for pid in [*sessions(self.process.pid), self.process.pid]:
            signal_to(pid, signal.SIGCONT)

    def connections(self):
        """Return how many logins it has taken since it was started."""
        return self.log.read_text(errors="replace").count("Accepted publickey")

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


def keygen(path):
    """Make a key without a passphrase; one that is there is replaced."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True, stdin=subprocess.DEVNULL)


def pam():
    """Return whether sshd needs PAM: without it, a login whose password is `!` counts as locked (sshd(8))."""
    with contextlib.suppress(OSError), open("/etc/shadow") as file:
        locked = any(line.split(":")[:2] == [getpass.getuser(), word] for line in file for word in ("!", "!*", "!!"))
        return "yes" if locked else "no"
    return "no"


def sessions(pid):
    """Return the sshd processes that a process has started, the last first: those of open connections, not what runs in them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, rest = (entry / "stat").read_text().partition("(")[2].rsplit(")", 1)
                if int(rest.split()[1]) == pid and name.startswith("sshd"):
                    found += [*sessions(int(entry.name)), int(entry.name)]
    return found


def signal_to(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
