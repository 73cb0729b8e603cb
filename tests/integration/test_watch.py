"""The mirror's watch on real directories: inotify, polling, and what happens when either is not enough."""

import asyncio
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from watchties import model, mounts
from watchties.watch import MirrorWatch

QUEUE = pathlib.Path("/proc/sys/fs/inotify/max_queued_events")
PATIENCE = 15


class Seen:
    """A watch in a loop of its own, and all that it has called."""

    def __init__(self, root, **options):
        self.watch = MirrorWatch(root, **options)
        self.dirty, self.rescans, self.problems, self.bad, self.errors = [], [], [], [], []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.errors.append(context))
        self.watch.start(asyncio.get_running_loop(), self.dirty.append, self.rescans.append, self.problems.append, self._on_bad)

    def _on_bad(self, job, reason):
        self.bad.append((job, reason))

    def scan(self):
        return dict(self.watch.scan())

    async def until(self, holds, patience=PATIENCE):
        """Wait until it holds; fail if it does not in time."""
        end = time.monotonic() + patience
        while not holds():
            assert time.monotonic() < end, f"dirty {self.dirty}, rescans {self.rescans}, problems {self.problems}, bad {self.bad}"
            await asyncio.sleep(0.005)

    async def next(self):
        """Return the jobs that have become dirty since, as a set, after a moment in which no more did."""
        await self.until(lambda: self.dirty)
        await asyncio.sleep(0.1)
        jobs = set(self.dirty)
        self.dirty.clear()
        return jobs

    async def nothing(self, seconds=0.2):
        await asyncio.sleep(seconds)
        assert not self.dirty


@pytest.fixture
def root(tmp_path):
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


@pytest.fixture
def run(root):
    """Return a function that runs a test's coroutine with a started watch, and stops that."""

    def runner(story, **options):
        async def whole():
            seen = Seen(root, **options)
            try:
                await asyncio.wait_for(story(seen), 60)
            finally:
                seen.watch.stop()
            assert not seen.errors

        asyncio.run(whole())

    return runner


def job(root, name, *files):
    place = root / name
    place.mkdir(parents=True, exist_ok=True)
    for file in files:
        (place / file).write_text("")
    return place


# --- the scan


def test_scan_yields_every_job_with_the_names_that_count(root):
    job(root, "ann/E1", "PENDING", "result", model.OPEN_FLAG, ".watchties.taken.CANCEL", ".rsync-tmp")
    job(root, "ann/E1/.watchties", "1")
    job(root, "bob/E 2;$(x) é", "DONE")
    job(root, "bob/empty")
    job(root, "bob/.hidden/x", "PENDING")
    job(root, ".watchties.lock.d/x", "PENDING")
    (root / "file").touch()
    (root / "bob/PENDING").touch()
    assert dict(MirrorWatch(root).scan()) == {
        "ann/E1": {"PENDING", model.OPEN_FLAG, model.RECORD_DIR, ".watchties.taken.CANCEL"},
        "bob/E 2;$(x) é": {"DONE"},
        "bob/empty": frozenset(),
    }
    assert list(MirrorWatch(root / "no such").scan()) == []


@pytest.mark.parametrize("pattern, jobs", [("*", ["Exp_1", "ann"]), ("Exp_*", ["Exp_1"]), ("*/Exp_*/*", ["ann/Exp_2/b"])])
def test_pattern_says_what_is_a_job(root, pattern, jobs):
    job(root, "Exp_1/a/b")
    job(root, "ann/Exp_2/b/c")
    assert sorted(name for name, _ in MirrorWatch(root, pattern).scan()) == jobs


def test_hostile_names_are_told_once_and_links_not_followed(root, run, tmp_path):
    outside = job(tmp_path, "outside/E9", "PENDING")
    (root / "link").symlink_to(outside.parent)
    job(root, "ann/fine", "PENDING")
    (root / "ann/link").symlink_to(outside)
    (root / "ann/note").symlink_to(outside / "PENDING")
    for where in root, root / "ann":
        (where / "itself").symlink_to("itself")
    for name in (b"-rf", b"new\nline", b"bad\xff", "sep\u2028x".encode()):
        os.makedirs(os.fsencode(root) + b"/ann/" + name)
    job(root, "ann/.cache")
    job(root, ".snapshots/E1")

    async def story(seen):
        for _ in range(2):
            assert list(seen.scan()) == ["ann/fine"]
        assert len(seen.bad) == 6 and sum("symbolic link" in reason for _, reason in seen.bad) == 2
        assert all(name.isprintable() and reason.isprintable() for name, reason in seen.bad)
        (root / "late").symlink_to(outside.parent)
        os.makedirs(os.fsencode(root) + b"/late\nname/E1")
        await seen.until(lambda: len(seen.bad) == 8)
        (outside / "CANCEL").touch()
        assert not seen.watch.watch_job("late/E9") and not seen.watch.watch_job("ann/nowhere")
        await seen.nothing()

    run(story)


