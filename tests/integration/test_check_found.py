"""What else `watchties check` finds, each thing made for real: keys, clocks, disks, limits, file systems, mail servers, secrets."""

import contextlib
import glob
import os
import re
import subprocess
import sys

import pytest
from aiosmtpd.controller import Controller
from check_kit import Hosts
from helpers import free_port, wait_for
from sshd_kit import Sshd

from watchties import checks, hostanswers
from watchties.cli.common import Places
from watchties.config import load

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def hosts(tmp_path):
    with Sshd(tmp_path) as sshd:
        yield Hosts(tmp_path, sshd)


def here(hosts):
    """Return the lines that are wrong or worth knowing on this machine."""
    places = Places(str(hosts.conf), str(hosts.base / "state"))
    return [finding.line() for finding in checks.all_of(places, call_hosts=False) if finding.ok is not True]


@contextlib.contextmanager
def mounted(where, *words):
    subprocess.run(["mount", *words, where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


# ---- who works in the data ----


def test_root_in_a_directory_of_another_user_s_is_told_to_become_that_user():
    (found,) = hostanswers.owner("host vision", None, "www-data", "user_data")
    assert not found.ok and "works as root in user_data, which belongs to www-data" in found.text
    assert found.remedy == 'set become = "www-data" in [host]' and not list(hostanswers.owner("host vision", None, "root", "user_data"))


def test_an_rsync_here_that_takes_what_nobody_asked_for_is_worth_a_word():
    said = "rsync  version {}  protocol version 31\n"
    assert [next(checks.here_rsync(said.format(v))).ok for v in ("3.0.9", "3.1.3", "3.2.4", "3.2.5", "3.5.0")] == [False, None, None, True, True]
    assert "3.2.5 or newer" in next(checks.here_rsync(said.format("3.2.4"))).line()


# ---- keys ----


def test_no_ssh_key_is_told_from_one_that_is_not_let_in(hosts, monkeypatch):
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nonexistent/agent")
    key = hosts.sshd.folder / "id"
    key.chmod(0o644)
    (line,) = hosts.wrong()
    assert "others may read" in line and f"chmod 600 {key}" in line
    key.unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "word word", "-f", key], check=True, stdin=subprocess.DEVNULL)
    (line,) = hosts.wrong()
    assert f"the key {key} has a passphrase" in line and "an agent" in line
    key.unlink()
    (line,) = hosts.wrong()
    assert "there is no ssh key here, and no agent has one: make one, ssh-keygen" in line and "ssh-copy-id" in line


