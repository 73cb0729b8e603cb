"""What a job may leave, or bring: huge, deep, many, odd; links laid by one attempt for the next; a compute host that lies."""

import getpass
import os
import stat
import time

import pytest
from helpers import make_site, put
from hostile_kit import SECRET, Outside, clean_words
from site_kit import Site
from trouble_kit import quick, waits_for
from watchties import batches, rsyncsays, transfer
from watchties.hookkit import Job

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices and set-uid files are made by root only")
GOOD = [f"good/E{n}" for n in range(5)]
MAKES = r"""echo run >>runs.log
python3 - <<'END'
import os, socket
def inside(depth, word, last):
    here = os.open(".", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(word); os.chdir(word)
    with open(last, "w") as file: file.write("deep\n")
    os.fchdir(here)
def leave():
    with open("sparse", "wb") as file: file.truncate(SIZE)
    os.mkdir("many")
    for n in range(COUNT): os.close(os.open("many/%06d" % n, os.O_CREAT | os.O_WRONLY))
    inside(200, "d", "file")
    for name in "new\nline", "-e", "$(touch canary)", "`touch canary`", "esc\x1b[2J", "\udcff\udcfe", "a\rb", "{}", "%s", "--delete", "tab\t", " ":
        with open(name, "w") as file: file.write("odd\n")
    os.mkfifo("pipe"); os.mknod("null", 0o666 | 0o020000, os.makedev(1, 3)); os.mknod("disk", 0o600 | 0o060000, os.makedev(7, 0))
    socket.socket(socket.AF_UNIX).bind("socket")
    for name, mode in ("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1777):
        with open(name, "w") as file: file.write("#!/bin/sh\ntouch canary\n")
        os.chmod(name, mode)
leave()
END
"""
ODD = [
    b"new\nline",
    b"-e",
    b"$(touch canary)",
    b"`touch canary`",
    b"esc\x1b[2J",
    b"\xff\xfe",
    b"a\rb",
    b"{}",
    b"%s",
    b"--delete",
    b"tab\t",
    b" ",
]


def makes(size, count):
    return MAKES.replace("SIZE", str(size)).replace("COUNT", str(count))


def is_whole(job, size, count):
    """Say what is wrong with a copy of what MAKES leaves."""
    wrong, found = [], (job / "sparse").stat()
    wrong += (
        [f"sparse: {found.st_size} bytes in {found.st_blocks} blocks"]
        if found.st_size != size or found.st_blocks * 512 > size // 50
        else []
    )
    wrong += [f"many: {n}"] if (n := len(os.listdir(job / "many"))) != count else []
    wrong += ["deep"] if (job / "/".join(["d"] * 200) / "file").read_text() != "deep\n" else []
    wrong += [repr(name) for name in ODD if not os.path.exists(os.path.join(os.fsencode(job), name))]
    for path in job.iterdir():
        mode = path.lstat().st_mode
        wrong += (
            [f"{path.name} is {stat.filemode(mode)}"] if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or mode & 0o6000 else []
        )
    return wrong


def good_ones(site, times=1):
    for job in GOOD:
        site.wait_state(job, "DONE", 600)
        assert site.runs(job) == times