# --- events


def test_every_way_of_making_or_touching_a_marker_is_noticed(root, run):
    place = job(root, "ann/E1")

    async def story(seen):
        seen.scan()
        for marker in (*model.MARKERS, ".watchties.taken.PENDING"):
            half = open(place / marker, "w")
            await seen.nothing(0.05)
            half.close()
            assert await seen.next() == {"ann/E1"}
            subprocess.run(["touch", str(place / marker)], check=True)
            assert await seen.next() == {"ann/E1"}
            os.utime(place / marker, ns=(1, 1))
            assert await seen.next() == {"ann/E1"}
            (place / "temporary").write_text("state=x")
            await seen.nothing(0.05)
            (place / "temporary").rename(place / marker)
            assert await seen.next() == {"ann/E1"}
            (place / marker).rename(place / "aside")
            assert await seen.next() == {"ann/E1"}
            (place / "aside").rename(place / marker)
            assert await seen.next() == {"ann/E1"}
            (place / marker).unlink()
            assert await seen.next() == {"ann/E1"}

    run(story)


def test_results_and_our_own_hidden_files_make_nothing_dirty_and_cost_little(root, run):
    place = job(root, "ann/E1/plots").parent

    async def story(seen):
        seen.scan()
        for name in (model.OPEN_FLAG, ".watchties.new.DONE", "plots/DONE", "plots/PENDING", "result"):
            (place / name).write_text("x")
        (place / model.RECORD_DIR).mkdir()
        (place / model.RECORD_DIR / "PENDING").touch()
        (place / "plots").rename(place / "pictures")
        place.chmod(0o750)
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import os\nfor n in range(3000):\n open(f'.r{n}.tmp', 'w').close(); os.chmod(f'.r{n}.tmp', 0o644); "
            "os.rename(f'.r{n}.tmp', f'r{n}')", cwd=place
        )
        before = time.process_time()
        await writer.wait()
        await seen.nothing()
        assert time.process_time() - before < 1 and not seen.rescans

    run(story)


def test_nothing_is_missed_when_directory_and_marker_come_at_once(root, run):
    async def story(seen):
        seen.scan()
        made = {f"user{number % 7}-{number // 50}/E{number}" for number in range(200)}
        for name in made:
            job(root, name, "a", "b", "PENDING")
            if hash(name) % 5 == 0:
                await asyncio.sleep(0)
        await seen.until(lambda: set(seen.dirty) == made)

    run(story)


def test_a_job_that_the_daemon_makes_is_watched_at_once(root, run):
    async def story(seen):
        place = job(root, "new/E1")
        assert seen.watch.watch_job("new/E1")
        (place / "PENDING").touch()
        assert await seen.next() == {"new/E1"}

    run(story)


def test_directories_that_move_are_known_under_their_new_name_only(root, run, tmp_path):
    job(tmp_path, "prepared/E1", "PENDING")

    async def story(seen):
        seen.scan()
        (tmp_path / "prepared").rename(root / "ann")
        assert await seen.next() == {"ann/E1"}
        (root / "ann").rename(root / "eve")
        assert await seen.next() == {"eve/E1"}
        (root / "eve/E1").rename(root / "eve/E2")
        assert "eve/E2" in await seen.next()  # eve/E1 too, unless its watch had its new name by then
        (root / "eve/E2/DONE").touch()
        assert await seen.next() == {"eve/E2"}
        (root / "eve/E2").rename(tmp_path / "job")
        assert await seen.next() == {"eve/E2"}
        (tmp_path / "job/DONE").write_text("x")
        await seen.nothing()
        job(root, "eve/E3", "PENDING")
        assert await seen.next() == {"eve/E3"}
        (root / "eve").rename(tmp_path / "user")
        await seen.until(lambda: len(seen.watch._paths) == 1)
        (tmp_path / "user/E3/DONE").touch()
        await seen.nothing()
        assert len(seen.watch._paths) == 1, "only the root is left to watch"

    run(story)


def test_watches_end_with_their_directories(root, run):
    async def story(seen):
        seen.scan()
        for number in range(20):
            job(root, f"ann/E{number}", "PENDING")
        await seen.until(lambda: len(seen.watch._paths) == 22)
        shutil.rmtree(root / "ann")
        await seen.until(lambda: len(seen.watch._paths) == 1)

    run(story)


