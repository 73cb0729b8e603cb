"""The kernel's questions about calls are whole: each call of a known program is seen once, in its order, with its paths, before it is done."""

import subprocess
import sys

import calls
import pytest
from calls import Calls

PROGRAM = """
import os, subprocess, threading
os.mkdir("d"); os.rmdir("d")
with open("one", "wb", buffering=0) as file:
    file.write(b"text")
    os.fsync(file.fileno())
os.rename("one", "two")
os.link("two", "three")
here = os.open(".", os.O_RDONLY)
os.unlink("three", dir_fd=here)
other = threading.Thread(target=lambda: os.rename("two", "four")); other.start(); other.join()
subprocess.run(["sh", "-c", "mv four five; sync -f five; exec setsid sh -c 'ln five six'"], check=True)
open("five").close()
"""
EXPECTED = [
    ("mkdir", "d", ""), ("rmdir", "d", ""), ("create", "one", ""), ("write", "one", ""), ("fsync", "one", ""), ("rename", "one", "two"),
    ("link", "two", "three"), ("unlink", "three", ""), ("rename", "two", "four"), ("rename", "four", "five"), ("syncfs", "five", ""),
    ("link", "five", "six"),
]  # fmt: skip

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


def run(folder, on_call, program=PROGRAM):
    """Run a program below the filter; return its exit code."""
    with Calls(on_call) as watched:
        return watched.popen([sys.executable, "-I", "-S", "-B", "-c", program], cwd=folder).wait(60)


def test_each_call_is_seen_once_with_its_paths(tmp_path):
    seen = []
    assert run(tmp_path, seen.append) == 0
    inside = [call for call in seen if call.path.startswith(f"{tmp_path}/")]
    short = [(call.name, call.path[len(f"{tmp_path}/") :], call.target[len(f"{tmp_path}/") :]) for call in inside]
    assert short == EXPECTED
    assert [call.argv[0] for call in inside][-3:] == ["mv", "sync", "ln"]
    assert [call.number for call in seen] == list(range(1, len(seen) + 1))


def test_a_call_is_held_while_it_is_looked_at(tmp_path):
    def look(call):
        if call.name == "rename" and call.path.startswith(str(tmp_path)):
            stood.append((subprocess.run(["ls", str(tmp_path)], capture_output=True, text=True).stdout.split()))

    stood = []
    assert run(tmp_path, look) == 0
    assert stood == [["one"], ["two"], ["four"]]


def test_a_call_whose_process_is_killed_is_never_done(tmp_path):
    def kill(call):
        if call.name == "rename" and call.path.endswith("/four"):
            call.kill()

    assert run(tmp_path, kill) == 1  # the shell went on, and missed what should have been there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four"]


def test_a_call_that_is_held_for_long_keeps_nobody_else_waiting(tmp_path):
    order = []

    def hold(call):
        if call.name == "rename" and call.path.startswith(str(tmp_path)):
            order.append(call.path[-1])
            return 1.0 if call.path.endswith("/a") else None

    program = "import os, subprocess; open('a', 'w'); open('c', 'w'); subprocess.run('mv a b & sleep 0.3; mv c d; ls', shell=True)"
    assert run(tmp_path, hold, program) == 0
    assert order == ["a", "c"]


def test_what_goes_wrong_while_it_looks_is_told(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, lambda call: 1 / 0)
