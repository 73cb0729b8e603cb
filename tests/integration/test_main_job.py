"""The main job with the real daemon: from PENDING on the web host to results, DONE and mail, whatever things are called."""

import email
import email.policy
import os
import stat

import pytest
from aiosmtpd.controller import Controller
from helpers import free_port
from site_kit import Site

from watchties.model import MARKERS

NAMES = [
    "ann b/Exp 1", "ann b/ two  blanks ", "o'neil/it's \"quoted\"", "$(touch pwned)/`touch pwned`", "a;touch pwned/b|c&d>e<f",
    "Jürgen/Größe ±½", "ju\u0308rgen/gro\u0308\u00dfe", "李雷/实验 一", "😀/👩‍🔬", "#x/#y", "~root/~", "{a,b}/*", "*/?[a-z]",
    "back\\slash/\\n\\t\\",
    "a:b/c::d", "user@host/%41%s%n", "=x/!!", "DONE/PENDING", "x" * 64 + "/" + "ü" * 127, "${HOME}/$1",
]  # fmt: skip

# What a job leaves: odd names, directories in directories, empty ones, links that stay inside, markers' names below the top.
RESULTS = r"""#!/usr/bin/env python3
import os, sys
with open("runs.log", "a") as log:
    log.write("run\n")
for name in os.listdir("in put"):
    data = open(os.path.join("in put", name), "rb").read()
    open("out of " + name, "wb").write(data[::-1])
os.makedirs("plots/deep/er/empty")
os.makedirs("empty")
odd = "DONE", "PENDING", ".watchties", "#hash", "-dash", "new\nline", "*", "a:b", "$(touch pwned)", "tab\t", ".hidden", b"\xff\xfe", "Öl"
for name in odd:
    open(os.path.join(b"plots/deep", name.encode() if isinstance(name, str) else name), "wb").write(os.urandom(3000))
open("plots/big", "wb").write(os.urandom(3_000_000))
open("plots/nothing", "wb").close()
open("tool", "w").write("#!/bin/sh\n")
os.chmod("tool", 0o755)
os.symlink("../big", "plots/deep/link to big")
os.symlink("deep/er", "plots/link to directory")
os.symlink("not there", "dangling")
print("said on standard output")
print("said on standard error", file=sys.stderr)
"""


def contents(directory):
    """Return path (bytes) -> (kind, content) of all that is not ours below a job's directory."""
    found = {}
    for where, folders, files in os.walk(os.fsencode(directory)):
        inside = os.path.relpath(where, os.fsencode(directory))
        for name in folders + files:
            top = inside == b"."
            path = os.path.normpath(os.path.join(inside, name))
            if not (top and (name.startswith(b".watchties") or os.fsdecode(name) in MARKERS)):
                found[path] = _content(os.path.join(where, name))
        folders[:] = [name for name in folders if not (inside == b"." and name.startswith(b".watchties"))]
    return found


def _content(path):
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return "link", os.readlink(path)
    if stat.S_ISDIR(info.st_mode):
        return "directory", b""
    with open(path, "rb") as file:
        return "program" if info.st_mode & 0o100 else "file", file.read()


def test_twenty_jobs_of_any_name_run_once_and_come_back_byte_for_byte(tmp_path):
    inputs = {"in put/$(touch pwned)": b"\0\1\n" * 100, "in put/Öl; rm": b"x", 'in put/"': b"", "in put/#": b"#"}
    with Site(tmp_path) as site:
        for job in NAMES:
            site.drop(job, command=RESULTS, files=inputs)
            (site.web / job / "command").chmod(0o755)
        for job in NAMES:
            site.wait_state(job, "DONE")
        site.wait(site.quiet, 30, "quiet")
        for job in NAMES:
            assert site.runs(job) == 1
            there = contents(site.compute / job)
            assert len(there) == 38 and there[b"plots/link to directory"] == ("link", b"deep/er") and there[b"empty"] == ("directory", b"")
            assert contents(site.web / job) == there
            assert contents(site.mirror / job) == there
            assert (site.web / job / "out of Öl; rm").read_bytes() == b"x"
            assert (site.web / job / "remote_ties_run.res").read_text() == "said on standard output\n"
            assert (site.web / job / "remote_ties_run.err").read_text() == "said on standard error\n"
            assert site.letter(job)["Subject"].startswith("DONE: ")
        assert len(site.letters()) == len(NAMES)
        assert not list(tmp_path.rglob("pwned"))