def test_huge_deep_many_and_odd_as_results_and_as_inputs(tmp_path, long, figure):
    size, count = (5 << 30, 100_000) if long else (512 << 20, 5_000)
    outside = Outside(tmp_path)
    with Site(tmp_path) as site:
        site.wait_ready()
        site.drop("ann/results", makes(size, count))
        where = site.web / "ann/inputs"
        where.mkdir(parents=True)
        put(where / "command", makes(size, count))
        done = os.system(f"cd '{where}' && sh ./command && rm -f runs.log")
        assert done == 0
        put(where / "command", "echo run >>runs.log; ls >listing\n")
        site.touch("ann/inputs")
        site.drop(
            "ann/too-deep", "echo run >>runs.log\nfor n in $(seq 200); do mkdir " + "d" * 60 + "; cd " + "d" * 60 + "; done\n"
        )
        for job in GOOD:
            site.drop(job)
        good_ones(site)
        for job in "ann/results", "ann/inputs":
            site.wait_state(job, "DONE", 900)
            assert site.runs(job) == 1
        trees = {"ann/results": (site.mirror, site.web), "ann/inputs": (site.mirror, site.compute)}
        assert not {
            f"{tree / job}": wrong
            for job, places in trees.items()
            for tree in places
            if (wrong := is_whole(tree / job, size, count))
        }
        waits_for(
            site,
            "ann/too-deep",
            "ann/too-deep",
            "FAILED" if site.marker("ann/too-deep")[0] == "FAILED" else "too long",
            seconds=120,
        )
        assert not outside.escapes(site.web, site.mirror, site.mail) and not [
            text for text in clean_words(site) if "ann/too-deep" not in text
        ]
    figure(f"a sparse file of {size >> 20} MB (sparse everywhere), {count} files, 200 directories deep, {len(ODD)} odd names, as results and as inputs: whole; "
           "devices, pipes, sockets and set-uid stay behind")  # fmt: skip


# ---- links that one attempt lays for the next ----

LAYS = """echo run >>runs.log
n=$(wc -l <runs.log)
[ "$n" = 2 ] || for d in a a/b a/b/c; do mkdir -p $d; ln -s {outside} $d/.watchties.partial; ln -s {outside} $d/plots; done
[ "$n" = 2 ] || { ln -s {outside}/e1 results; ln -s ../../../../outside/e1 other; ln -s {outside}/secret secret.txt; ln -s {outside} remote_ties_run.extra; }
mine() { mkdir -p "$1"; for f in id secret record.json x in.txt out.txt; do echo mine >"$1/$f"; done; }
[ "$n" = 1 ] || for d in a a/b a/b/c; do rm -f $d/plots; mine $d; mine $d/plots; done
[ "$n" = 1 ] || { rm -f results other secret.txt; mine results; mine other; echo mine >secret.txt; }
"""


def test_links_that_one_attempt_lays_are_not_written_through_by_the_next(tmp_path, long, figure):
    outside, jobs = Outside(tmp_path), [f"eve/E{n}" for n in range(20 if long else 4)]
    with Site(tmp_path) as site:
        site.wait_ready()
        for job in jobs:
            site.drop(job, LAYS.replace("{outside}", str(outside.dir)))
        for job in jobs:
            site.wait_state(job, "DONE", 240)
        assert not [path for job in jobs for path in (site.mirror / job).rglob("*") if path.is_symlink()]
        for job in jobs:
            site.touch(job)
        for job in jobs:
            site.wait(lambda: site.marker(job)[1].get("attempt") == "2" and site.marker(job)[0] == "DONE", 240, f"{job} again")  # noqa: B023
            assert site.runs(job) == 2 and (site.web / job / "a/plots/id").read_text() == "mine\n"
        assert not outside.escapes(site.web, site.mirror, site.mail) and not clean_words(site)
    figure(f"{len(jobs)} jobs that lay links for their next attempt to be fetched through: 0 escapes")


# ---- a compute host that lies ----

LIES = ["code=abc\nwhole=yes\n", "code=0\nfiles=99999999999999999999999\nbytes=nan\nwhole=yes\n", "state=DONE\ncode=\nwhole=yes\n", "", "\0" * 5000,
        "code=0\nbegan=$(touch canary)\nended=\x1b[2J\nseconds=`touch canary`\nsignal=-9\nwhole=yes\n", "code=1\nreason=<script>\nwhole=yes\n",
        "code=0\nspare=/etc/passwd\ncpu_server=evil\nid=$(touch canary)\nwhole=yes\n", "code=0\n" + "x=y\n" * 500 + "whole=yes\n"]  # fmt: skip
