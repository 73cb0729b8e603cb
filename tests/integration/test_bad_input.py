"""Bad input with the real daemon: what strangers put into the trees never leaves them, and a reason is given, once."""

import os
import sqlite3
import stat
import time

import pytest
from helpers import put
from site_kit import COMMAND, Site

HOLD = "echo run >> runs.log; for _ in $(seq 2000); do [ -e go ] && break; sleep 0.05; done\n"


@pytest.fixture
def site(tmp_path):
    with Site(tmp_path) as site:
        yield site


def refused(site):
    """Return name -> reason of what the journal says was refused."""
    with sqlite3.connect(f"file:{site.state}/journal.sqlite?mode=ro", uri=True) as db:
        found = dict(db.execute("SELECT name, reason FROM refused"))
    db.close()
    return found


def times_said(site, text):
    return sum(text in line for line in (site.base / "daemon.out").read_text(errors="replace").splitlines())


def end(site, job, state="DONE"):
    fields = site.wait_state(job, state, 30)
    site.wait(site.quiet, 20, "quiet")
    return fields


# ---- names ----

BAD_PARTS = [b"new\nline", b"-rf", b"tab\there", b"esc\x1b[31m", b"\xff\xfe", b"nel\xc2\x85", b"--delete", b"cr\r"]


def test_names_that_no_job_may_have_are_refused_once_and_go_nowhere(tmp_path):
    site = Site(tmp_path)
    for tree in site.web, site.mirror:
        for part in BAD_PARTS:
            for job in b"ann/" + part, part + b"/e1":
                where = os.path.join(os.fsencode(tree), job)
                os.makedirs(where)
                put(os.path.join(os.fsdecode(where), "command"), "touch pwned")
                put(os.path.join(os.fsdecode(where), "PENDING"))
    put(site.web / "ann/.hidden/PENDING")
    put(site.web / "PENDING")
    put(site.web / "ann/PENDING")
    with site:
        site.drop("ann/good")
        end(site, "ann/good")
        assert sorted(os.listdir(os.fsencode(site.compute))) == [b".watchties.lock", b".watchties.tree", b"ann"]
        assert os.listdir(site.compute / "ann") == ["good"]
        assert not list(tmp_path.rglob("pwned")) and not (site.mirror / "ann/.hidden").exists()
        reasons = refused(site)
        assert len(reasons) >= len(BAD_PARTS), reasons
        assert all(name.isprintable() for name in reasons)
        for name in "ann/-rf", "--delete":
            assert any(name in known for known in reasons), reasons
        site.stop()
        said = times_said(site, "refused:")
        assert said == len(reasons)
    with site:  # started again, it says nothing again
        site.drop("ann/good2")
        end(site, "ann/good2")
        assert times_said(site, "refused:") == said


LIAR = r"""#!/usr/bin/env python3
import sys
out = sys.stdout.buffer
nonce = sys.argv[sys.argv.index("--nonce") + 1]
out.write(b"Welcome!\nmain\tPENDING\tann/banner\t1\n#relay " + nonce.encode() + b" 1\n")
for job in (
    b"../../etc", b"..", b"ann/..", b"ann/../bob", b"/etc/cron.d", b"ann//e", b"ann/e1/sub", b"ann", b"", b"-rf/x", b"ann/-rf", b".ssh/x",
    b"ann/.watchties", b"ann/" + b"x" * 300, b"ann/\xff", b"ann/\x1b[2J", "ann/\u2028".encode(), b"ann/a\rb",
):
    out.write(b"main\tPENDING\t" + job + b"\t17\n")
for line in (
    b"other\tPENDING\tann/e1\t1", b"main\tEVIL\tann/e1\t1", b"main\tDONE\tann/e1\t1\ttoken", b"main\tPENDING\tann/e1",
    b"main\tPENDING\tann/e1\tx", b"main\tPENDING\tann/e1\t-5", b"main\tPENDING\tann/e1\t1e9", b"main\tPENDING\tann/e1\t" + b"9" * 5000,
    b"\0\0\0", b"#bad", b"#error", b"#", b"#listed", b"#beat \xff", b"main\tPENDING\t$(touch pwned)/`touch pwned`\t5",
):
    out.write(line + b"\n")
out.flush()
for line in sys.stdin:
    pass
"""