def test_many_new_jobs_leave_the_loop_its_turns(root, run, tmp_path):
    for number in range(3000):
        job(tmp_path, f"prepared/E{number}", "PENDING")

    async def story(seen):
        seen.scan()
        (tmp_path / "prepared").rename(root / "ann")
        turns = 0
        while len(seen.dirty) < 3000:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 5 and len(set(seen.dirty)) == 3000

    run(story)


# --- events are hints


def test_events_that_were_lost_ask_for_a_scan(root, run):
    size = int(QUEUE.read_text())
    if size > 200000:
        pytest.skip(f"the queue of this machine is too long to fill ({size} events)")
    place = job(root, "ann/E1", "a", "b")

    async def story(seen):
        seen.scan()
        for _ in range(size):  # the loop has no turn meanwhile
            os.utime(place / "a")
            os.utime(place / "b")
        late = job(root, "bob/E2", "PENDING")
        await seen.until(lambda: seen.rescans)
        assert "lost" in seen.rescans[0] and seen.scan()["bob/E2"] == {"PENDING"}
        os.utime(late / "PENDING")
        assert await seen.next() == {"bob/E2"} and len(seen.rescans) == 1

    run(story)


@pytest.mark.parametrize("backend", ["inotify", "polling"])
def test_a_tree_that_goes_and_comes_back_is_scanned_again(root, run, tmp_path, backend):
    job(root, "ann/E1", "PENDING")

    async def story(seen):
        seen.scan()
        if backend == "polling":
            await seen.until(lambda: seen.rescans)
        for again in range(1, 3):
            seen.rescans.clear()
            root.rename(tmp_path / "away")
            await seen.until(lambda: len(seen.problems) == again)
            await asyncio.sleep(0.1)
            assert not seen.rescans, "a tree that is gone must not be scanned"
            assert str(root) in seen.problems[-1] and not seen.watch.there and seen.scan() == {}
            seen.rescans.clear()
            place = job(root, f"new/E{again}")
            await seen.until(lambda: seen.rescans and seen.watch.there)
            if backend == "polling":
                await seen.until(lambda: "has begun" in seen.rescans[-1])
            assert list(seen.scan()) == [f"new/E{again}"]
            seen.dirty.clear()
            (place / "PENDING").touch()
            assert await seen.next() == {f"new/E{again}"}
            shutil.rmtree(tmp_path / "away")

    run(story, backend=backend, interval=0.05, check=0.05)


def test_a_tree_that_goes_is_told_by_its_event(root, run, tmp_path):
    async def story(seen):
        seen.scan()
        root.rename(tmp_path / "away")
        await seen.until(lambda: seen.problems)
        assert not seen.rescans

    run(story, check=1000)


def test_a_tree_that_is_replaced_unseen_is_noticed(root, run, tmp_path):
    """Something mounted over the root makes no event; the look at the root finds it. Here a link stands for the mount."""
    job(tmp_path, "other/ann/E2", "PENDING")
    root.rmdir()
    root.symlink_to(tmp_path / "first")
    job(tmp_path, "first/ann/E1")

    async def story(seen):
        assert list(seen.scan()) == ["ann/E1"]
        root.unlink()
        root.symlink_to(tmp_path / "other")
        await seen.until(lambda: seen.rescans)
        assert list(seen.scan()) == ["ann/E2"]

    run(story, check=0.05)


def test_a_tree_that_is_not_there_yet_is_waited_for(root, run):
    root.rmdir()

    async def story(seen):
        assert len(seen.problems) == 1 and str(root) in seen.problems[0]
        job(root, "ann/E1", "PENDING")
        await seen.until(lambda: seen.rescans)
        assert seen.scan() == {"ann/E1": {"PENDING"}}

    run(story, check=0.05)


def test_after_stop_nothing_is_called(root):
    place = job(root, "ann/E1")

    async def story():
        seen = Seen(root, check=0.05)
        seen.scan()
        seen.watch.stop()
        (place / "PENDING").touch()
        shutil.rmtree(root)
        await seen.nothing()
        assert not seen.problems and not seen.rescans and not seen.errors

    asyncio.run(story())


# --- limits

LIMITED = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from test_watch import Seen, job
import pathlib
async def story():
    root = pathlib.Path({root!r})
    seen = Seen(root, interval=0.05)
    print(len(seen.scan()), len(seen.scan()), seen.watch.backend)
    {more}
    print(*seen.problems, sep="\\n")
    seen.watch.stop()
