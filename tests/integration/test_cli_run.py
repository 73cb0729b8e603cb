"""watchties run as a real process: how it begins, ends, reads its configuration again, and what it says."""

import contextlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from watchties.cli import main
from watchties.demo import Demo


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come about in time")


@pytest.fixture
def work(tmp_path):
    work = Demo(str(tmp_path / "d"), 1)
    work.prepare()
    return work


@pytest.fixture
def start(work):
    """Return a function that starts `watchties run`; every process is ended again."""
    started = []

    def start(*more, wait=True):
        pipe = subprocess.PIPE
        process = subprocess.Popen([*work.words("run"), *more], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        if wait:
            until(lambda: "is at work" in log_of(work) or process.poll() is not None)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def log_of(work):
    path = pathlib.Path(work.state, "log", "daemon.log")
    return path.read_text() if path.exists() else ""


def status(work):
    return CliRunner().invoke(main, ["--config", work.conf, "--state", work.state, "status"]).output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(work, start, number):
    process = start()
    assert f"a daemon is at work, pid {process.pid}" in status(work)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err and "logs are in" in err, err
    assert log_of(work).splitlines()[-1].endswith("watchties has ended")
    assert "no daemon is at work" in status(work)


def test_a_second_one_is_refused(work, start):
    first = start()
    second = start(wait=False)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 2 and "Traceback" not in err
    assert f"a watchties daemon is at work already in {work.state} (pid {first.pid})" in err


def test_a_wrong_configuration_is_told_and_nothing_is_made(work, start):
    with open(os.path.join(work.conf, "50-daemon.toml"), "w") as file:
        file.write('[daemon]\ngrice = "5s"\n')
    os.rmdir(work.state)
    process = start(wait=False)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "watchties: " in err and "grice" in err and "Traceback" not in err
    assert not os.path.exists(work.state)


def test_a_hook_that_others_may_write_to_is_refused(work, start):
    hooks = work.at("hooks")
    os.mkdir(hooks)
    os.chmod(hooks, 0o777)
    process = start(wait=False)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and f"run: chmod go-w {hooks}" in err


def test_sighup_reads_the_configuration_again(work, start):
    process = start()
    with open(os.path.join(work.conf, "50-daemon.toml"), "w") as file:
        file.write('[daemon]\ngrice = "5s"\n')
    process.send_signal(signal.SIGHUP)
    until(lambda: "the configuration was not taken, the former one stays" in log_of(work))
    until(lambda: log_of(work).count("is at work") == 2)
    with open(os.path.join(work.conf, "50-daemon.toml"), "w") as file:
        file.write('[daemon]\ngrace = "6s"\n')
    process.send_signal(signal.SIGHUP)
    until(lambda: "the configuration was read again" in log_of(work))
    until(lambda: log_of(work).count("is at work") == 3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_what_is_old_is_forgotten_at_each_reload(work, start):
    process = start()
    with contextlib.closing(sqlite3.connect(os.path.join(work.state, "journal.sqlite"), timeout=30, isolation_level=None)) as journal:
        count = "SELECT count(*) FROM history"
        journal.execute("INSERT INTO history (at, tree, job, attempt, rule, event, text) VALUES (1, 'user_data', 'a/e', 1, '', 'x', '')")
        assert journal.execute(count).fetchone()[0] == 1
        process.send_signal(signal.SIGHUP)  # with a reconcile of minutes, and a reload more often than that
        until(lambda: journal.execute(count).fetchone()[0] == 0)


def test_it_takes_no_environment_of_ours_for_its_hooks(work):
    env = {**os.environ, "WATCHTIES_CONF_DIR": work.conf, "WATCHTIES_STATE_DIR": work.state}
    done = subprocess.run([sys.executable, "-m", "watchties.cli", "check", "--here"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and work.conf in done.stdout


def test_follow_shows_what_is_written_until_it_is_told_to_end(work):
    os.makedirs(os.path.join(work.state, "log"))
    path = os.path.join(work.state, "log", "push.log")
    with open(path, "w") as file:
        file.write("2026-01-01 10:00:00.000 push-1 before\n")
    process = subprocess.Popen(
        work.words("logs", "-f"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell starts what is in its background with SIGINT ignored
    )  # fmt: skip
    try:
        assert process.stdout.readline().endswith("before\n")
        with open(path, "a") as file:
            file.write("2026-01-01 10:00:01.000 push-1 after\n")
        assert process.stdout.readline().endswith("after\n"), "it comes at once, also into a pipe"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
