"""agent.sh publish: markers and requests at a far place, with real files and real shells."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from agent_kit import AGENT, HOSTILE, Agent, every_shell, killers, make_job, marker, request, shims, states, wait_for, without

OLD, NEW, NEWER = 1_700_000_000_000_000_001, 1_700_000_001_123_456_789, 1_700_000_002_000_000_000


@pytest.fixture
def agent(sh, tmp_path):
    (tmp_path / "user data").mkdir()
    return Agent(sh, tmp_path / "user data")


def mutated(agent, rule, tmp_path):
    """Return the same agent without a rule, with a data directory of its own."""
    data = tmp_path / f"data without {rule}"
    data.mkdir(exist_ok=True)
    return Agent(agent.sh, data, without(rule, tmp_path))


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, "-s", "sh", AGENT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@every_shell
def test_version_and_usage(agent):
    done = subprocess.run([*agent.sh, str(AGENT), "version"], capture_output=True, text=True)
    assert done.stdout.startswith("agent ") and done.stdout[6:].strip().isdigit()
    assert subprocess.run([*agent.sh, str(AGENT), "frobnicate", "x"], capture_output=True).returncode == 2
    assert subprocess.run([*agent.sh, str(AGENT), "publish", "/nowhere"], capture_output=True).returncode == 66


@every_shell
def test_hostile_names_are_published_and_taken_off(agent):
    jobs = {job: make_job(agent.data, job) for job in HOSTILE}
    ids = {job: request(path) for job, path in jobs.items()}
    answers = agent.publish(*[marker(job, accepted=f"7,{ids[job]}", reason=f"of {job}") for job in HOSTILE])
    assert answers == [[job, "ok", "-", "-"] for job in HOSTILE]
    for job, path in jobs.items():
        assert states(path) == {"SUBMITTED"}
        assert path.joinpath("SUBMITTED").read_text() == f"state=SUBMITTED\nattempt=1\ntoken=t1\nreason=of {job}\n"
    assert not list(agent.data.parent.rglob("pwned"))
    agent.publish(*[marker(job, "DONE") for job in HOSTILE])
    assert all(states(path) == {"DONE"} for path in jobs.values())


@every_shell
def test_a_request_that_was_not_accepted_stays(agent):
    path = make_job(agent.data, "u/e")
    pending, cancel = request(path, NEW), request(path, OLD, "CANCEL")
    assert agent.one("publish", line=marker("u/e", accepted=f"{NEW}1,5")) == ["ok", pending, cancel]
    assert agent.one("publish", line=marker("u/e", accepted=f"{OLD},5")) == ["ok", pending, "-"]
    assert states(path) == {"SUBMITTED", "PENDING"}


@every_shell
def test_what_cannot_be_published(agent):
    path = make_job(agent.data, "real/e")
    (agent.data / "link").symlink_to(agent.data / "real")
    (agent.data / "real" / "linked").symlink_to(path)
    lines = [marker("u/none"), marker("link/e"), marker("real/linked"), marker("../x"), marker("real/../real/e"),
             marker("real/e", "PENDING"),
             marker("real/e", attempt="x"), ["real/e"], marker("real/.hidden")]
    assert [a[1] for a in agent.publish(*lines)] == ["missing"] + ["error"] * 8
    assert states(path) == set()


@every_shell
def test_newer_wins(agent):
    path = make_job(agent.data, "u/e")
    agent.publish(marker("u/e", "FAILED", 12, "t12"))
    request(path, OLD)
    older = agent.one("publish", line=marker("u/e", "DONE", 9, "t9", accepted=OLD))
    assert older == ["older", "-", "-"], "what it has accepted is taken off all the same"
    assert states(path) == {"FAILED"} and not (path / "PENDING").exists()
    request(path, NEW)
    assert agent.one("publish", line=marker("u/e", "DONE", 9, "t9", accepted=OLD)) == ["older", str(NEW), "-"]
    assert agent.one("publish", line=marker("u/e", "SUBMITTED", 13, "t13"))[0] == "ok"
    assert states(path) == {"PENDING", "SUBMITTED"}


@every_shell
def test_the_same_again_is_not_written_again_but_tidied(agent):
    path = make_job(agent.data, "u/e")
    agent.publish(marker("u/e", "DONE"))
    before = os.stat(path / "DONE").st_ino
    (path / "SUBMITTED").write_text("token=t1\nattempt=1\n")
    accepted = request(path)
    assert agent.one("publish", line=marker("u/e", "DONE", accepted=accepted)) == ["ok", "-", "-"]
    assert os.stat(path / "DONE").st_ino == before and states(path) == {"DONE"}


@every_shell
def test_directories_and_links_with_the_names_of_markers(agent, tmp_path):
    path = make_job(agent.data, "u/e")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    for name in ("DONE", "SUBMITTED", ".watchties.taken.PENDING", ".watchties.new.DONE"):
        (path / name).mkdir()
        (path / name / "inside").touch()
    (path / "FAILED").symlink_to(tmp_path)
    accepted = request(path)
    assert agent.one("publish", line=marker("u/e", "DONE", accepted=accepted)) == ["ok", "-", "-"]
    assert (path / "DONE").is_file() and not (path / "SUBMITTED").exists() and not (path / "FAILED").is_symlink()
    assert (path / ".watchties.junk.DONE.0" / "inside").exists()
    (path / ".watchties.new.FAILED").symlink_to(elsewhere)
    agent.publish(marker("u/e", "FAILED", 2, "t2"))
    assert elsewhere.read_text() == "precious" and (path / "FAILED").read_text().startswith("state=FAILED")


@every_shell
@pytest.mark.parametrize("later", [marker("u/e", "DONE"), marker("u/e", "SUBMITTED"), marker("u/e", "FAILED", 0, "t0")])
def test_what_a_killed_publication_left_goes_with_the_next_of_any_state(agent, tmp_path, later):
    path = make_job(agent.data, "u/e")
    (path / "DONE").write_text("state=DONE\nattempt=1\ntoken=t1\n")
    for name in "SUBMITTED", "FAILED", "DONE":
        (path / f".watchties.new.{name}").write_text("state=")
    agent.publish(later)
    assert [name for name in os.listdir(path) if name.startswith(".")] == []
    assert states(path) == {"DONE"}


@every_shell
def test_junk_in_a_marker_is_no_newer_state(agent):
    path = make_job(agent.data, "u/e")
    (path / "DONE").write_bytes(b"\0\xff\nattempt=99x\nattempt\n=\ntoken=$(touch pwned)\n")
    (path / "FAILED").write_bytes(b"attempt=99" * 100_000)
    assert agent.one("publish", line=marker("u/e"))[0] == "ok"
    assert (path / "SUBMITTED").exists() and not (path / "DONE").exists() and not (path / "FAILED").exists()


@every_shell
def test_rule_restore_hidden(agent, tmp_path):
    def leftover_after_publishing(agent):
        path = make_job(agent.data, "u/e")
        request(path, NEW, ".watchties.taken.PENDING")
        return agent.one("publish", line=marker("u/e", accepted=OLD))[1], states(path)

    assert leftover_after_publishing(agent) == (str(NEW), {"SUBMITTED", "PENDING"})
    assert leftover_after_publishing(mutated(agent, "restore_hidden", tmp_path)) == ("-", {"SUBMITTED", ".watchties.taken.PENDING"})


@every_shell
def test_an_accepted_leftover_goes(agent):
    path = make_job(agent.data, "u/e")
    request(path, OLD, ".watchties.taken.PENDING")
    request(path, OLD, ".watchties.taken.CANCEL")
    assert agent.one("publish", line=marker("u/e", accepted=OLD)) == ["ok", "-", "-"]
    assert states(path) == {"SUBMITTED"}


@every_shell
def test_rule_back_over_accepted(agent, tmp_path):
    def standing_after_publishing(agent):
        path = make_job(agent.data, "u/e")
        request(path, NEW, ".watchties.taken.PENDING")
        request(path, OLD)  # a backup was restored over it
        return agent.one("publish", line=marker("u/e", accepted=OLD))[1]

    assert standing_after_publishing(agent) == str(NEW)
    assert standing_after_publishing(mutated(agent, "back_over_accepted", tmp_path)) == "-"  # the request is lost


@every_shell
def test_a_leftover_does_not_push_out_a_request_that_stands(agent):
    path = make_job(agent.data, "u/e")
    request(path, NEW, ".watchties.taken.PENDING")
    request(path, NEWER)
    assert agent.one("publish", line=marker("u/e", accepted=OLD)) == ["ok", str(NEWER), "-"]


@every_shell
def test_rule_state_rank(agent, tmp_path):
    def publish_late_report(agent):
        path = make_job(agent.data, "u/e")
        agent.publish(marker("u/e", "DONE"))
        return agent.one("publish", line=marker("u/e", "SUBMITTED"))[0], states(path)

    assert publish_late_report(agent) == ("older", {"DONE"})
    assert publish_late_report(mutated(agent, "state_rank", tmp_path)) == ("ok", {"SUBMITTED"})


WAITING = """
case "$tool$*" in mv*.watchties.new.SUBMITTED* | find*/PENDING*) touch "$here/waiting"; while [ ! -e "$here/go" ]; do sleep 0.02; done ;; esac
exec "$real" "$@"
"""


@every_shell
def test_rule_far_lock(agent, tmp_path):
    """DONE is slow to look at what stands; an orphan that publishes SUBMITTED meanwhile is slower still."""
    def what_stands_in_the_end(agent, here):
        path = make_job(agent.data, "u/e")
        request(path)
        processes = []
        for tool, state in ("find", "DONE"), ("mv", "SUBMITTED"):
            room = shims(here / tool, WAITING, [tool])
            slow = Agent(agent.sh, agent.data, agent.script, {"PATH": f"{room}:{os.environ['PATH']}"})
            processes.append(slow.start("publish", lines=[marker("u/e", state)]))
            with contextlib.suppress(AssertionError):  # the second waits for the lock
                wait_for((room / "waiting").exists, 2)
        for process, tool in zip(processes, ["find", "mv"]):
            (here / tool / "go").touch()
            process.communicate(timeout=20)
            assert process.returncode == 0
        return states(path) - {"PENDING"}

    assert what_stands_in_the_end(agent, tmp_path / "shims") == {"DONE"}
    assert what_stands_in_the_end(mutated(agent, "far_lock", tmp_path), tmp_path / "shims2") == {"SUBMITTED"}


@every_shell
@pytest.mark.parametrize("command, more, chunk", [("publish", (), 200), ("claim", ("run1",), 100)])
def test_whoever_says_no_more_holds_no_lock(agent, command, more, chunk):
    """A connection that is cut without a word between two chunks: sshd there may take hours to notice."""
    for number in range(chunk):
        make_job(agent.data, f"u/{number}")
    silent = subprocess.Popen(agent.argv(command, *more), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=agent.data)
    with silent:
        for number in range(chunk):
            silent.stdin.write("\t".join(map(str, marker(f"u/{number}") if command == "publish" else (f"u/{number}", 1, "t1"))) + "\n")
        silent.stdin.flush()
        assert silent.stdout.readline()
        assert agent.one("publish", line=marker("u/0", "DONE"))[0] == "ok"
        silent.stdin.close()


TOUCHING_MV = """
case "$*" in *taken.PENDING) sleep 0.01; touch "${2:-x}" ;; esac
exec "$real" "$@"
"""


@every_shell
def test_a_request_that_comes_while_the_former_is_taken_off(agent, tmp_path):
    """PENDING is touched again between the look at it and its rename: it is put back."""
    path = make_job(agent.data, "u/e")
    accepted = request(path, OLD)
    here = shims(tmp_path / "shims", TOUCHING_MV, ["mv"])
    agent.env["PATH"] = f"{here}:{os.environ['PATH']}"
    assert agent.one("publish", line=marker("u/e", accepted=accepted))[1] == str(os.stat(path / "PENDING").st_mtime_ns) != accepted
    assert states(path) == {"SUBMITTED", "PENDING"}


@every_shell
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_anywhere_then_called_again(agent, tmp_path, when):
    """At no point of a publication is a request lost that was not accepted; called again it ends as if nothing had happened."""
    for nth in range(1, 20):
        path, other = make_job(agent.data, f"u/{nth}"), make_job(agent.data, f"v/{nth}")
        (path / "SUBMITTED").write_text("state=SUBMITTED\nattempt=1\ntoken=t1\n")
        accepted = request(path, OLD)
        request(other, NEW, ".watchties.taken.PENDING")
        request(other, OLD)
        lines = [marker(f"u/{nth}", "DONE", accepted=accepted), marker(f"v/{nth}", "DONE", accepted=accepted)]
        here = tmp_path / f"shims{nth}"
        cut = Agent(agent.sh, agent.data, env=killers(here, nth, when)).start("publish", lines=lines)
        cut.communicate(timeout=30)
        assert agent.publish(*lines) == [[f"u/{nth}", "ok", "-", "-"], [f"v/{nth}", "ok", str(NEW), "-"]]
        assert states(path) == {"DONE"} and states(other) == {"DONE", "PENDING"}
        if cut.returncode == 0:
            return
        assert cut.returncode == -9
    pytest.fail("the publication has more steps than were tried")


@every_shell
def test_a_full_disk_is_told_and_changes_nothing(agent, tmp_path):
    if os.geteuid():
        pytest.skip("mounting needs root")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no mount here")
    try:
        path = make_job(small, "u/e")
        (small / ".watchties.lock").touch()
        accepted = request(path)
        with pytest.raises(OSError), open(small / "fill", "wb", buffering=0) as fill:
            while True:
                fill.write(b"x" * 4096)
        assert Agent(agent.sh, small).one("publish", line=marker("u/e", accepted=accepted))[:2] == ["error", accepted]
        assert states(path) == {"PENDING"}
    finally:
        subprocess.run(["umount", small], check=True)


@every_shell
def test_a_locked_tree_is_tried_later(agent, tmp_path):
    """Exit code 75 when the lock cannot be had; a flock that gives up at once stands for the minute that it waits."""
    here = shims(tmp_path / "bin", 'case "$1" in --help) echo "  -w, --timeout" ;; *) exit 1 ;; esac', ["flock"])
    agent.env["PATH"] = f"{here}:{os.environ['PATH']}"
    make_job(agent.data, "u/e")
    agent.publish(marker("u/e"), code=75)
    assert states(agent.data / "u/e") == set()


@every_shell
def test_a_lock_that_is_no_plain_file_is_told_and_neither_followed_nor_waited_for(agent, tmp_path):
    lock = agent.data / ".watchties.lock"
    for lay in (lambda: lock.symlink_to(tmp_path / "made"), lambda: os.mkfifo(lock), lock.mkdir):
        lay()
        agent.run("publish", lines=[("u/e", "DONE", 1, "t", "")], code=73)
        assert "is no plain file: remove it" in agent.err and len(agent.err.splitlines()) == 1
        lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    assert not (tmp_path / "made").exists()


@every_shell
def test_a_batch_is_renamed_whole_on_a_host_without_perl(agent, tmp_path):
    """There a program is started for each job; with perl one for all (rename_all)."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in map(Path, os.environ["PATH"].split(":")):
        for tool in folder.iterdir() if folder.is_dir() else ():
            if tool.name != "perl" and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    agent.env["PATH"] = str(tools)
    jobs = [*HOSTILE, *(f"u/a rather long name of job number {n}" for n in range(30))]
    ids = {job: request(make_job(agent.data, job)) for job in jobs}
    assert agent.publish(*[marker(job, accepted=ids[job]) for job in jobs]) == [[job, "ok", "-", "-"] for job in jobs]
    assert all(states(agent.data / job) == {"SUBMITTED"} for job in jobs)