asyncio.run(story())
"""


def limited(root, setting, value, more):
    """Run a story in a user namespace with a limit of its own; return its lines, or skip."""
    prefix = ["unshare", "-U", "-r", "sh", "-c", f'echo {value} >/proc/sys/user/{setting} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip(f"this machine lets nobody make a user namespace with its own {setting} (unshare -U -r)")
    script = LIMITED.format(tests=str(pathlib.Path(__file__).parent), root=str(root), more=more)
    done = subprocess.run([*prefix, sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_watch_limit_is_told_once_with_its_sysctl_and_the_number_needed(root):
    for number in range(8):
        job(root, f"u{number}/E1", "PENDING")
    more = "job(root, 'u8/E1', 'PENDING'); assert await seen.next() == {'u8/E1'}  # the upper directories are watched first"
    first, *problems = limited(root, "max_inotify_watches", 11, more)
    assert first == "8 8 inotify" and len(problems) == 1
    assert "6 directories" in problems[0] and "fs.inotify.max_user_watches" in problems[0] and "needs 17" in problems[0]


def test_without_an_inotify_instance_the_tree_is_polled(root):
    job(root, "ann/E1", "PENDING")
    more = "await seen.until(lambda: seen.rescans); job(root, 'ann/E2', 'PENDING'); assert await seen.next() == {'ann/E2'}"
    first, *problems = limited(root, "max_inotify_instances", 0, more)
    assert first == "1 1 polling" and len(problems) == 1 and "fs.inotify.max_user_instances" in problems[0]


# --- polling


def test_polling_notices_markers_of_jobs_and_nothing_else(root, run, tmp_path):
    place = job(root, "ann/E1/plots").parent
    outside = job(tmp_path, "outside/E9")
    (root / "link").symlink_to(outside.parent)

    async def story(seen):
        assert seen.watch.backend == "polling"
        await seen.until(lambda: seen.rescans)
        for name in ("ann/E1/result", "ann/E1/plots/PENDING", "ann/PENDING", "link/E9/PENDING", "ann/E1/.watchties.open"):
            (root / name).write_text("x")
        await seen.nothing()
        for marker in (*model.MARKERS, ".watchties.taken.PENDING"):
            (place / marker).touch()
            assert await seen.next() == {"ann/E1"}
            os.utime(place / marker, ns=(1, 1700000000000000001))
            assert await seen.next() == {"ann/E1"}
            os.utime(place / marker, ns=(1, 1700000000000000002))
            assert await seen.next() == {"ann/E1"}
            (place / marker).unlink()
            assert await seen.next() == {"ann/E1"}
        job(root, "ann/CANCEL")
        job(root, "DONE")
        await seen.nothing()
        job(root, "new/E2", "PENDING")
        assert await seen.next() == {"new/E2"}
        (root / "new").rename(root / "newer")
        assert await seen.next() == {"new/E2", "newer/E2"}

    run(story, backend="polling", interval=0.05)


def test_polling_ends_its_threads(root, run):
    async def story(seen):
        await seen.until(lambda: seen.rescans)
        seen.watch.stop()
        assert not seen.problems

    import threading

    before = threading.active_count()
    run(story, backend="polling", interval=30)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "kind, backend",
    [("ext4", "inotify"), ("xfs", "inotify"), ("tmpfs", "inotify"), ("fuseblk", "inotify"), ("", "inotify")]
    + [(kind, "polling") for kind in "nfs nfs4 cifs fuse.sshfs lustre beegfs gpfs ceph 9p fuse.anything".split()],
)
def test_backend_goes_by_the_file_system(kind, backend):
    assert mounts.backend_for(kind) == backend


def test_file_system_is_that_of_the_nearest_mount_and_the_last_one_there(root, tmp_path):
    (root / "with space").mkdir()
    lines = ["/ / rw - ext4 x rw", f"/ {root} rw shared:1 - nfs4 h:/x rw", f"/ {root}/with\\040space rw - xfs x rw"]
    lines += [f"/ {root}/with\\040space rw - fuse.sshfs x rw", f"/ {root}wider rw - tmpfs x rw"]
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"{n} 1 0:1 {line}\n" for n, line in enumerate(lines)))
    kinds = {mounts.file_system(path, table) for path in (root, root / "ann")}, mounts.file_system(root / "with space/x", table)
    assert kinds == ({"nfs4"}, "fuse.sshfs") and mounts.file_system(tmp_path, table) == "ext4"
    assert mounts.file_system(tmp_path / "mirrors", table) == "ext4"
    assert mounts.file_system("/proc") == "proc" and mounts.file_system("/", tmp_path / "none") == ""


def test_it_imports_nothing_of_the_hooks_and_watchdog_only_to_poll():
    code = "import sys, watchties.watch; print([m for m in ('sh', 'tenacity', 'watchdog', 'watchties.hookkit') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
