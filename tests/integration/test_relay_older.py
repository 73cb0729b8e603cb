"""The relay's older protocol: real relays, real signals, real writers, and kill -9 in between."""

import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_relay import PATIENCE, Caller, job, line_of

import watchties.far
from watchties import deploy

RELAY = pathlib.Path(watchties.far.__file__).with_name("relay.py")
# What a program of the older protocol does, as `relay.py --help` has it.
HAND_OVER = """exec 9>>relay.lock; flock 9; for job; do printf '%s\\n' "$job"; done >>relay.names
flock -s -n relay.pid true || kill -30 "$(cat relay.pid)" """


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "scripts").mkdir()
    return tmp_path / "data"


@pytest.fixture
def scripts(root):
    return root.parent / "scripts"


@pytest.fixture
def call(root, scripts):
    callers = []

    def start(*options, **more):
        callers.append(Caller(root, "--directory", str(scripts), *options, **more))
        return callers[-1]

    yield start
    for caller in callers:
        caller.let_go()


def hand_over(scripts, *jobs):
    subprocess.run(["sh", "-c", HAND_OVER, "sh", *jobs], cwd=scripts, check=True, timeout=60)


def alive(scripts):
    """Return the process id in relay.pid if the lock on it says that it lives."""
    if not (scripts / "relay.pid").exists():
        return None
    lives = subprocess.run(["flock", "-s", "-n", "relay.pid", "true"], cwd=scripts, timeout=60).returncode
    return int((scripts / "relay.pid").read_text()) if lives else None


def wait(condition, seconds=PATIENCE):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"not so after {seconds} s"
        time.sleep(0.02)
    return value


def up(caller, scripts):
    """Wait until a relay has put up its process id."""
    wait(lambda: alive(scripts) == caller.process.pid)


def rest(caller, seconds=0.5):
    """Return the lines that still come."""
    lines = []
    while line := caller.line(seconds):
        lines.append(line)
    return [line for line in lines if line != b"#beat"]


# --- the process id


def test_the_process_id_is_up_and_locked_while_the_relay_lives_and_never_signalled_after(root, scripts, call):
    caller = call()
    caller.until(b"#listed")
    up(caller, scripts)
    caller.process.kill()
    caller.process.wait()
    assert int((scripts / "relay.pid").read_text()) == caller.process.pid and alive(scripts) is None, "stale, and the lock says so"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        (scripts / "relay.pid").write_text(f"{sleeper.pid}\n")  # the number was given to another program
        job(root, "ann/E1", PENDING="")
        hand_over(scripts, "ann/E1")
        caller = call()
        up(caller, scripts)
        hand_over(scripts, "ann/E1")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
    assert caller.end() == 0
    assert (scripts / "relay.pid").read_text() == "" and alive(scripts) is None


def test_no_stale_id_is_ever_seen_locked_while_relays_come_and_go(root, scripts, call):
    wrong, stop, living = [], threading.Event(), set()

    def test_it():
        while not stop.is_set():
            with open(scripts / "relay.lock", "a") as lock:
                subprocess.run(["flock", str(lock.fileno())], pass_fds=[lock.fileno()], check=True)
                pid = alive(scripts)
                if pid is not None and pid not in living:
                    wrong.append(pid)
            time.sleep(0.01)  # the relay asks for the lock now and then, and waits for nobody

    thread = threading.Thread(target=test_it)
    thread.start()
    try:
        for _ in range(5):
            caller = call()
            living.add(caller.process.pid)
            up(caller, scripts)
            with open(scripts / "relay.lock", "a") as lock:  # between two looks: one takes some time
                fcntl.flock(lock, fcntl.LOCK_EX)
                caller.process.kill()
                caller.process.wait()
                living.discard(caller.process.pid)
                (scripts / "relay.pid").write_text("1\n")
    finally:
        stop.set()
        thread.join()
    assert wrong == []


