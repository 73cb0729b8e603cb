"""The lab itself: hosts that come up, log in to each other, break and are mended, and go without a trace."""

import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import wait_for
from lab_kit import HOSTS, SCRIPTS, Lab, why_not

pytestmark = pytest.mark.slow

LOGINS = [("root", "vision"), ("www-data", "vision"), ("runcompties", "b01"), ("runcompties", "elgato")]
SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2"]
CONNECT = """
import socket, sys, time
for _ in range(5):
    began = time.monotonic()
    socket.create_connection((sys.argv[1], 22), 5).close()
    print(time.monotonic() - began)
"""


def ssh(lab, login, *words, **more):
    return lab.on("v11", [*SSH, login, *words], user="webapp", **more)


def round_trip(lab, host):
    """Return the seconds of a TCP handshake from v11 to a host, which is one round trip."""
    said = lab.on("v11", ["python3", "-c", CONNECT, host], user="webapp").stdout
    return statistics.median(map(float, said.split()))


def namespaces(pid):
    """Return what namespaces a process is in, and its children are to be in."""
    found = set()
    for link in Path(f"/proc/{pid}/ns").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(link))
    return found


def processes_in(spaces):
    """Return the processes of this machine that are in one of these namespaces."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if namespaces(entry.name) & spaces and (entry / "cmdline").read_bytes():
                    found.append(entry.name)
    return found


@pytest.mark.parametrize(("user", "host"), LOGINS)
def test_webapp_on_v11_logs_in_to_every_host_as_the_users_there(lab, user, host):
    said = ssh(lab, f"{user}@{host}", "whoami; hostname; pwd").stdout.split()
    home = {"root": "/root", "www-data": "/var/www"}.get(user, f"/home/{user}")
    assert said == [user, host, home]


def test_hosts_share_nothing_that_they_write(lab):
    lab.on("b01", ["sh", "-c", "for d in /etc /var /tmp /home /root /run /dev/shm; do echo b01 >$d/seen-on-b01 || exit 1; done"])
    for host in "elgato", "v11":
        assert not lab.on(host, ["sh", "-c", "ls -d /*/seen-on-b01 /dev/shm/seen-on-b01 2>/dev/null || :"]).stdout
    assert not [path for path in ("/etc", "/var", "/root", "/home", "/tmp") if Path(path, "seen-on-b01").exists()]
    assert "Read-only" in lab.on("b01", ["touch", "/usr/seen-on-b01"], check=False).stderr


def test_what_a_command_is_given_and_says_comes_through(lab):
    script = 'cat; echo "$1" >&2; pwd; exit 3'
    done = lab.on("elgato", ["sh", "-c", script, "sh", "a  b'$(x)"], user="runcompties", input="in\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\n/home/runcompties\n", "a  b'$(x)\n")


def test_a_cable_that_is_pulled_and_put_back(lab):
    lab.fault("down", "b01")
    try:
        assert ssh(lab, "runcompties@b01", "true", check=False).returncode == 255
        assert ssh(lab, "runcompties@elgato", "hostname").stdout == "elgato\n"
    finally:
        lab.fault("up", "b01")
    wait_for(lambda: ssh(lab, "runcompties@b01", "hostname", check=False).stdout == "b01\n", 20)  # ARP may have to ask again


@pytest.mark.parametrize(("op", "said"), [("drop", "timed out"), ("drop22", "timed out"), ("reject", "refused"), ("freeze", "timed out")])
def test_each_fault_is_seen_and_cleared(lab, op, said):
    lab.fault(op, "elgato")
    try:
        assert said in ssh(lab, "runcompties@elgato", "true", check=False).stderr
    finally:
        lab.fault("clear", "elgato")
    assert ssh(lab, "runcompties@elgato", "hostname").stdout == "elgato\n"


def test_a_slow_cable(lab):
    lab.fault("rate", "elgato", 1000)
    try:
        began = time.monotonic()
        ssh(lab, "runcompties@elgato", "wc -c", input="x" * 250_000)
        assert time.monotonic() - began > 1.2  # 2,000,000 bits at 1,000,000 a second
    finally:
        lab.fault("clear", "elgato")


def test_a_delay_of_20_ms_on_every_link_is_80_ms_there_and_back_and_spoils_nothing(lab):
    before = round_trip(lab, "b01")
    with lab.delayed(20):
        assert 0.080 <= round_trip(lab, "b01") < 0.200
        assert 0.080 <= round_trip(lab, "vision") < 0.200
        assert ssh(lab, "runcompties@b01", "md5sum", input="x" * 5_000_000).stdout.split()[0] == hashlib.md5(b"x" * 5_000_000).hexdigest()
    assert round_trip(lab, "b01") < max(0.020, 3 * before)
    with lab.delayed(20, "b01"):
        assert 0.040 <= round_trip(lab, "b01") < 0.075
        assert round_trip(lab, "elgato") < 0.040


def test_a_host_that_is_switched_off_and_on_again_has_its_files_still(lab):
    ssh(lab, "runcompties@b01", "echo kept >kept; sleep 300 >/dev/null 2>&1 & true")
    lab.stop_host("b01")
    assert ssh(lab, "runcompties@b01", "true", check=False).returncode == 255
    lab.start_host("b01")
    assert ssh(lab, "runcompties@b01", "cat kept; rm kept; pgrep sleep", check=False).stdout == "kept\n"


def test_two_labs_at_once_and_down_leaves_nothing(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    began = time.monotonic()
    mounted = set(Path("/proc/self/mountinfo").read_text().splitlines())
    with Lab(tmp_path / "one") as one, Lab(tmp_path / "two") as two:
        assert time.monotonic() - began < 20
        one.delay(5)
        ours = set()
        for lab in one, two:
            for name in "lan", *HOSTS:
                ours |= namespaces((lab.folder / f"{name}.pid").read_text().split()[0])
        ours -= namespaces("self")
        assert len(processes_in(ours)) >= 2 * (1 + 2 * len(HOSTS))
        one.fault("down", "b01")
        assert ssh(two, "runcompties@b01", "hostname").stdout == "b01\n"
        assert one.up() and ssh(one, "runcompties@b01", "hostname").stdout == "b01\n"  # up again is a new beginning
        for name in "lan", *HOSTS:
            ours |= namespaces((one.folder / f"{name}.pid").read_text().split()[0]) - namespaces("self")
    wait_for(lambda: not processes_in(ours), 5)
    assert not set(Path("/proc/self/mountinfo").read_text().splitlines()) - mounted
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp_path) in line]
    assert not list(tmp_path.rglob("*.pid"))


def test_the_scripts_pass_shellcheck():
    subprocess.run([Path(sys.executable).parent / "shellcheck", "-x", "-P", SCRIPTS, *SCRIPTS.glob("*.sh")], check=True)