def test_what_a_relay_says_is_taken_as_any_stranger_s_input(tmp_path):
    site = Site(tmp_path)
    put(site.web.parent / "scripts/relay.py", LIAR)
    site.drop("bob/true")
    with site:
        site.wait(lambda: len(refused(site)) >= 20 if (site.state / "journal.sqlite").exists() else 0, 20, "all is refused")
        time.sleep(1)
        reasons = refused(site)
        deep = "directories deep"
        for name, reason in {"../../etc": deep, "ann/..": "..", "ann/e1/sub": deep, "-rf/x": "-", "ann/.watchties": "hidden"}.items():
            assert reason in reasons[name], reasons
        assert not any("banner" in name for name in reasons)
        assert not list(tmp_path.rglob("pwned")) and not (tmp_path / "etc/cron.d").exists()
        assert {path.name for path in site.mirror.iterdir()} <= {"$(touch pwned)", "ann", ".watchties.coming", ".watchties.tree"}
        assert not (site.mirror / "ann").exists() or {p.name for p in (site.mirror / "ann").iterdir()} == {"e1"}


# ---- links, and what is no file ----


def test_links_for_job_and_user_directories_are_followed_nowhere(site, tmp_path):
    outside = tmp_path / "outside"
    for tree in site.web, site.mirror:
        there = outside / tree.parent.name / "e1"
        put(there / "command", "touch pwned")
        put(there / "PENDING")
        put(tree / "ann/real/in.txt", "x")
        (tree / "ann/link").symlink_to(there)
        (tree / "eve").symlink_to(there.parent)
    for job in "ann/crossed", "mallory/e1":  # a job on the web host, a link in the mirror
        (outside / job).mkdir(parents=True)
    (site.mirror / "ann/crossed").symlink_to(outside / "ann/crossed")
    (site.mirror / "mallory").symlink_to(outside / "mallory")
    before = sorted(str(path) for path in outside.rglob("*"))
    site.drop("ann/crossed")
    site.drop("mallory/e1")
    site.drop("ann/good")
    site.wait_state("ann/good", "DONE")
    names = lambda: {name.removeprefix("main ").partition(":")[0] for name in refused(site)}  # noqa: E731
    site.wait(lambda: names() >= {"ann/link", "eve", "ann/crossed", "mallory/e1"}, 10, f"refused: {names()}")
    assert sorted(str(path) for path in outside.rglob("*")) == before
    assert os.listdir(site.compute) and not (site.compute / "eve").exists() and not (site.compute / "mallory").exists()
    assert sorted(os.listdir(site.compute / "ann")) == ["good"]


LEAVES = r"""
echo run >> runs.log
mkdir -p plots/deep; echo kept > plots/kept
ln -s /etc/passwd absolute; ln -s ../../nowhere plots/deep/one; ln -s ../../../bob/secret plots/deep/two; ln -s .. plots/up
ln -s up/../../bob plots/by-way; ln -s .. parent; ln -s ../kept plots/deep/inside; ln -s . self
mkfifo fifo; mknod null c 1 3
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
cp /bin/true setuid; chmod 6755 setuid; mkdir sticky; chmod 2777 sticky
"""