def test_a_second_relay_says_so_in_one_line_and_takes_over_when_the_first_has_ended(root, scripts, call):
    first = call()
    up(first, scripts)
    second = call(heartbeat=2)
    said = second.until(b"#error")[-1].decode()
    assert f"another relay (process {first.process.pid}) serves {scripts}" in said
    assert alive(scripts) == first.process.pid
    job(root, "ann/E1", PENDING="")
    assert b"ann/E1" in second.until(b"PENDING")[-1], "it does all else"
    beat(second)
    first.process.kill()
    first.process.wait()
    wait(lambda: beat(second) or alive(scripts) == second.process.pid)
    job(root, "ann/E2", PENDING="")
    second.until(b"ann/E2")
    hand_over(scripts, "bob/none")
    second.until(b"#bad exp bob/none: No such file or directory (a name in relay.names)")
    assert not any(b"another relay" in line for line in rest(second))


def beat(caller):
    caller.say(b"beat\n")


def test_a_process_id_file_that_was_removed_is_put_up_again(root, scripts, call):
    caller = call(heartbeat=0.3)
    up(caller, scripts)
    (scripts / "relay.pid").unlink()
    wait(lambda: beat(caller) or alive(scripts) == caller.process.pid)


# --- names


@pytest.mark.parametrize("watching", [True, False])
@pytest.mark.parametrize("names", [True, False])
def test_a_name_is_told_exactly_once_beside_what_the_trees_say(root, scripts, call, names, watching):
    prefix = () if watching else no_inotify()
    caller = call(*(["--names"] if names else []), "--poll", "0.3", prefix=prefix)
    wait(lambda: alive(scripts))
    jobs = [f"ann/E {number} 'ü'" for number in range(20)]
    for name in jobs:
        job(root, name)
        (root / name / ".new").touch()
        (root / name / ".new").rename(root / name / "PENDING")
        hand_over(scripts, name)
    heard = [line for line in rest(caller, 1.5) if not line.startswith(b"#")]
    wanted = [name.encode() if names else line_of("PENDING", name, root / name) for name in jobs]
    if not names:  # a scan and an event may both tell a marker, which the daemon knows by its identity; a name adds none
        heard = set(heard)
    assert sorted(heard) == sorted(wanted)
    assert not [name for name in os.listdir(scripts) if "names" in name]
    hand_over(scripts, jobs[0], jobs[0])
    assert [line for line in rest(caller) if not line.startswith(b"#")] == [], "told, still standing"
    os.utime(root / jobs[0] / "PENDING", ns=(7, 7))
    assert [line for line in rest(caller, 1) if b"E 0" in line], "another request"


