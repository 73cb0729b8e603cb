"""The demo: what a new user sees first. Real daemon, hooks, rsync, agent; only ssh is not."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from watchties import demo, onlook
from watchties.cli import main
from watchties.cli.common import Places

pytestmark = pytest.mark.slow


def watchties(*args, **options):
    return subprocess.run([sys.executable, "-m", "watchties.cli", *map(str, args)], capture_output=True, text=True, timeout=300, **options)


def processes_of(folder):
    """Return the pids of processes whose command line names a directory."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if os.fsencode(str(folder)) in file.read() and int(pid) != os.getpid():
                    found.append(int(pid))
        except OSError:
            continue
    return found


def test_jobs_go_all_the_way_with_plain_lines(tmp_path):
    folder = tmp_path / "the demo's"
    done = watchties("demo", "--jobs", 4, "--dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 jobs DONE, all results on the web host, a mail for each." in done.stdout and "\x1b" not in done.stdout
    work = demo.Demo(str(folder), 4)
    for job in work.jobs:
        for name in demo.RESULTS:
            assert os.path.getsize(os.path.join(work.web, job, name)) > 0
        assert "SUBMITTED" in done.stdout and f"{job} " in done.stdout
        there, back = (os.path.join(root, job, "parameters.csv") for root in (work.compute, work.web))
        with open(there, "rb") as one, open(back, "rb") as two:
            assert one.read() == two.read()
    letters = [name for name in os.listdir(work.mail) if not name.startswith("notice")]
    assert len(letters) == 4
    assert processes_of(folder) == []
    assert os.path.exists(work.conf), "--dir stays"
    following = [line.strip() for line in done.stdout.splitlines() if line.startswith("  watchties --config") and not line.endswith("&")]
    assert len(following) == 4
    for line in following:
        typed = line.replace("watchties", f"{sys.executable} -m watchties.cli", 1)
        shown = subprocess.run(typed, shell=True, capture_output=True, text=True)
        assert shown.returncode == 0 and shown.stdout, (line, shown.stderr)


def test_on_a_terminal_it_is_a_table_and_the_directory_goes(tmp_path):
    master, slave = pty.openpty()
    env = {**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    words = [sys.executable, "-m", "watchties.cli", "demo", "--jobs", "2"]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    said = b""
    while select.select([master], [], [], 120)[0]:
        try:
            said += os.read(master, 65536)
        except OSError:
            break
    os.close(master)
    assert process.wait(60) == 0, said.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())
    assert "COMPUTE" in text and "sent" in text and "2 jobs DONE" in text and "Removed again." in text
    assert list(tmp_path.glob("watchties-demo-*")) == []


def test_a_job_that_fails_is_explained_and_everything_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DYADS", 0)  # a header without data: the program refuses it
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    shown = CliRunner().invoke(main, ["demo", "--jobs", "1"])
    assert shown.exit_code == 1, shown.output
    assert "ann/Exp_1: FAILED on the web host, not DONE" in shown.output and "It lies in " in shown.output
    assert "no mail" not in shown.output, "its user is told of a failure, too"
    (left,) = tmp_path.glob("watchties-demo-*")
    assert processes_of(left) == []


def test_a_daemon_that_ends_by_itself_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.Demo, "words", lambda self, *args: [sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])
    shown = CliRunner().invoke(main, ["demo", "--dir", str(tmp_path / "d")])
    assert shown.exit_code == 1 and "the daemon has ended by itself" in shown.output and "no luck" in shown.output


def test_patience_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PATIENCE", 0)
    monkeypatch.setattr(demo, "PATIENCE_PER_JOB", 0)
    shown = CliRunner().invoke(main, ["demo", "--jobs", "1", "--dir", str(tmp_path / "d")])
    assert shown.exit_code == 1 and "not everything ended within 0 s" in shown.output
    assert processes_of(tmp_path / "d") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_it_is_interrupted_its_daemon_ends_too(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-m", "watchties.cli", "demo", "--jobs", "30", "--dir", str(tmp_path / "d")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "PENDING" in line:
            break
    assert at_work(tmp_path / "d")
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # an impatient user, or timeout(1)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (1, 128 + number) and "Traceback" not in err, err
    assert at_work(tmp_path / "d") == [], "jobs may run on: they are the compute host's"


def at_work(folder):
    """Return what is at work of a demo: its daemon, hooks by the locks that they hold."""
    state = folder / "state"
    held = [path.name for path in sorted((state / "locks").iterdir()) if onlook._is_held(path)]
    return held + ([pid] if (pid := Places.of("-", str(state)).daemon()) else [])


def test_a_directory_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    done = watchties("demo", "--dir", tmp_path)
    assert done.returncode == 2 and "is not empty" in done.stderr and os.listdir(tmp_path) == ["mine"]