def test_links_that_lead_outside_and_what_is_no_file_stay_behind(site):
    put(site.web / "bob/secret", "secret")
    put(site.mirror / "bob/secret", "secret")
    (site.web / "ann/e1").mkdir(parents=True)
    (site.web / "ann/e1/passwd").symlink_to("/etc/passwd")
    (site.web / "ann/e1/neighbour").symlink_to("../../bob/secret")
    os.mkfifo(site.web / "ann/e1/pipe")
    put(site.web / "ann/e1/tool", "#!/bin/sh\n").chmod(0o6755)
    site.drop("ann/e1", command=LEAVES)
    end(site, "ann/e1")
    assert not (site.compute / "ann/e1/pipe").exists() and not (site.compute / "ann/e1/tool").stat().st_mode & 0o6000
    for tree in site.web, site.mirror:
        job = tree / "ann/e1"
        links = {str(p.relative_to(job)): os.readlink(p) for p in job.rglob("*") if p.is_symlink()}
        inputs = {"passwd": "/etc/passwd", "neighbour": "../../bob/secret"} if tree == site.web else {}
        assert links == {"plots/deep/inside": "../kept", "plots/deep/one": "../../nowhere", "plots/up": "..", "self": "."} | inputs
        kinds = {stat.S_IFMT(p.lstat().st_mode) for p in job.rglob("*") if p.name != "pipe"}
        assert kinds <= {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}
        assert not (job / "setuid").stat().st_mode & 0o6000 and (job / "setuid").stat().st_mode & 0o111
    log = (site.state / "log/fetch.log").read_text()
    for name in "absolute", "parent", "plots/deep/two", "plots/by-way":
        assert f"{name} left behind" in log
    pulled = (site.state / "log/pull.log").read_text()
    assert "passwd left behind" in pulled and "neighbour left behind" in pulled


def test_a_job_inside_another_job_is_data(site):
    site.drop("ann/e1", files={"sub/PENDING": "", "sub/command": "echo run >> runs.log\n", "sub/DONE": "mine"})
    end(site, "ann/e1")
    assert (site.compute / "ann/e1/sub/DONE").read_text() == "mine" and (site.compute / "ann/e1/sub/PENDING").exists()
    assert not (site.compute / "ann/e1/sub/runs.log").exists() and not (site.mirror / "ann/e1/sub/.watchties").exists()


# ---- jobs that cannot be carried ----


def test_a_job_that_cannot_be_carried_is_rejected_with_the_reason_everywhere(tmp_path):
    with Site(tmp_path, tree='[tree.main.limits]\nsize = "50kB"\nfiles = 10') as site:
        site.drop("ann/nothing", command=None)
        site.drop("ann/nowhere", CPU_SERVER="el gato\n")
        site.drop("ann/large", files={"data.csv": "x" * 60_000})
        site.drop("ann/many", files={f"f{n}": "" for n in range(20)})
        put(site.web / "ann/folder/command/x")
        site.drop("ann/folder", command=None)
        site.drop("ann/fine", CPU_SERVER=" b01 \n")
        why = {"nothing": "no file command", "nowhere": "CPU_SERVER names el, which is no compute host of this tree: there are b01",
               "large": "more than the limit of 50000", "many": "more than the limit of 10", "folder": "command is not a file"}  # fmt: skip
        for name, words in why.items():
            fields = site.wait_state(f"ann/{name}", "FAILED", 20)
            assert fields["cause"] == "rejected" and words in fields["reason"]
            assert not (site.web / f"ann/{name}/PENDING").exists()
        site.wait_state("ann/fine", "DONE")
        site.wait(site.quiet, 20, "quiet")
        for name, words in why.items():
            letter = site.letter(f"ann/{name}")
            assert "rejected" in letter["Subject"] and words in letter.get_body(("plain",)).get_content()
        assert os.listdir(site.compute / "ann") == ["fine"]
        put(site.web / "ann/nothing/command", COMMAND)
        site.touch("ann/nothing")
        end(site, "ann/nothing")
        assert site.runs("ann/nothing") == 1


# ---- markers ----


def test_junk_and_directories_and_two_markers_at_once_do_not_confuse(site):
    noise = os.urandom(100_000)
    site.drop("ann/noise", files={"DONE": noise, "FAILED": "state=FAILED\ntoken=x\n", "SUBMITTED/x": "", "remote_ties_run.res": "old"})
    put(site.mirror / "ann/noise/DONE", noise)
    put(site.mirror / "ann/noise/FAILED/x")
    put(site.mirror / "ann/noise/SUBMITTED", "attempt=99\ntoken=t\n")
    end(site, "ann/noise")
    for tree in site.web, site.mirror:
        names = {p.name for p in (tree / "ann/noise").iterdir() if p.name in ("PENDING", "SUBMITTED", "DONE", "FAILED", "CANCEL")}
        assert names == {"DONE"}
    assert site.runs("ann/noise") == 1
    put(site.mirror / "ann/noise/FAILED", "state=FAILED\n")  # somebody makes a second one stand
    site.wait(lambda: not (site.mirror / "ann/noise/FAILED").exists(), 10, "what the record says stands alone again")
    assert site.marker("ann/noise")[0] == "DONE" and site.runs("ann/noise") == 1


