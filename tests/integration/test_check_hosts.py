"""`watchties check` and what can be wrong with a host, each made for real behind an unprivileged sshd on loopback."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from site_kit import RULES
from sshd_kit import Sshd, keygen

from watchties import checks, deploy, hostchecks, ssh
from watchties.config import load

WEB = '[host.vision]\n{ssh}role = "web"\nroot = "{base}/vision/compties"\n'
COMPUTE = '[host.b01]\n{ssh}role = "compute"\nscheduler = "shell"\nroot = "{base}/b01/compties"\n'
TREE = '[tree.main]\nroot = "{base}/v11/user_data"\nweb = "vision"\ncompute = ["b01"]\n'


class Hosts:
    """vision behind an sshd, b01 on this machine; both deployed."""

    def __init__(self, base, sshd):
        self.base, self.sshd, self.conf = base, sshd, base / "conf.d"
        self.conf.mkdir(mode=0o755)
        self.vision, self.b01 = base / "vision/compties", base / "b01/compties"
        for root in self.vision, self.b01:
            asyncio.run(deploy.deploy(ssh.Far("x", root=str(root)), ["user_data"]))
        shutil.copy(RULES, self.conf)
        self.write()

    def write(self, web="", more=""):
        far = self.sshd.toml().replace('["', '["ConnectTimeout=3", "', 1)
        text = WEB.format(ssh=far + web, base=self.base) + COMPUTE.format(ssh="", base=self.base) + TREE.format(base=self.base)
        (self.conf / "10-site.toml").write_text(text + more)

    def found(self):
        return asyncio.run(checks.hosts(load(str(self.conf))))

    def wrong(self):
        """Return the lines that are wrong, each with its remedy."""
        wrong = [finding for finding in self.found() if finding.ok is False]
        assert all(finding.remedy and "\n" not in finding.line() for finding in wrong), wrong
        return [finding.line() for finding in wrong]


@pytest.fixture
def hosts(tmp_path):
    with Sshd(tmp_path) as sshd:
        yield Hosts(tmp_path, sshd)


def path_there(sshd, *first):
    """Let the login have a PATH of its own: `first`, then links to all commands of this machine but rsync."""
    tools = sshd.folder / "tools"
    tools.mkdir()
    for folder in "/usr/bin", "/bin", "/usr/sbin":
        for name in os.listdir(folder):
            if name != "rsync" and not os.path.lexists(tools / name):
                (tools / name).symlink_to(f"{folder}/{name}")
    sshd.stop()
    sshd.more = f"SetEnv HOME={sshd.home} PATH={':'.join(map(str, [*first, tools]))}"
    sshd.start()


def test_all_is_well_with_a_banner_and_nothing_is_left_behind(hosts):
    (hosts.base / "banner").write_text("Welcome!\n")
    hosts.sshd.stop()
    hosts.sshd.more = f"Banner {hosts.base}/banner"
    hosts.sshd.start()
    found = hosts.found()
    assert [finding.line() for finding in found if finding.ok is False] == []
    text = "\n".join(finding.line() for finding in found if finding.where == "host vision")
    for word in "agent", "rsync 3", "MB free", "fs.inotify.max_user_watches":
        assert word in text
    assert not list(hosts.base.rglob(".watchties.check*"))


def test_a_bashrc_that_prints(hosts):
    (hosts.sshd.home / ".bashrc").write_text("echo hello there\n")
    (line,) = hosts.wrong()
    assert "host vision: its login prints 'hello there'" in line and ".bashrc" in line


def test_a_host_key_that_changed_and_one_without_our_key(hosts):
    hosts.sshd.stop()
    keygen(hosts.sshd.folder / "host_key")
    hosts.sshd.start()
    (line,) = hosts.wrong()
    assert "Host key verification failed" in line and "ssh-keygen -R" in line
    hosts.sshd.trust()
    (hosts.sshd.folder / "authorized_keys").write_text("")
    (line,) = hosts.wrong()
    assert "Permission denied" in line and "ssh-copy-id" in line


def test_a_host_that_accepts_and_hangs_holds_up_nobody(hosts):
    hosts.sshd.freeze()
    began = time.monotonic()
    lines = hosts.wrong()
    hosts.sshd.thaw()
    assert len(lines) == 1 and "host vision" in lines[0] and "timed out" in lines[0] and time.monotonic() - began < 20


@pytest.mark.parametrize("said, wanted", [(None, "no rsync is there"), ("rsync  version 3.0.9  protocol 30", "rsync 3.0.9 is too old")])
def test_no_rsync_there_or_an_old_one(hosts, said, wanted):
    tools = hosts.base / "old"
    tools.mkdir()
    if said:
        (tools / "rsync").write_text(f"#!/bin/sh\necho '{said}'\n")
        (tools / "rsync").chmod(0o755)
    path_there(hosts.sshd, tools)
    (line,) = hosts.wrong()
    assert f"host vision: {wanted}" in line and "install" in line


def test_user_data_that_cannot_be_written_to(hosts):
    data = hosts.vision / "user_data"
    if os.geteuid():
        data.chmod(0o555)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", data], capture_output=True).returncode:
        pytest.skip("root writes everywhere, and may not mount here")
    try:
        (line,) = hosts.wrong()
        assert "host vision: user_data cannot be written to by the login; chown it there" in line
    finally:
        subprocess.run(["umount", data]) if not os.geteuid() else data.chmod(0o755)


def test_two_logins_that_share_one_user_data(hosts):
    shutil.rmtree(hosts.b01 / "user_data")
    (hosts.b01 / "user_data").symlink_to(hosts.vision / "user_data")
    (line,) = hosts.wrong()
    assert "user_data is one and the same directory for hosts b01 and vision; give each" in line
    assert not list(hosts.base.rglob(".watchties.check*"))


def test_a_host_whose_data_are_the_mirror(hosts):
    (hosts.base / "v11").mkdir()
    (hosts.base / "v11/user_data").symlink_to(hosts.vision / "user_data")
    (line,) = hosts.wrong()
    assert "host vision: its data lie in" in line and "the mirror of tree main" in line


def test_become_that_is_not_permitted(hosts):
    hosts.write(web='become = "nosuch"\n')
    (line,) = hosts.wrong()
    assert "may not become nosuch" in line and "NOPASSWD" in line


def test_too_few_watches_there_are_named_with_the_sysctl():
    said = {"relay": "0", "python": "3.6.1", "directories": "100000", "watches": "8192", "instances": "1"}
    lines = "\n".join(finding.line() for finding in hostchecks.relay("host v", said, "deploy"))
    assert "sysctl fs.inotify.max_user_watches=200000" in lines and "max_user_instances=128" in lines


def test_the_command_says_it_all_as_json(hosts):
    environment = os.environ | {"WATCHTIES_CONF_DIR": str(hosts.conf), "WATCHTIES_STATE_DIR": str(hosts.base / "state")}
    (hosts.sshd.home / ".bashrc").write_text("echo hello there\n")
    command = os.path.join(os.path.dirname(sys.executable), "watchties")
    shown = subprocess.run([command, "check", "--json"], env=environment, capture_output=True, text=True, timeout=100)
    assert any("prints 'hello there'" in finding["text"] and finding["ok"] is False for finding in json.loads(shown.stdout))
