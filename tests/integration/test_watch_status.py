"""status --watch in a real pseudo-terminal: what it shows, that it follows, how it ends, what it leaves of the terminal."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from watchties.journal import Journal

NAMES = ["ann/Exp_1", "bob/[red]Exp 2[/red] $(touch x) with a name that is rather longer than anybody would ever type", "李雷/实验;rm -rf *"]
WHY = "host b01 is down: ssh: connect to host b01 port 22: Connection refused; tried again and again until it answers"


def fill(folder, count, state="SUBMITTED"):
    """Put jobs into a journal."""
    journal = Journal(folder / "journal.sqlite")
    names = [*NAMES, *(f"user{number}/Exp_{number}" for number in range(count))][:count]
    journal.put_many([("main", name, state, 1, "b01", "", time.time() - number, WHY) for number, name in enumerate(names)])
    journal.close()


class Terminal:
    """A command in a terminal of its own. text: all that it has shown."""

    def __init__(self, *argv, columns=80, rows=20):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before, self.slave, self.text = termios.tcgetattr(slave), slave, ""
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm"}
        path = os.path.join(os.path.dirname(sys.executable), "watchties")
        self.process = subprocess.Popen([path, *map(str, argv)], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # fmt: skip

    def until(self, condition, seconds=30):
        """Read what is shown until condition(text of it) holds."""
        end = time.monotonic() + seconds
        while not condition(self.text):
            assert time.monotonic() < end, self.text[-3000:]
            if select.select([self.master], [], [], 0.05)[0]:
                self.text += os.read(self.master, 65536).decode("utf-8", "replace")

    def screen(self):
        """Return the lines of the last whole screen."""
        last = re.split(r"\x1b\[H", self.text)[-1]
        return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip("\r").rstrip() for line in last.split("\n")]

    def press(self, key):
        os.write(self.master, key)

    def ended(self):
        """Return the exit code, when it has ended; the terminal must be as it was."""
        self.until(lambda _: self.process.poll() is not None)
        with contextlib.suppress(OSError):
            while select.select([self.master], [], [], 0)[0]:
                self.text += os.read(self.master, 65536).decode("utf-8", "replace")
        assert termios.tcgetattr(self.slave) == self.before, "keys are still read one by one"
        assert self.text.count("\x1b[?1049h") == self.text.count("\x1b[?1049l") == 1, "the other screen is not left"
        assert self.text.rfind("\x1b[?25h") > self.text.rfind("\x1b[?25l"), "the cursor is not there again"
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(tmp_path):
    """Start status --watch; what was started is ended."""
    started = []

    def start(**how):
        started.append(Terminal("--state", tmp_path, "status", "--watch", **how))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("count", [0, 3, 500])
def test_it_fits_and_q_ends_it(terminal, tmp_path, columns, count):
    fill(tmp_path, count)
    shown = terminal(columns=columns)
    shown.until(lambda text: "q ends it" in text)
    lines = shown.screen()
    assert len(lines) <= 20 and max(map(len, lines)) <= columns
    assert ("no jobs yet" in "\n".join(lines)) == (count == 0)
    if count:
        text = "\n".join(lines)
        assert "main:ann/Exp_1" in text and "[red]" in text and "李雷/实验;rm -rf *" in text and "host b01 is down" in text
    assert (count == 500) == any("500 jobs, as many as fit" in line for line in lines)
    shown.press(b"q")
    assert shown.ended() == 0


def test_it_follows_what_changes_also_a_journal_that_is_deleted_and_made_again(terminal, tmp_path):
    fill(tmp_path, 2)
    shown = terminal()
    shown.until(lambda text: "2 SUBMITTED" in text)
    fill(tmp_path, 3)
    shown.until(lambda text: "3 SUBMITTED" in text)
    for path in tmp_path.glob("journal.sqlite*"):
        path.unlink()
    shown.until(lambda _: "is not there: no daemon has been at work here yet" in " ".join(shown.screen()))
    fill(tmp_path, 1)
    shown.until(lambda text: "1 SUBMITTED" in text)
    shown.press(b"\x1b[A")  # an arrow is no Esc
    fill(tmp_path, 2, "PENDING")
    shown.until(lambda text: "2 PENDING" in text)
    shown.press(b"\x03")  # Ctrl-C, by way of the terminal's own SIGINT
    assert shown.ended() == 0


def test_a_signal_leaves_the_terminal_as_it_was(terminal, tmp_path):
    fill(tmp_path, 1)
    shown = terminal()
    shown.until(lambda text: "q ends it" in text)
    shown.process.send_signal(signal.SIGTERM)
    assert shown.ended() == 128 + signal.SIGTERM


def test_without_a_terminal_it_is_refused_in_one_line(tmp_path):
    fill(tmp_path, 1)
    path = os.path.join(os.path.dirname(sys.executable), "watchties")
    for more, said in ([], "--watch needs a terminal"), (["--json"], "leave --json out"), (["ann/Exp_1"], "leave JOB out"):
        done = subprocess.run([path, "--state", tmp_path, "status", "--watch", *more], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1 and not done.stdout


def test_status_on_a_narrow_terminal_shows_every_reason_whole(tmp_path):
    fill(tmp_path, 3)
    shown = Terminal("--state", tmp_path, "status")
    try:
        shown.until(lambda _: shown.process.poll() is not None)
        shown.until(lambda text: "李雷" in text and text.count("until it answers") == 3)
        assert max(len(line) for line in shown.text.split("\r\n")) <= 80
    finally:
        shown.close()