def test_markers_tell_the_way_and_nothing_hidden_reaches_the_web_host(tmp_path):
    with Site(tmp_path) as site:
        site.drop("ann/e1", command="echo run >> runs.log; for _ in $(seq 2000); do [ -e go ] && break; sleep 0.05; done\n")
        fields = site.wait_state("ann/e1", "SUBMITTED")
        assert fields["host"] == "b01" and fields["attempt"] == "1" and int(fields["id"]) > 1
        assert not (site.web / "ann/e1/PENDING").exists()
        (site.compute / "ann/e1/go").touch()
        done = site.wait_state("ann/e1", "DONE")
        assert done["token"] == fields["token"] and done["exit"] == "0" and done["ended"] and float(done["seconds"]) > 0
        assert not (site.web / "ann/e1/SUBMITTED").exists()
        site.wait(site.quiet, 10, "quiet")
        state, shown = site.marker("ann/e1", site.mirror)
        assert state == "DONE" and shown.items() <= done.items()
        assert [p.name for p in (site.web / "ann/e1").iterdir() if p.name.startswith(".")] == []


def test_a_command_that_may_be_executed_is_and_finds_the_group_s_programs(tmp_path):
    with Site(tmp_path) as site:
        tool = site.compute.parent / "bin/fit-ties"
        tool.write_text("#!/bin/sh\necho fitted in $COMPTIES_HOME\n")
        tool.chmod(0o755)
        site.drop("ann/plain", command="fit-ties\npwd\n")
        ours = "#!/usr/bin/env python3\nimport os; print(sorted(key for key in os.environ if key.startswith(('WT_', 'WATCHT'))))\n"
        site.drop("ann/python", command=ours)
        (site.web / "ann/python/command").chmod(0o755)
        site.wait_state("ann/plain", "DONE")
        site.wait_state("ann/python", "DONE")
        told = (site.web / "ann/plain/remote_ties_run.res").read_text()
        assert told == f"fitted in {site.compute.parent}\n{site.compute / 'ann/plain'}\n"
        ours = (site.web / "ann/python/remote_ties_run.res").read_text()
        assert "WATCHTIES_JOBS" not in ours and "WATCHTIES_LOCK_FD" not in ours and "WT_" not in ours


def test_jobs_that_came_while_the_daemon_was_away_are_found(tmp_path):
    site = Site(tmp_path)
    site.drop("ann/web")
    (site.mirror / "ann/mirror").mkdir(parents=True)
    (site.mirror / "ann/mirror/command").write_text("echo run >> runs.log\n")
    (site.mirror / "ann/mirror/PENDING").touch()
    with site:
        site.wait_state("ann/web", "DONE")
        site.wait(lambda: site.marker("ann/mirror", site.mirror)[0] == "DONE", 20, "a job that is in the mirror alone")
        site.wait(site.quiet, 10, "quiet")
        assert site.runs("ann/web") == site.runs("ann/mirror") == 1


def test_a_failing_job_says_why_on_the_web_host_and_in_the_mail(tmp_path):
    with Site(tmp_path) as site:
        site.drop("ann/bad", command="echo made > half; echo 'no such column: dial' >&2; exit 3\n")
        site.drop("bob/good")
        failed = site.wait_state("ann/bad", "FAILED")
        assert (failed["exit"], failed["cause"]) == ("3", "exit") and failed["reason"] == "exit code 3: no such column: dial"
        assert (site.web / "ann/bad/half").read_text() == "made\n"
        site.wait_state("bob/good", "DONE")
        site.wait(site.quiet, 10, "quiet")
        letter = site.letter("ann/bad")
        assert letter["Subject"].startswith("FAILED: bad") and "no such column: dial" in letter.get_body(("plain",)).get_content()


class Inbox:
    def __init__(self):
        self.got = []

    async def handle_DATA(self, server, session, envelope):
        self.got.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content, policy=email.policy.default)))
        return "250 taken"


@pytest.fixture
def inbox():
    box = Inbox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port(), enable_SMTPUTF8=True)
    controller.start()
    box.port = controller.port
    yield box
    controller.stop()


def test_each_user_gets_one_mail_through_a_mail_server(tmp_path, inbox):
    def change(text):
        return text.replace(f'folder = "{tmp_path}/mail"', f'server = "127.0.0.1"\nport = {inbox.port}\ncc = ["boss@localhost"]')

    with Site(tmp_path, change=change) as site:
        for job in "ann/e1", "Jürgen/e2", "o'neil x/e3":
            site.drop(job)
        for job in "ann/e1", "Jürgen/e2", "o'neil x/e3":
            site.wait_state(job, "DONE")
        site.wait(site.quiet, 20, "quiet")
        users = {to[0]: letter["Subject"] for to, letter in inbox.got if to[0] != "root@localhost"}
        assert sorted(users) == ['"o\'neil x"@localhost', "Jürgen@localhost", "ann@localhost"]
        assert users["ann@localhost"].startswith("DONE: e1 on b01")
        assert sum(to[-1] == "boss@localhost" for to, _ in inbox.got) == 3