def test_requests_that_are_no_files_wait_and_hang_nobody(site, tmp_path):
    put(site.web / "ann/dir/PENDING/x")
    put(site.mirror / "ann/dir/CANCEL/x")
    (site.web / "ann/link").mkdir()
    (site.web / "ann/link/PENDING").symlink_to("/etc/passwd")
    for tree in site.web, site.mirror:
        (tree / "ann/fifo").mkdir()
        os.mkfifo(tree / "ann/fifo/PENDING")
        os.mkfifo(tree / "ann/fifo/CANCEL")
        os.mkfifo(tree / "ann/fifo/DONE")
    site.drop("ann/good")
    end(site, "ann/good")
    assert os.listdir(site.compute / "ann") == ["good"]


def test_a_marker_that_vanishes_or_a_job_that_does_is_forgotten_without_a_fuss(site):
    for n in range(10):
        put(site.web / f"ann/e{n}/command", "echo run >> runs.log\n")
        put(site.mirror / f"bob/e{n}/command", "echo run >> runs.log\n")
        for where in site.web / f"ann/e{n}", site.mirror / f"bob/e{n}":
            (where / "PENDING").touch()
            time.sleep(0.004 * n)
            (where / "PENDING").unlink(missing_ok=True)
    put(site.web / "eve/gone/command", COMMAND)
    site.touch("eve/gone")
    for path in (site.web / "eve/gone").iterdir():
        path.unlink()
    (site.web / "eve/gone").rmdir()
    site.drop("ann/good")
    site.wait_state("ann/good", "DONE")
    site.wait(site.quiet, 20, "quiet")
    for user, tree in ("ann", site.web), ("bob", site.mirror):
        for n in range(10):
            state = site.marker(f"{user}/e{n}", tree)[0]
            assert (state, site.runs(f"{user}/e{n}")) in (("", 0), ("DONE", 1))
    assert site.marker("eve/gone", site.mirror)[0] in ("", "DONE", "FAILED")


def test_a_stranger_s_done_on_the_compute_host_ends_nothing(tmp_path):
    with Site(tmp_path, edit=lambda text: text.replace('name = "fetch"', 'name = "fetch"\nretry = { first = "1s" }')) as site:
        site.drop("ann/e1", command=HOLD)
        token = site.wait_state("ann/e1", "SUBMITTED")["token"]
        site.wait(lambda: site.runs("ann/e1") == 1, 10, "it runs")
        put(site.compute / "ann/e1/DONE", "state=DONE\nattempt=1\ntoken=0123456789ab\nexit=0\n")
        put(site.compute / "ann/e1/FAILED", f"state=FAILED\nattempt=1\ntoken={token}\nexit=1\n")  # its own token, but no exit file
        time.sleep(1.5)
        assert site.marker("ann/e1")[0] == "SUBMITTED"
        put(site.compute / "ann/e1/go")
        end(site, "ann/e1")


# ---- who may write the configuration ----


@pytest.mark.parametrize("name", ["conf.d", "hooks", "conf.d/10-site.toml", "hooks/own"])
def test_a_configuration_that_others_may_write_is_refused_with_the_chmod_to_run(tmp_path, name):
    site = Site(tmp_path, hooks={"own": "true\n"})
    path = site.conf.parent / name
    path.chmod(path.stat().st_mode | 0o022)
    done = site.watchties("run", check=False)
    assert done.returncode == 2 and "chmod" in done.stderr and str(path) in done.stderr and "Traceback" not in done.stderr
    command = next(line.partition("run: ")[2] for line in done.stderr.splitlines() if "run: chmod" in line)
    assert os.system(command) == 0
    with site:
        site.wait_ready()
