"""The user service under a real `systemd --user` on v11: installed, ready, read again, killed, hung, stopped, taken away."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import put
from lab_kit import PROGRAM, SCRIPTS, LabSite
from watchties import unit
from watchties.errors import FAILURE

pytestmark = pytest.mark.slow

# A hook that shows that it has begun, and ends when it is let.
HOLD = "case $WATCHTIES_JOB in */hold*) cd /home/webapp; : >began; cat go >/dev/null; echo over >>over.log ;; esac\n"
SOON = "[Service]\nWatchdogSec=4s\nRestartSec=200ms\nTimeoutStopSec=3s\n"  # the last is too short, but for what the daemon says
RULE = '\n[[rule]]\nname = "hold"\non = ["mirror:DONE"]\nafter = ["push"]\n'


class Service:
    """The service of webapp on v11, and what systemd says of it."""

    def __init__(self, site):
        self.site, self.unit = site, site.base / ".config/systemd/user/watchties.service"

    def ctl(self, *words, check=True):
        argv = ["env", "XDG_RUNTIME_DIR=/run/user/2001", "systemctl", "--user", *words]
        return self.site.lab.on("v11", argv, user="webapp", check=check).stdout

    def show(self, name):
        return self.ctl("show", "watchties", "-p", name).strip().partition("=")[2]

    def pid(self):
        return int(self.show("MainPID"))

    def command(self, what, check=True):
        return self.site.watchties("service", what, check=check)

    def until(self, what, condition, seconds=60):
        return self.site.wait(condition, seconds, f"{what}: {self.ctl('status', 'watchties', check=False)}")

    def signal(self, number, pid=None):
        self.site.lab.on("v11", ["kill", f"-{int(number)}", pid or self.pid()])


@pytest.fixture(scope="module")
def manager(lab):
    lab.on("v11", ["bash", SCRIPTS / "systemd_user.sh", "webapp"])
    yield lab
    lab.stop_host("v11")  # with all that systemd has started
    lab.start_host("v11")


@pytest.fixture(scope="module")
def service(manager):
    site = LabSite(manager, compute=("b01",), web='ssh_options = ["ConnectTimeout=4"]',
                   daemon='grace = "2s"\nheartbeat = "2s"\nstop_timeout = "20s"', rules=RULE, hooks={"hold": HOLD})  # fmt: skip
    service = Service(site)
    said = service.command("install").stdout
    assert "loginctl enable-linger webapp" in said and f"written: /home/webapp/.config/systemd/user/{unit.NAME}" in said
    assert (service.show("WatchdogUSec"), service.show("Restart")) == ("1min", "on-failure")
    drop_in = site.base / ".config/systemd/user/watchties.service.d/soon.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(SOON)
    service.ctl("daemon-reload")
    service.ctl("restart", "watchties")
    yield service
    said = service.command("uninstall")
    assert "taken away" in said.stdout and not service.unit.exists()
    assert service.show("LoadState") == "not-found"
    assert service.command("uninstall", check=False).returncode == FAILURE


def test_it_is_ready_in_a_sandbox_and_says_how_things_stand(service):
    site = service.site
    assert (service.show("ActiveState"), service.show("Type")) == ("active", "notify")
    program, conf, state = PROGRAM, "/home/webapp/.config/watchties/conf.d", "/home/webapp/.local/state/watchties"
    assert f"--config {conf} --state {state} run" in service.show("ExecStart") and f"path={program}" in service.show("ExecStart")
    status = site.lab.on("v11", ["cat", f"/proc/{service.pid()}/status"]).stdout
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M) and re.search(r"^Seccomp:\s+2$", status, re.M)
    assert service.show("LimitCORE") == "0"
    site.drop("ann/one", "echo run >>runs.log\nwhile [ ! -e go ]; do sleep 0.1; done\n")
    service.until("it runs", lambda: "0 jobs waiting, 1 running, 0 coming back" in service.show("StatusText"))
    assert "1 running" in service.command("status").stdout
    site.lab.fault("drop", "vision")
    try:
        service.until("down", lambda: "hosts down: vision" in service.show("StatusText"), 120)
    finally:
        site.lab.fault("clear", "vision")
    (site.compute / "ann/one/go").touch()
    site.wait_state("ann/one", "DONE", 120)
    service.until("nothing", lambda: "0 jobs waiting, 0 running, 0 coming back; 0 runs at work" == service.show("StatusText"), 60)
    assert site.runs("ann/one") == 1


def test_what_is_installed_is_not_written_over(service):
    before = service.unit.read_text()
    again = service.command("install", check=False)
    assert again.returncode == FAILURE and "is installed already; nothing was done" in again.stderr and again.stderr.count("\n") == 1
    other = service.site.watchties("service", "install", "--state", "/home/webapp/other", check=False)
    assert other.returncode == FAILURE and "differs from what would be written now" in other.stderr
    service.unit.write_text("[Service]\nExecStart=/bin/true\n")
    try:
        for what in "install", "uninstall", "status":
            done = service.command(what, check=False)
            assert done.returncode == FAILURE and "was not put there by watchties, so it is left alone" in done.stderr
    finally:
        service.unit.write_text(before)


def test_any_path_comes_through_systemd_as_it_is(service):
    odd = "/home/webapp/odd dir/100% $HOME \\ 'q' \"Q\" %h"
    program = "/home/webapp/odd dir/100% ü [x] %h"
    script = service.site.base / program.removeprefix("/home/webapp/")
    put(script, '#!/bin/sh\nprintf "%s\\n" "$0" "$@" >/home/webapp/odd.args\n').chmod(0o755)
    path = service.unit.with_name("odd.service")
    path.write_text(unit.filled(program, odd + ".conf", odd + ".state"))
    service.ctl("daemon-reload")
    service.ctl("start", "--no-block", "odd")
    args = service.site.base / "odd.args"
    service.until("started", lambda: args.exists() and args.read_text().endswith("run\n"))
    assert args.read_text().splitlines() == [program, "--config", odd + ".conf", "--state", odd + ".state", "run"]
    service.ctl("stop", "odd")
    path.unlink()
    service.ctl("daemon-reload")


def test_the_sandbox_is_left_out_where_programs_need_privileges():
    inside, outside = unit.filled("/w", "/c", "/s").splitlines(), unit.filled("/w", "/c", "/s", sandbox=False).splitlines()
    changed = [(one, other) for one, other in zip(inside, outside, strict=True) if one != other]
    assert len(changed) == 7 and all(other == f"#{one}" for one, other in changed) and "NoNewPrivileges=yes" in dict(changed)


def test_reload_takes_what_is_right_and_tells_what_is_wrong(service):
    path, pid = service.site.conf / "10-site.toml", service.pid()
    right = path.read_text()
    try:
        path.write_text(right.replace("[daemon]", "[daemon]\ngrice = 1"))
        with pytest.raises(subprocess.CalledProcessError) as refused:  # whoever typed it is told at once
            service.ctl("reload", "watchties")
        assert "failed" in refused.value.stderr and service.show("ActiveState") in ("active", "reloading")
        service.until("told", lambda: "the configuration was not taken, the former one stays" in service.show("StatusText"))
        assert "grice" in service.show("StatusText")
        service.until("at work", lambda: service.show("ActiveState") == "active")
        service.site.drop("ann/old configuration")
        service.site.wait_state("ann/old configuration", "DONE")
        path.write_text(right.replace("[daemon]", '[daemon]\nreconcile = "77s"'))
        service.ctl("reload", "watchties")
        service.until("taken", lambda: '"reconcile": 77' in (service.site.state / "config.json").read_text())
        service.until("at work", lambda: service.show("StatusText").startswith("0 jobs waiting"))
    finally:
        path.write_text(right)
    assert (service.pid(), service.show("NRestarts")) == (pid, "0")


@pytest.mark.parametrize(("number", "result"), [(signal.SIGKILL, "killed"), (signal.SIGSTOP, "watchdog")])
def test_killed_or_hung_it_is_started_again_and_no_job_runs_twice(service, number, result):
    site, pid, restarts = service.site, service.pid(), int(service.show("NRestarts"))
    job = f"ann/{result}"
    site.drop(job, "echo run >>runs.log\nwhile [ ! -e go ]; do sleep 0.1; done\n")
    site.wait(lambda: site.runs(job), 60, "it runs")
    service.signal(number)
    service.until("restarted", lambda: int(service.show("NRestarts")) == restarts + 1 and service.show("ActiveState") == "active")
    assert service.pid() not in (0, pid), "nobody but its watchdog ends what is stopped"
    (site.compute / job / "go").touch()
    site.wait_state(job, "DONE")
    assert site.runs(job) == 1


def test_stopping_waits_for_a_hook_and_leaves_nothing_half_done(service):
    site, restarts = service.site, service.show("NRestarts")
    os.mkfifo(site.base / "go")
    os.chmod(site.base / "go", 0o666)
    site.drop("ann/hold it")
    site.wait(lambda: (site.base / "began").exists(), 60, "the hook is at work")
    service.ctl("stop", "--no-block", "watchties")
    service.until("it waits", lambda: service.show("StatusText").startswith("waiting for hooks to end"))
    assert service.show("ActiveState") == "deactivating"
    until = time.monotonic() + 6
    while time.monotonic() < until:  # longer than WatchdogSec: a service that is stopping is not taken for one that hangs
        assert service.show("ActiveState") == "deactivating"
        time.sleep(0.2)
    (site.base / "go").write_text("")
    service.until("stopped", lambda: service.show("ActiveState") == "inactive", 30)
    assert (site.base / "over.log").read_text() == "over\n"
    assert (service.show("Result"), service.show("NRestarts")) == ("success", restarts)
    assert not list((site.state / "runs").iterdir()) and site.record("ann/hold it").ended_as("hold") == "done"
    stopped = service.command("status", check=False)
    assert stopped.returncode == FAILURE and "it is not at work" in stopped.stderr
    service.ctl("start", "watchties")


def test_it_does_not_start_with_a_wrong_configuration_nor_try_again(service):
    path = service.site.conf / "10-site.toml"
    right = path.read_text()
    try:
        path.write_text(right.replace("[daemon]", "[daemon]\ngrice = 1"))
        service.ctl("restart", "watchties", check=False)
        service.until("failed", lambda: service.show("ActiveState") == "failed")
        assert service.show("ExecMainStatus") == "2"
    finally:
        path.write_text(right)
    service.ctl("start", "watchties")
    service.until("at work", lambda: service.show("ActiveState") == "active")


def test_a_moved_virtual_environment_is_told(service):
    """A venv that is moved with mv: its programs name a Python that is no longer there."""
    base = service.site.base
    old, new = base / "old venv", base / "new venv"
    (old / "bin").mkdir(parents=True)
    (old / "bin/python").symlink_to(os.path.realpath(sys.executable))
    packages = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    own = old / packages.relative_to(sys.prefix)
    own.mkdir(parents=True)
    (own / "others.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n")
    (old / "pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n")
    script = (Path(PROGRAM).read_text()).partition("\n")[2]
    (old / "bin/watchties").write_text(f"#!/bin/sh\n'''exec' '/home/webapp/old venv/bin/python' \"$0\" \"$@\"\n' '''\n{script}")
    (old / "bin/watchties").chmod(0o755)
    def call(venv, *words):
        return service.site.lab.on("v11", [f"/home/webapp/{venv}/bin/python", "-m", "watchties.cli", *words], user="webapp", check=False)

    assert "differs from what would be written now" in call("old venv", "service", "status").stdout
    old.rename(new)
    moved = call("new venv", "service", "install")
    assert moved.returncode == FAILURE and moved.stderr.count("\n") == 1
    assert "/home/webapp/new venv/bin/watchties does not run" in moved.stderr and "was moved, make it anew" in moved.stderr
    shutil.rmtree(new)


@pytest.mark.parametrize("what", ["install", "status"])
def test_without_a_user_bus_a_line_says_what_to_do(service, what):
    env = ["env", "XDG_RUNTIME_DIR=/tmp", PROGRAM]
    before = service.unit.read_text()
    done = service.site.lab.on("v11", [*env, "service", what], user="webapp", check=False)
    assert done.returncode == FAILURE and done.stderr.count("\n") == 1
    assert "no systemd answers for this user" in done.stderr and "loginctl enable-linger webapp" in done.stderr
    assert service.unit.read_text() == before