LIAR = """echo run >>runs.log
a=$(echo .watchties/1.*)
(exec setsid sh -c 'while [ ! -e DONE ] && [ ! -e FAILED ]; do sleep 0.05; done; rm -f "$0"/exit; cp lie "$0"/exit' "$a") </dev/null >/dev/null 2>&1 &
rm -f "$a"/reply; cp lie "$a"/reply
"""


def test_an_attempt_s_files_that_lie_harm_only_their_own_job(tmp_path, figure):
    outside, jobs = Outside(tmp_path), {f"eve/E{n}": lie for n, lie in enumerate(LIES)}
    with Site(tmp_path, daemon='grace = "1s"\nreconcile = "2s"', edit=quick("fetch", "poll", "submit")) as site:
        site.wait_ready()
        for job, lie in jobs.items():
            site.drop(job, LIAR, lie=lie)
        for job in GOOD:
            site.drop(job, "sleep 1\necho run >>runs.log\n")
        good_ones(site)
        site.wait(lambda: all(site.runs(job) == 1 for job in jobs), 120, "the liars run")
        end = time.monotonic() + 10
        while time.monotonic() < end and not all(site.marker(job)[0] in ("DONE", "FAILED") for job in jobs):
            time.sleep(0.2)
        for job in GOOD:
            site.touch(job)
        site.wait(lambda: all(site.runs(job) == 2 and site.marker(job)[0] == "DONE" for job in GOOD), 240, "good ones again")
        assert all(site.runs(job) == 1 for job in jobs) and site.process.poll() is None
        assert not outside.escapes(site.web, site.mirror, site.mail) and not clean_words(site)
        ended = sum(site.marker(job)[0] in ("DONE", "FAILED") for job in jobs)
    figure(
        f"{len(LIES)} attempts whose own files lie: {ended} ended, {len(LIES) - ended} wait; {len(GOOD)} good ones beside them DONE twice, none ran twice unasked"
    )


LYING_RSYNC = """#!/bin/sh
case "$*" in
*--server*--sender*) shift 2; exec {rsync} --server --sender --filter='+ .watchties*' --filter='+ .watchties.partial' --filter='+ /*/*/DONE' "$@" ;;
esac
exec {rsync} "$@"
"""


def test_an_rsync_that_sends_what_was_not_asked_for_writes_no_record(tmp_path, monkeypatch, figure):
    """The far half of rsync belongs to the far host. Ours refuses what it has excluded (rsync 3.2.5 and newer)."""
    site = make_site(tmp_path)
    outside = Outside(tmp_path)
    real = next(
        os.path.join(path, "rsync")
        for path in os.environ["PATH"].split(os.pathsep)
        if os.access(os.path.join(path, "rsync"), os.X_OK)
    )
    put(tmp_path / "bin/rsync", LYING_RSYNC.replace("{rsync}", real)).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    site.config["host"]["b01"]["become"] = getpass.getuser()
    route = transfer.Route.of(site.config, "ties", "b01")
    job = Job("ties", "ann/e1", str(site.mirror / "ann/e1"))
    refused = 0
    for name in ".watchties/record.json", "DONE", ".watchties.open", "plots/.watchties.partial":
        put(site.mirror / "ann/e1/.watchties/record.json", "ours")
        path = site.compute / "ann/e1" / name
        if name.endswith(".partial"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(outside.dir)
        else:
            put(path, SECRET)
        refused += isinstance(carried(route, job), Exception)
        assert (site.mirror / "ann/e1/.watchties/record.json").read_text() == "ours"
        assert name.endswith(".json") or not os.path.lexists(site.mirror / "ann/e1" / name)
        os.unlink(path)
    assert refused == 4 and not outside.escapes(site.mirror)
    figure(f"{refused} things that were sent unasked: all refused")


def carried(route, job):
    try:
        return batches.carry(route, {job: [job.job]}, inward=True)[job]
    except rsyncsays.RsyncFailed as error:
        return error