def no_inotify():
    prefix = ("unshare", "-U", "-r", "sh", "-c", 'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a user namespace with its own limits (unshare -U -r)")
    return prefix


def test_names_left_while_no_relay_lived_are_told_at_the_start(root, scripts, call):
    hand_over(scripts, "ann/E1")
    (scripts / ".relay.names.taken").write_text("bob/E 2\n")  # of a relay that was killed between taking and telling
    for name in "ann/E1", "bob/E 2":
        job(root, name)  # no PENDING: the older programs had none
    caller = call("--names")
    assert [caller.line(), caller.line()] == [b"bob/E 2", b"ann/E1"]
    assert rest(caller) == []
    wait(lambda: sorted(os.listdir(scripts)) == ["relay.lock", "relay.pid"])


def test_without_pending_a_name_is_told_to_older_programs_and_refused_to_watchties(root, scripts, call):
    job(root, "ann/E1", SUBMITTED="")
    caller = call()
    up(caller, scripts)
    hand_over(scripts, "ann/E1")
    assert caller.until(b"#bad")[-1] == b"#bad exp ann/E1: PENDING does not stand there (a name in relay.names)"
    place = job(root, "ann/E2", PENDING="")
    assert rest(caller)
    (place / "PENDING").rename(place / "SUBMITTED")
    hand_over(scripts, "ann/E2")
    assert rest(caller) == [], "told before, and taken off since: nothing is wrong"
    job(root, "ann/E3", **{".watchties.taken.PENDING": ""})
    hand_over(scripts, "ann/E3")
    assert b"PENDING\tann/E3\t" in caller.line(), "just being taken off: it stands"


def test_every_bad_name_is_told_and_no_good_one_is_lost(root, scripts, call):
    place = job(root, "ann/E1", PENDING="")
    (root / "file").touch()
    (root / "bob").symlink_to(root / "ann")
    (root / "ann/link").symlink_to(place)
    bad = ["ann", "ann/E1/x", "../data/ann/E1", "ann/..", "ann//E1", "/ann/E1", "ann/", "-x/E1", "bob/E1", "ann/link", "file/E1",
           "ann/.hidden", "ann/none", "ann/\x1b[2J", "ann/" + "x" * 5000, "$(touch pwned)/`id`"]  # fmt: skip
    (scripts / "relay.names").write_bytes(b"\r\n\n".join(name.encode() for name in bad) + b"\nann/\xff\nann/\0\nann/E1")
    caller = call("--no-list")
    lines = rest(caller, 4)
    refused = [line for line in lines if line.startswith(b"#bad exp ") and line.endswith(b"(a name in relay.names)")]
    assert len(refused) == len(bad) + 2 and b"\x1b" not in b"".join(refused)
    told = [line for line in lines if not line.startswith(b"#")]
    assert told == [line_of("PENDING", "ann/E1", place)], "half a line: it is waited for, and taken as it is"
    assert not list(root.rglob("pwned"))


def test_a_line_that_comes_in_halves_is_one_name(root, scripts, call):
    caller = call("--names")
    up(caller, scripts)
    for name in "ann/E1", "ann/E12":
        job(root, name)
    with open(scripts / "relay.names", "a", buffering=1) as file:
        file.write("ann/E1")
        file.flush()
        os.kill(caller.process.pid, 30)
        wait(lambda: (scripts / ".relay.names.taken").exists())
        file.write("2\n")
    assert caller.line() == b"ann/E12" and rest(caller) == []


def test_a_writer_that_keeps_the_lock_stops_nothing_and_is_told(root, scripts, call):
    caller = call("--names", heartbeat=0.5)
    up(caller, scripts)
    job(root, "ann/E1")
    holder = subprocess.Popen(["flock", "relay.lock", "cat"], cwd=scripts, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait(lambda: subprocess.run(["flock", "-n", "relay.lock", "true"], cwd=scripts).returncode)
        (scripts / "relay.names").write_text("ann/E1\n")
        os.kill(caller.process.pid, 30)
        job(root, "ann/E2", PENDING="")
        assert caller.line() == b"ann/E2" and rest(caller, 2.5) == []
        os.set_blocking(caller.process.stderr.fileno(), False)
        assert b"relay.lock is held by another program" in caller.process.stderr.read()
    finally:
        holder.communicate()
    assert caller.line() == b"ann/E1"


def test_names_wait_for_a_tree_that_is_not_there(root, scripts, call):
    root.rename(root.parent / "away")
    caller = call("--names", heartbeat=0.3)
    up(caller, scripts)
    hand_over(scripts, "ann/E1")
    assert caller.line(1) is None
    (root.parent / "away/ann/E1").mkdir(parents=True)
    (root.parent / "away").rename(root)
    assert caller.line() == b"ann/E1"


def test_a_directory_that_cannot_be_written_is_said_and_the_rest_goes_on(root, scripts, call):
    scripts.rmdir()
    place = job(root, "ann/E1", PENDING="")
    lines = call().until(b"#error")
    assert line_of("PENDING", "ann/E1", place) in lines and b"No such file or directory; names left there are not heard" in lines[-1]


# --- bursts and kills


def test_signals_in_a_burst_lose_no_name_and_tell_none_twice(root, scripts, call):
    caller = call("--names")
    up(caller, scripts)
    jobs = [f"u{number % 7}/E{number}" for number in range(400)]
    for name in jobs:
        (root / name).mkdir(parents=True)
    loop = f'n=0; while [ $n -lt 100 ]; do set -- u$(((4*n+$0)%7))/E$((4*n+$0)); ( {HAND_OVER} ); n=$((n+1)); done'
    writers = [subprocess.Popen(["sh", "-c", loop, str(number)], cwd=scripts) for number in range(4)]
    heard = rest(caller, 5)
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert sorted(heard) == sorted(name.encode() for name in jobs)
    assert rest(caller) == []


def test_killed_relays_lose_no_name(root, scripts, call):
    jobs = [f"ann/E{number}" for number in range(60)]
    for name in jobs:
        (root / name).mkdir(parents=True)
    # A relay may be killed between a writer's look at its lock and its signal: kill(1) fails, and the next relay takes the name.
    words = ["sh", "-c", HAND_OVER + " 2>/dev/null || :", "sh"]
    writer = threading.Thread(target=lambda: [subprocess.run([*words, name], cwd=scripts, check=True) for name in jobs])
    writer.start()
    heard = []
    for turn in range(6):
        caller = call("--names")
        up(caller, scripts)
        heard += [line for line in (caller.line(0.2) for _ in range(turn * 2)) if line]
        caller.process.kill()
        caller.process.wait()
        heard += rest(caller)  # what it had written is in the pipe
    writer.join()
    last = call("--names")
    heard += rest(last, 1.5)
    assert {line.decode() for line in heard} == set(jobs)
    assert len(heard) <= len(jobs) + 6 * 5, "only what a killed relay had just told may come again"


def test_a_relay_that_nobody_reads_leaves_the_names_to_the_next(root, scripts, call):
    caller = call("--names", stdin=subprocess.DEVNULL)
    up(caller, scripts)
    (root / "ann/E1").mkdir(parents=True)
    os.kill(caller.process.pid, signal.SIGSTOP)
    hand_over(scripts, "ann/E1")
    caller.process.stdout.close()
    os.kill(caller.process.pid, signal.SIGCONT)
    assert caller.process.wait(PATIENCE) == 0
    caller.process.stdout = None
    reader, writer = os.pipe()
    os.close(reader)
    assert call("--names", stdout=writer).process.wait(PATIENCE) == 0, "it takes the names, and nobody is there to be told"
    os.close(writer)
    assert call("--names").line() == b"ann/E1"


# --- under its older name


def older(root, scripts, *options, **more):
    (scripts / "relay_ties_directories").write_bytes(deploy.stamped(deploy.source("relay.py")))
    root.rename(root.parent / "user_data")
    words = [sys.executable, str(scripts / "relay_ties_directories"), *options]
    return subprocess.Popen(words, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **more)


def test_under_its_older_name_it_needs_no_options(root, scripts):
    job(root, "ann/E1", PENDING="", CANCEL="")
    process = older(root, scripts)
    try:
        assert process.stdout.readline() == b"ann/E1\n"
        wait(lambda: alive(scripts) == process.pid)
        job(root.parent / "user_data", "bob/E2")
        hand_over(scripts, "bob/E2")
        assert process.stdout.readline() == b"bob/E2\n"
    finally:
        process.stdout.close()
        assert process.wait(PATIENCE) == 0


def test_its_help_says_how_a_job_is_handed_over(root, scripts):
    process = older(root, scripts, "--help", text=True)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    for word in "relay_ties_directories [-h]", "relay.pid", "relay.names", "signal 30", 'kill -30 "$(cat relay.pid)"', "../user_data":
        assert word in said
    recipe = next(line for line in said.splitlines() if "flock 9" in line).replace("USER/EXP", "ann/E1")
    subprocess.run(["sh", "-c", recipe], cwd=scripts, check=True, timeout=60)
    assert (scripts / "relay.names").read_text() == "ann/E1\n"