def test_an_agent_serves_where_there_is_no_key_file(hosts, monkeypatch):
    key, socket = hosts.sshd.folder / "id", hosts.base / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        wait_for(socket.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run(["ssh-add", "-q", key], check=True)
        key.unlink()
        (hosts.conf / "10-site.toml").write_text((hosts.conf / "10-site.toml").read_text().replace('"IdentitiesOnly=yes", ', ""))
        assert hosts.wrong() == []
        subprocess.run(["ssh-add", "-q", "-D"], check=True)
        (line,) = hosts.wrong()
        assert "there is no ssh key here" in line
    finally:
        agent.terminate()
        agent.wait(10)


# ---- clocks, old programs ----


@pytest.mark.parametrize("offset, said", [("+5", "5 s ahead of"), ("-90", "90 s behind"), ("+0", "")])
def test_a_clock_that_is_wrong(hosts, offset, said):
    (library,) = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    hosts.sshd.stop()
    hosts.sshd.more = f"SetEnv HOME={hosts.sshd.home} LD_PRELOAD={library} FAKETIME={offset}"
    hosts.sshd.start()
    assert [said in line and "chrony" in line for line in hosts.wrong()] == ([True] if said else [])


def test_an_agent_and_a_relay_of_another_version(hosts):
    agent, relay = hosts.vision / "scripts/agent.sh", hosts.vision / "scripts/relay.py"
    agent.write_text(re.sub(r"^AGENT_VERSION=.*$", "AGENT_VERSION=0", agent.read_text(), flags=re.MULTILINE))
    relay.write_text(re.sub(r"^VERSION = .*$", "VERSION = 0", relay.read_text(), flags=re.MULTILINE))
    old, older = hosts.wrong()
    assert "its agent is not ours (agent 0, not agent " in old and "its relay is not ours (version 0, not " in older
    assert all("run: watchties deploy vision" in line for line in (old, older))


# ---- disks ----


@AS_ROOT
def test_a_full_disk_and_a_full_inode_table_there(hosts):
    data = hosts.vision / "user_data"
    with mounted(data, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        with pytest.raises(OSError, match="No space"), open(data / "all", "wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))
        (line,) = hosts.wrong()
        assert "host vision: user_data: its disk is full, 0 MB free; make room there" in line
    with mounted(data, "-t", "tmpfs", "-o", "nr_inodes=20", "tmpfs"):
        with pytest.raises(OSError, match="No space"):
            for number in range(30):
                (data / str(number)).touch()
        (line,) = hosts.wrong()
        assert "host vision: user_data: its inode table is full, room for 0 more files" in line
    assert hosts.wrong() == []


@AS_ROOT
def test_a_full_disk_and_a_full_inode_table_here(hosts):
    mirror = hosts.base / "v11/user_data"
    mirror.mkdir(parents=True)
    for options, said in ("size=1m", "less than disk_floor"), ("nr_inodes=20,size=4g", "the inode table of its disk is full"):
        with mounted(mirror, "-t", "tmpfs", "-o", options, "tmpfs"):
            assert [said in line for line in here(hosts) if "WRONG" in line] == [True]


@AS_ROOT
def test_a_disk_that_is_mounted_read_only_there(hosts):
    with mounted(hosts.vision / "user_data", "-t", "tmpfs", "-o", "ro", "tmpfs"):
        (line,) = hosts.wrong()
        assert "user_data is mounted read-only" in line


@AS_ROOT
def test_a_tree_on_a_network_file_system_here_and_there(hosts):
    """sshfs, by the very sshd that stands for vision."""
    ssh = " ".join(f"-o {word}" if "=" in word else word for word in hosts.sshd.options)
    (hosts.base / "ssh").write_text(f'#!/bin/sh\nexec ssh {ssh} "$@"\n')
    (hosts.base / "ssh").chmod(0o755)
    (hosts.base / "share").mkdir()
    mirror = hosts.base / "v11/user_data"
    mirror.mkdir(parents=True)
    for where in hosts.vision / "user_data", mirror:
        share = ["sshfs", f"127.0.0.1:{hosts.base}/share", where, "-o", f"ssh_command={hosts.base}/ssh"]
        subprocess.run(share, check=True, stdin=subprocess.DEVNULL)
        try:
            found = [finding.line() for finding in hosts.found()] + here(hosts)
        finally:
            subprocess.run(["umount", "-l", where], check=True)
        said = [line for line in found if "network file system (fuse.sshfs)" in line]
        assert len(said) == 1, found
        remedy = 'set trigger = "poll"' if where != mirror else "a mirror on a local disk"
        assert remedy in said[0] and ("WRONG" in said[0]) == (where != mirror)


# ---- limits of inotify ----


def test_inotify_limits_below_what_the_trees_need(hosts):
    """In a user namespace, which has a limit of its own: of this machine, and of the far login."""
    (hosts.base / "v11/user_data/ann/one").mkdir(parents=True)
    (hosts.vision / "user_data/ann/one").mkdir(parents=True)
    few = "echo 3 >/proc/sys/user/max_inotify_watches"
    command = f"{few}; exec {os.path.dirname(sys.executable)}/watchties check --here"
    environment = os.environ | {"WATCHTIES_CONF_DIR": str(hosts.conf), "WATCHTIES_STATE_DIR": str(hosts.base / "state")}
    done = subprocess.run(["unshare", "-U", "-r", "sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    (line,) = [line for line in done.stdout.splitlines() if "WRONG" in line]
    assert "this machine: 3 directories to watch, inotify allows 3" in line and "sysctl fs.inotify.max_user_watches=6 user.max" in line
    hosts.sshd.stop()
    hosts.sshd.more = f"ForceCommand unshare -U -r sh -c '{few}; eval \"$SSH_ORIGINAL_COMMAND\"'"
    hosts.sshd.start()
    (line,) = hosts.wrong()
    assert "host vision: 3 directories to watch, inotify allows 3" in line and "run there as root: sysctl" in line


# ---- mail, secrets ----


class Refusing:
    async def handle_MAIL(self, server, session, envelope, address, options):
        return "550 5.7.1 we take nothing from you"


@contextlib.contextmanager
def mail_server(handler):
    server = Controller(handler, hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        yield f'[mail]\nserver = "127.0.0.1"\nport = {server.port}\nfrom = "w@v11"\nadmin = "root@v11"\n'
    finally:
        server.stop()


class Taking:
    taken = 0

    async def handle_DATA(self, server, session, envelope):
        self.taken += 1
        return "250 OK"


def test_a_mail_server_that_refuses_or_is_not_there(hosts):
    asked = lambda text: (hosts.write(more=text), list(checks.mail(load(str(hosts.conf)))))[1]  # noqa: E731
    with mail_server(Refusing()) as text:
        (refused,) = asked(text)
    assert refused.ok is False and "refuses w@v11: 550 5.7.1 we take nothing from you; correct server" in refused.line()
    (gone,) = asked(text)
    assert gone.ok is False and "Connection refused" in gone.line()
    taking = Taking()
    with mail_server(taking) as text:
        assert [finding.ok for finding in asked(text)] == [True] and taking.taken == 0
        (no_tls,) = asked(text + "starttls = true\n")
    assert no_tls.ok is False and "STARTTLS" in no_tls.line()


def test_secrets_in_the_configuration_that_others_may_read(hosts):
    path = hosts.conf / "10-site.toml"
    path.write_text(path.read_text().replace('scheduler = "shell"', 'scheduler = "shell"\nsetup = "export API_TOKEN=abc"'))
    path.chmod(0o644)
    (line,) = [line for line in here(hosts) if "WRONG" in line]
    assert f"{path}: [host.b01] setup seems to hold a secret, and others may read it; run: chmod 600 {path}" in line
    path.chmod(0o600)
    assert not [line for line in here(hosts) if "WRONG" in line]
    secret = hosts.base / "password"
    secret.write_text("x")
    secret.chmod(0o644)
    hosts.write(more=f'[mail]\nserver = "localhost"\nuser = "w"\nfrom = "w@v11"\npassword_file = "{secret}"\n')
    (line,) = [line for line in here(hosts) if "WRONG" in line]
    assert f"[mail] password_file: {secret} is open to others; run: chmod 600 {secret}" in line
