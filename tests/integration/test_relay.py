"""The relay as a real process: what it says of real directories, and when it ends."""

import ast
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import watchties.far

RELAY = pathlib.Path(watchties.far.__file__).with_name("relay.py")
QUEUE = pathlib.Path("/proc/sys/fs/inotify/max_queued_events")
PATIENCE = 15


class Caller:
    """Starts a relay and reads its lines; `prefix` is what the command begins with."""

    def __init__(self, root, *options, prefix=(), python=sys.executable, heartbeat=30, pattern="*/*", **streams):
        words = [*prefix, python, str(RELAY), "--nonce", "n1", "--tree", f"exp={root}={pattern}", "--heartbeat", str(heartbeat), *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, **{"stdin": pipe, "stdout": pipe, "stderr": pipe, **streams})
        self.buffer, self.heard = b"", []

    def line(self, patience=PATIENCE):
        """Return the next line (bytes, without its end), None if none comes in time, b"" at the end of output."""
        until = time.monotonic() + patience
        while b"\n" not in self.buffer:
            if not select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))[0]:
                return None
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return b""
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        self.heard.append(line)
        return line

    def until(self, wanted, patience=PATIENCE):
        """Return the lines up to the one that is `wanted`, which is included; fail if it does not come."""
        lines = []
        while not (lines and wanted in lines[-1]):
            line = self.line(patience)
            assert line, f"{wanted!r} did not come after {lines!r}"
            lines.append(line)
        return lines

    def say(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self):
        if self.process.stdin:
            self.process.stdin.close()
        return self.process.wait(PATIENCE)

    def let_go(self):
        """End it, whatever it does, and let go of its streams."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in self.process.stdin, self.process.stdout, self.process.stderr:
            stream and stream.close()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def call(root):
    callers = []

    def start(*options, **more):
        callers.append(Caller(more.pop("root", root), *options, **more))
        return callers[-1]

    yield start
    for caller in callers:
        caller.let_go()


def job(root, name, **files):
    place = root / name
    place.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (place / file).write_text(text)
    return place


def line_of(marker, name, place, *token):
    ns = str(os.lstat(place / marker).st_mtime_ns)
    return b"\t".join(map(os.fsencode, ("exp", marker, name, ns, *token)))


def unshared(setting, value):
    """Return a command prefix that sets a user namespace's limit, or skip."""
    prefix = ("unshare", "-U", "-r", "sh", "-c", f'echo {value} >/proc/sys/user/{setting} && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip(f"this machine lets nobody make a user namespace with its own {setting} (unshare -U -r)")
    return prefix


# --- the file


def test_it_is_python_3_6_and_needs_the_standard_library_only():
    tree = ast.parse(RELAY.read_text(), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names and not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    newer = {"removeprefix", "removesuffix", "isascii", "monotonic_ns", "readlink_bytes", "shutdown_default_executor"}
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def interpreters():
    """Return the oldest Python 3 found here, and the one that runs us."""
    older = (shutil.which(f"python3.{minor}") for minor in range(6, 11))
    works = [p for p in older if p and not subprocess.run([p, "-c", ""], capture_output=True).returncode]
    return [*works[:1], sys.executable]


@pytest.mark.parametrize("python", interpreters())
def test_any_interpreter_runs_it_in_the_c_locale(python, root, call):
    place = job(root, "zoë/Exp ü", PENDING="")
    caller = call(python=python, env={"LC_ALL": "C", "PATH": os.environ["PATH"]})
    assert line_of("PENDING", "zoë/Exp ü", place) in caller.until(b"#listed")
    assert caller.end() == 0


# --- the listing


def test_listing_tells_all_that_waits_between_header_and_end(root, call):
    one = job(root, "ann/E1", PENDING="", CANCEL="", DONE="", other="")
    two = job(root, "bob/E 2;$(x) 'é", **{".watchties.taken.PENDING": ""})
    job(root, "ann/.hidden", PENDING="")
    job(root, ".hidden/E1", PENDING="")
    job(root, "ann/E1/inner", PENDING="")
    (root / "PENDING").touch()
    (root / "ann/PENDING").touch()
    lines = call().until(b"#listed exp")
    assert lines[0] == b"#relay n1 2" and lines[-1] == b"#listed exp"
    assert sorted(lines[1:-1]) == sorted(
        [line_of("PENDING", "ann/E1", one), line_of("CANCEL", "ann/E1", one), line_of(".watchties.taken.PENDING", "bob/E 2;$(x) 'é", two)]
    )


def test_states_are_told_with_their_token(root, call):
    place = job(root, "ann/E1", DONE="state=DONE\ntoken=old\ntoken=t-1\n", FAILED="junk \0\n=", SUBMITTED="", PENDING="")
    evil = job(root, "ann/E2", DONE="token=a\tb\n")
    lines = call("--markers", "DONE,FAILED,SUBMITTED").until(b"#listed")[1:-1]
    told = [("DONE", "t-1"), ("FAILED", "-"), ("SUBMITTED", "-")]
    assert set(lines) == {line_of(marker, "ann/E1", place, token) for marker, token in told} | {line_of("DONE", "ann/E2", evil, "-")}


def test_marker_that_is_no_file_is_refused_and_never_waited_for(root, call):
    place = job(root, "ann/E1")
    os.mkfifo(place / "DONE")
    (place / "FAILED").symlink_to("/etc/passwd")
    (place / "SUBMITTED").mkdir()
    lines = call("--markers", "DONE,FAILED,SUBMITTED").until(b"#listed")[1:-1]
    assert sorted(lines) == [b"#bad exp ann/E1/%s: the marker is not a regular file" % name for name in (b"DONE", b"FAILED", b"SUBMITTED")]


def test_hostile_names_are_refused_once_and_links_not_followed(root, call, tmp_path):
    outside = job(tmp_path, "outside/E9", PENDING="")
    (root / "link").symlink_to(outside.parent)
    job(root, "ann/fine", PENDING="")
    (root / "ann/link").symlink_to(outside)
    for where in root, root / "ann":
        (where / "itself").symlink_to("itself")
    for name in (b"-rf", b"new\nline", b"tab\there", b"bad\xff", "sep\u2028x".encode()):
        os.makedirs(os.fsencode(root) + b"/ann/" + name)
        open(os.fsencode(root) + b"/ann/" + name + b"/PENDING", "w").close()
    caller = call()
    lines = caller.until(b"#listed")
    refused = [line for line in lines if line.startswith(b"#bad exp ")]
    assert len(refused) == 7 and sum(b"symbolic link" in line for line in refused) == 2
    assert [line.split(b"\t")[2] for line in lines if line.startswith(b"exp\t")] == [b"ann/fine"]
    for place in "ann/late", "late":
        (root / place).symlink_to(outside)
        assert b"symbolic link" in caller.line()
    caller.say(b"list\n")
    assert not [line for line in caller.until(b"#listed") if line.startswith(b"#bad")]


def test_list_tells_all_again_and_no_list_only_what_happens(root, call):
    place = job(root, "ann/E1", PENDING="")
    caller = call("--no-list")
    assert caller.line() == b"#relay n1 2"
    assert caller.line() == b"#watching exp"
    assert caller.line(0.5) is None
    os.utime(place / "PENDING")
    assert caller.line() == line_of("PENDING", "ann/E1", place)
    for _ in range(2):
        caller.say(b"beat\nlist\n")
        assert caller.until(b"#listed") == [line_of("PENDING", "ann/E1", place), b"#listed exp"]


def test_names_prints_jobs_and_nothing_else(root, call):
    job(root, "ann/E 1", PENDING="")
    caller = call("--names", "--heartbeat", "0.1", stdin=subprocess.DEVNULL)
    assert caller.line() == b"ann/E 1"
    time.sleep(0.6)  # no beat is printed, none expected, and an empty standard input does not end it
    job(root, "ann/E2", CANCEL="")
    assert caller.line() == b"ann/E2"
    caller.process.stdout.close()
    assert caller.process.wait(PATIENCE) == 0
    caller.process.stdout = None


# --- events


@pytest.fixture
def listed(call):
    caller = call()
    caller.until(b"#listed")
    return caller


def test_touch_of_a_marker_is_told_with_its_new_identity(root, call):
    place = job(root, "ann/E1", PENDING="")
    caller = call()
    caller.until(b"#listed")
    os.utime(place / "PENDING", ns=(5, 1700000000123456789))
    assert caller.line() == b"exp\tPENDING\tann/E1\t1700000000123456789"
    subprocess.run(["touch", str(place / "CANCEL")], check=True)
    assert caller.line() == line_of("CANCEL", "ann/E1", place)


def test_rename_into_place_is_told_once_and_half_written_never(root, call):
    place, listed = job(root, "ann/E1"), call()
    listed.until(b"#listed")
    half = open(place / "PENDING", "w")
    half.write("x")
    half.flush()
    (place / ".tmp").write_text("x")
    (place / ".tmp").rename(place / "CANCEL")
    assert listed.line() == line_of("CANCEL", "ann/E1", place)
    half.close()
    assert listed.line() == line_of("PENDING", "ann/E1", place)
    assert listed.line(0.3) is None


def test_nothing_is_missed_when_directory_and_marker_come_at_once(root, listed):
    wanted = set()
    for number in range(200):
        name = f"user{number % 7}-{number // 50}/E{number}"
        wanted.add(line_of("PENDING", name, job(root, name, a="", b="", PENDING="")))
    found = set()
    while found < wanted:
        line = listed.line()
        assert line, f"{len(wanted - found)} were missed"
        found.add(line)
    assert found == wanted


def test_results_and_deeper_markers_are_not_told(root, listed):
    place = job(root, "ann/E1/plots", PENDING="").parent
    for number in range(3000):
        (place / f"r{number}").write_text("")
    job(root, "ann/E1/plots", PENDING="x")
    (place / "CANCEL").touch()
    assert listed.line() == line_of("CANCEL", "ann/E1", place)


def test_directories_that_move_are_told_under_their_new_name_only(root, tmp_path, listed):
    job(tmp_path, "prepared/E1", PENDING="")
    (tmp_path / "prepared").rename(root / "ann")
    assert listed.line() == line_of("PENDING", "ann/E1", root / "ann/E1")
    (root / "ann").rename(root / "eve")
    assert listed.line() == line_of("PENDING", "eve/E1", root / "eve/E1")
    (root / "eve/E1").rename(root / "eve/E2")
    assert set(listed.until(b"E2")) == {line_of("PENDING", "eve/E2", root / "eve/E2")}
    while listed.line(0.3):
        pass  # it may be told twice
    (root / "eve/E2/CANCEL").touch()
    assert listed.line() == line_of("CANCEL", "eve/E2", root / "eve/E2")
    (root / "eve/E2").rename(tmp_path / "job")
    job(root, "eve/E2")
    (root / "eve/E2/CANCEL").touch()
    assert listed.line() == line_of("CANCEL", "eve/E2", root / "eve/E2")
    while listed.line(0.3):
        pass
    (tmp_path / "job/CANCEL").write_text("x")
    assert listed.line(0.3) is None
    (root / "eve").rename(tmp_path / "gone")
    (tmp_path / "gone/E2/CANCEL").write_text("x")
    job(root, "eve/E2", PENDING="")
    assert listed.line() == line_of("PENDING", "eve/E2", root / "eve/E2")


def test_other_depths_work(root, call):
    caller = call(pattern="x*")
    caller.until(b"#listed")
    job(root, "other", PENDING="")
    place = job(root, "x1", PENDING="")
    assert caller.line() == line_of("PENDING", "x1", place)


def test_events_that_were_lost_lead_to_a_new_listing(root, call):
    size = int(QUEUE.read_text())
    if size > 200000:
        pytest.skip(f"the queue of this machine is too long to fill ({size} events)")
    place = job(root, "ann/E1", a="", b="")
    caller = call()
    caller.until(b"#listed")
    os.kill(caller.process.pid, signal.SIGSTOP)
    for _ in range(size):
        os.utime(place / "a")
        os.utime(place / "b")
    late = job(root, "bob/E2", PENDING="")
    os.kill(caller.process.pid, signal.SIGCONT)
    assert line_of("PENDING", "bob/E2", late) in caller.until(b"#listed")
    os.utime(late / "PENDING")
    assert caller.line() == line_of("PENDING", "bob/E2", late)


def test_a_tree_that_goes_and_comes_back_is_found_again(root, tmp_path, call):
    job(root, "ann/E1", PENDING="")
    caller = call(heartbeat=0.5)
    caller.until(b"#listed")
    for again in range(2):
        root.rename(tmp_path / "away")
        assert b"is there" in caller.until(b"#error")[-1]
        caller.say(b"beat\n")
        place = job(root, f"new/E{again}", PENDING="")
        assert line_of("PENDING", f"new/E{again}", place) in caller.until(b"#listed")
        os.utime(place / "PENDING")
        assert line_of("PENDING", f"new/E{again}", place) == caller.until(b"PENDING")[-1]
        shutil.rmtree(tmp_path / "away")
        caller.say(b"beat\n")


def test_a_tree_that_goes_is_told_by_its_event(root, tmp_path, listed):
    root.rename(tmp_path / "away")
    assert b"is there" in listed.until(b"#error")[-1]


# --- where inotify does not serve


def test_watch_limit_is_told_with_its_sysctl_and_the_rest_is_polled(root, call):
    places = [job(root, f"u{number}/E1", PENDING="") for number in range(8)]
    caller = call("--poll", "0.3", prefix=unshared("max_inotify_watches", 11))
    lines = caller.until(b"#error") + caller.until(b"#listed")
    error = next(line for line in lines if line.startswith(b"#error")).decode()
    assert "6 directories" in error and "fs.inotify.max_user_watches" in error and "needs 17" in error
    assert sum(line.startswith(b"exp\t") for line in lines) == 8
    time.sleep(1)
    while caller.line(0.5):
        pass
    for place in places:
        os.utime(place / "PENDING")
    wanted = {line_of("PENDING", f"{place.parent.name}/E1", place) for place in places}
    heard = {caller.line() for _ in places}
    assert heard == wanted
    assert caller.line(1) is None, "what is polled is told once, and the limit too"


@pytest.mark.parametrize("options", [(), ("--no-list",)])
def test_without_inotify_it_lists_now_and_then_and_tells_only_what_is_new(root, call, options):
    old = job(root, "ann/E1", PENDING="")
    caller = call("--poll", "0.3", *options, prefix=unshared("max_inotify_instances", 0))
    assert b"max_user_instances" in caller.until(b"#error")[-1]
    told = [b"#watching exp"] if options else [line_of("PENDING", "ann/E1", old), b"#listed exp"]
    assert caller.until(told[-1]) == told
    assert caller.line(1) is None
    place = job(root, "ann/E2", PENDING="")
    assert caller.line() == line_of("PENDING", "ann/E2", place)
    os.utime(place / "PENDING")
    assert caller.line() == line_of("PENDING", "ann/E2", place)
    assert caller.line(1) is None


# --- the caller


def test_it_ends_with_its_standard_input(root, call):
    caller = call()
    caller.until(b"#listed")
    assert caller.end() == 0 and caller.process.stderr.read() == b""


def test_beats_go_both_ways_and_silence_ends_it(root, call):
    caller = call(heartbeat=0.4)
    began = time.monotonic()
    while time.monotonic() < began + 2:
        caller.until(b"#beat")
        caller.say(b"beat\n")
    silent = time.monotonic()
    assert caller.process.wait(PATIENCE) == 0
    assert 0.9 < time.monotonic() - silent < 4


def test_it_ends_also_while_nobody_takes_what_it_says(root, call):
    for number in range(2000):
        job(root, f"ann/{'E' * 100}{number}", PENDING="")
    caller = call(heartbeat=0.4)  # 260 kB are more than a pipe takes
    assert caller.process.wait(PATIENCE) == 0


def test_it_ends_when_the_reader_goes(root, call):
    caller = call()
    caller.until(b"#listed")
    caller.process.stdout.close()
    assert caller.process.wait(PATIENCE) == 0
    caller.process.stdout = None


def test_one_socket_for_both_directions_serves_too(root, call):
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            caller = call(stdin=theirs, stdout=theirs)
        assert ours.recv(100).startswith(b"#relay n1")
    assert caller.process.wait(PATIENCE) == 0


def test_at_rest_it_does_nothing(root, call):
    job(root, "ann/E1", PENDING="")
    caller = call()
    caller.until(b"#listed")
    stat = pathlib.Path(f"/proc/{caller.process.pid}/stat")
    before = stat.read_text().split()[13:15]
    time.sleep(1)
    assert stat.read_text().split()[13:15] == before
