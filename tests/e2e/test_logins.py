"""Logins as sites have them: a jump host, another port, keys in an agent only, a banner; and hosts without an rsync that serves."""

import contextlib

import pytest
from helpers import put, wait_for
from lab_kit import LabSite, give
from trouble_kit import quick, waits_for

pytestmark = pytest.mark.slow

QUICK = quick("pull", "submit", "fetch", "push")
SSH_CONFIG = """
Host b01
    HostKeyAlias b01
    ProxyJump runcompties@elgato
Host *
    IdentityAgent /home/webapp/agent
"""


@contextlib.contextmanager
def sshd_of(lab, host, lines):
    """Let a host's sshd have more lines of configuration for a while."""
    config = lab.folder / host / "ssh/sshd_config"
    before = config.read_text()
    renew(lab, host, lines + before)
    try:
        yield
    finally:
        renew(lab, host, before)


def renew(lab, host, text):
    log = lab.folder / host / "log"
    config, began = lab.folder / host / "ssh/sshd_config", log.read_text(errors="replace").count("Server listening on 0")
    config.write_text(text)
    lab.on(host, ["pkill", "-HUP", "-o", "-x", "sshd"])
    wait_for(lambda: log.read_text(errors="replace").count("Server listening on 0") > began)


@contextlib.contextmanager
def key_in_an_agent_only(lab):
    """Take webapp's key file away; an agent of webapp's has it."""
    ssh = lab.home("v11", "webapp") / ".ssh"
    agent = lab.start_on("v11", ["ssh-agent", "-D", "-a", "/home/webapp/agent"], user="webapp")
    wait_for((ssh.parent / "agent").exists)
    lab.on("v11", ["env", "SSH_AUTH_SOCK=/home/webapp/agent", "ssh-add", "-q", ".ssh/id_ed25519"], user="webapp")
    (ssh / "id_ed25519").rename(ssh.parent / "away")
    try:
        yield
    finally:
        (ssh.parent / "away").rename(ssh / "id_ed25519")
        lab.on("v11", ["pkill", "-x", "ssh-agent"])
        agent.wait(10)
        (ssh.parent / "agent").unlink(missing_ok=True)


def test_a_jump_host_another_port_an_agent_a_banner_and_setup(lab):
    lab.on("b01", ["sh", "-c", "echo 'Welcome! DONE' >/etc/ssh/banner"])
    config = lab.home("v11", "webapp") / ".ssh/config"
    direct = ["iptables", "-w", "-I", "INPUT", "-s", "v11", "-j", "DROP"]
    give(put(config, SSH_CONFIG), "webapp")
    host = 'ssh_options = ["Port=2222", "-C"]\nsetup = "touch ~/setup-was-run"'
    try:
        with sshd_of(lab, "b01", "Port 22\nPort 2222\nBanner /etc/ssh/banner\n"), key_in_an_agent_only(lab):
            lab.on("b01", direct)
            with LabSite(lab, compute=("b01",), host=host) as site:
                site.drop("ann/jumps")
                assert site.wait_state("ann/jumps", "DONE")["host"] == "b01"
                site.wait(site.quiet, 30, "quiet")
                assert site.runs("ann/jumps") == 1 and (lab.home("b01", "runcompties") / "setup-was-run").exists()
                checked = site.watchties("check", check=False).stdout
                assert not [line for line in checked.splitlines() if "WRONG" in line], checked
                assert "shared connection" not in (site.base / "daemon.out").read_text(errors="replace").rpartition("logs are in")[2]
    finally:
        lab.fault("clear", "b01")
        config.unlink()
        (lab.home("b01", "runcompties") / "setup-was-run").unlink(missing_ok=True)


@pytest.mark.parametrize("old", ["echo 'rsync  version 3.0.9  protocol version 30'; exit 2", ""], ids=["an old rsync", "no rsync"])
def test_no_rsync_there_that_serves_is_told_and_jobs_go_on_when_there_is_one(lab, old):
    make = "rm -rf /tmp/tools; mkdir /tmp/tools; ln -s /usr/bin/* /usr/sbin/* /tmp/tools 2>/dev/null; rm /tmp/tools/rsync"
    lab.on("b01", ["sh", "-c", make])
    if old:
        put(lab.folder / "b01/tmp/tools/rsync", f"#!/bin/sh\n{old}\n").chmod(0o755)
    with LabSite(lab, compute=("b01",), edit=QUICK) as site:
        with sshd_of(lab, "b01", "SetEnv PATH=/tmp/tools\n"):
            site.kill()  # with the connections that it had, whose PATH was another
            site.start()
            site.drop("ann/waits")
            waits_for(site, "ann/waits", "rsync", "too old" if old else "no rsync", seconds=60)
            assert site.marker("ann/waits")[0] == "PENDING" and site.runs("ann/waits") == 0
            checked = site.watchties("check", check=False).stdout
            wanted = "rsync 3.0.9 is too old" if old else "no rsync is there"
            assert [line for line in checked.splitlines() if line.startswith("WRONG") and wanted in line], checked
            assert site.stop() == 0  # and with it the connections that have this PATH
        site.start()
        assert site.wait_state("ann/waits", "DONE")["attempt"] == "1"
        site.wait(site.quiet, 30, "quiet")
        assert site.runs("ann/waits") == 1
