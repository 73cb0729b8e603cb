"""`watchties check` and what can be wrong with a host, each made for real behind an unprivileged sshd on loopback."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from check_kit import Hosts, path_there
from sshd_kit import Sshd, keygen


@pytest.fixture
def hosts(tmp_path):
    with Sshd(tmp_path) as sshd:
        yield Hosts(tmp_path, sshd)


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
    data.chmod(0o555)
    if not os.geteuid():  # who may write everywhere: then as somebody else
        for folder in [hosts.base, *hosts.base.parents]:
            if not folder.stat().st_mode & 0o001:
                folder.chmod(0o755)
        hosts.write(web='become = "nobody"\n')
    lines = hosts.wrong()
    data.chmod(0o755)
    assert "host vision: user_data cannot be written to by the login; chown it there" in "\n".join(lines)


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
    hosts.write(web='become = "nobody"\n')
    if not os.geteuid():  # a root that may not, as in a container; anybody else is refused by sudo itself
        hosts.sshd.stop()
        hosts.sshd.more = 'ForceCommand setpriv --bounding-set -setuid,-setgid sh -c "$SSH_ORIGINAL_COMMAND"'
        hosts.sshd.start()
    (line,) = hosts.wrong()
    assert "may not become nobody" in line and "NOPASSWD" in line


def test_become_somebody_who_is_not_there(hosts):
    hosts.write(web='become = "nosuch"\n')
    (line,) = hosts.wrong()
    assert line.endswith("answers, but has no user nosuch; correct `become` in [host.vision]"), line


@pytest.mark.parametrize("setup, wanted", [
    ("", "host b01: bsub, bjobs, bhist, bkill not found; set `setup` in [host.b01], shell text that puts them on the PATH"),
    ("true", "host b01: bsub, bjobs, bhist, bkill not found, also after its setup; correct `setup` in [host.b01]"),
    ("echo loud; exit 3", "host b01: its setup ends the shell that reads it (without a word); correct `setup` in [host.b01]"),
    (". /no/such/profile", "/no/such/profile"),
    ("PATH={bin}:$PATH; set -- a; t=; word=; IFS=:; queue=long", ""),
    ("PATH={bin}:$PATH; trap 'echo bye' EXIT", ""),
    ("echo \"no\rway\" >&2; exit 1", "host b01: its setup ends the shell that reads it (no?way); correct `setup`"),
])  # fmt: skip
def test_a_scheduler_that_is_not_found_or_made_known_by_the_setup(hosts, setup, wanted):
    shims = hosts.base / "shims"
    shims.mkdir()
    for name in "bsub", "bjobs", "bhist", "bkill":
        (shims / name).write_text("#!/bin/sh\n")
        (shims / name).chmod(0o755)
    table = {"scheduler": "lsf"} | ({"setup": setup.format(bin=shims)} if setup else {})
    site = hosts.conf / "10-site.toml"
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    site.write_text(site.read_text().replace('scheduler = "shell"\n', lines + 'resources = { cores = 1 }\n'))
    assert [line for line in hosts.wrong() if wanted not in line] == [] and bool(hosts.wrong()) == bool(wanted), hosts.wrong()


def test_the_command_says_it_all_as_json(hosts):
    environment = os.environ | {"WATCHTIES_CONF_DIR": str(hosts.conf), "WATCHTIES_STATE_DIR": str(hosts.base / "state")}
    (hosts.sshd.home / ".bashrc").write_text("echo hello there\n")
    command = os.path.join(os.path.dirname(sys.executable), "watchties")
    shown = subprocess.run([command, "check", "--json"], env=environment, capture_output=True, text=True, timeout=100)
    assert any("prints 'hello there'" in finding["text"] and finding["ok"] is False for finding in json.loads(shown.stdout))
