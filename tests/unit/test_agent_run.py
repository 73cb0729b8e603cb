"""agent.sh wrapper, cancel, status: what runs, how it ends, and that it is told truly. Real processes."""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest
from agent_kit import HOSTILE, Agent, every_shell, killers, make_job, wait_for, without


class Host(Agent):
    """A compute host: the agent, and the shell scheduler's way to start the wrapper."""

    started = None

    def wrap(self, job, attempt=1, token="t1", *ident, env=None):
        """Start the wrapper in a session of its own; return the process."""
        argv = [*self.sh, str(self.script), "wrapper", str(self.data / job), str(attempt), token, *ident]
        process = subprocess.Popen(argv, start_new_session=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   env={**self.env, **(env or {})})
        self.started.append(process)
        return process

    def begin(self, job, attempt=1, token="t1", **options):
        """Start the wrapper and return it when the job's command runs."""
        process = self.wrap(job, attempt, token, **options)
        wait_for((self.data / job / "running").exists)
        return process

    def place(self, job, attempt=1, token="t1"):
        return self.data / job / ".watchties" / f"{attempt}.{token}"

    def status(self, job, attempt=1, token="t1"):
        """Return (state, fields)."""
        state, *fields = self.one("status", line=[job, attempt, token])
        return state, dict(f.split("=", 1) for f in fields)

    def cancel(self, job, attempt=1, token="t1", command="-"):
        return self.one("cancel", line=[job, attempt, token, command])


@pytest.fixture
def host(sh, tmp_path):
    (tmp_path / "compties" / "user_data").mkdir(parents=True)
    host = Host(sh, tmp_path / "compties" / "user_data")
    host.started = []
    yield host
    for process in host.started:
        for pid in session_members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def command(host, job, text, mode=0o755):
    """Return the directory of a job with that command; "running" appears when it runs."""
    path = make_job(host.data, job, command=text)
    (path / "command").chmod(mode)
    return path


def fields(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def session_members(sid):
    """Return the pids of the living processes of a session."""
    out = subprocess.run(["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True, check=True).stdout
    return [int(p) for p, s, stat in (line.split() for line in out.splitlines()) if int(s) == sid and stat[0] != "Z"]


SLEEPER = "#!/bin/sh\ntouch running\nsleep 60\n"
STUBBORN = "#!/bin/sh\ntrap '' TERM\ntouch running\nsleep 60 & sleep 60 & wait; wait\n"
GRACEFUL = "#!/bin/sh\ntrap 'echo saved >state; exit 0' TERM\ntouch running\nsleep 60 & wait\n"


@every_shell
def test_hostile_names_run(host):
    for job in HOSTILE:
        path = command(host, job, "#!/bin/sh\nread x; pwd; echo oops >&2; printf 12345 >'a file'\n")
        assert host.wrap(job, 1, "t1", "id 1;$(x)").wait(20) == 0
        assert (path / "remote_ties_run.res").read_text() == f"{path}\n" and (path / "remote_ties_run.err").read_text() == "oops\n"
        done = fields(path / "DONE")
        assert {k: done[k] for k in ("state", "attempt", "token", "exit")} == {"state": "DONE", "attempt": "1", "token": "t1", "exit": "0"}
        ended = fields(host.place(job) / "exit")
        size = sum(p.stat().st_size for p in path.iterdir() if p.is_file() and p.name != "DONE")
        assert ended["files"] == "4" and int(ended["bytes"]) == size and ended["code"] == "0"
        assert re.fullmatch(r"\d+\.\d\d", ended["seconds"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", ended["began"]) and ended["ended"] == done["ended"]
        begun = fields(host.place(job) / "begun")
        assert begun["id"] == "id_1___x_" and begun["pid"] == begun["session"]
        assert {re.sub(r"\..*", ".", p.name) for p in host.place(job).iterdir()} == {"begun", "begun.", "exit"}
        assert ended.pop("whole") == "yes" and host.status(job) == ("exit", ended)
    assert not list(host.data.parent.rglob("pwned"))


@every_shell
def test_failures_and_what_the_job_sees(host, tmp_path):
    env = {"WT_TOKEN": "x", "WT_AGENT": "y", "LSB_JOBID": "203", "PATH": os.environ["PATH"]}
    path = command(host, "u/fails", 'echo "$COMPTIES_HOME|$PATH|${WT_TOKEN-}|${WT_AGENT-}|$(umask)|$IFS|$-"\nexit 3\n', 0o644)
    host.script = tmp_path / "compties" / "scripts" / "agent.sh"
    host.script.parent.mkdir()
    host.script.symlink_to(Agent([], "/").script)
    assert host.wrap("u/fails", env=env).wait(20) == 3
    home, path_, token, agent, umask, *rest = (path / "remote_ties_run.res").read_text().split("|")
    assert (home, token, agent) == (str(tmp_path / "compties"), "", "") and path_.startswith(f"{home}/bin:")
    assert umask == subprocess.run(["dash", "-c", "umask"], capture_output=True, text=True).stdout.strip() and "f" not in rest[-1]
    failed = fields(path / "FAILED")
    assert (failed["exit"], failed["cause"]) == ("3", "exit") and fields(host.place("u/fails") / "begun")["id"] == "203"
    missing = make_job(host.data, "u/none")
    assert host.wrap("u/none").wait(20) == 127 and (missing / "FAILED").exists()
    assert "no file" in (missing / "remote_ties_run.err").read_text()
    path = command(host, "u/dies", "#!/bin/sh\nkill -9 $$\n")
    assert host.wrap("u/dies").wait(20) == 137 and fields(host.place("u/dies") / "exit")["signal"] == "9"
    path = command(host, "u/requeue", "#!/bin/sh\nexit 99\n")
    assert host.wrap("u/requeue").wait(20) == 1 and fields(path / "FAILED")["exit"] == "99"


@every_shell
def test_signals_of_a_scheduler_reach_the_job_and_its_end_is_written(host):
    path = command(host, "u/e", SLEEPER)
    wrapper = host.begin("u/e")
    wrapper.terminate()
    assert wrapper.wait(10) == 143
    ended = fields(host.place("u/e") / "exit")
    assert ended["signal"] == "15" and "killed" not in ended and fields(path / "FAILED")["cause"] == "exit"
    assert not session_members(wrapper.pid)
    path = command(host, "u/g", GRACEFUL)
    wrapper = host.begin("u/g")
    wrapper.send_signal(signal.SIGHUP)
    assert wrapper.wait(10) == 0 and (path / "state").exists() and (path / "DONE").exists()


@every_shell
def test_rule_begun_is_one_name(host, tmp_path):
    """Wrappers of one attempt started at once, and a cancel among them: at most one of them begins."""
    def begin_at_once(host, job):
        path = command(host, job, "#!/bin/sh\necho ran >>runs\n")
        racing = [host.wrap(job) for _ in range(4)]
        for process in racing:
            process.wait(20)
        return len((path / "runs").read_text().split())

    for n in range(5):
        assert begin_at_once(host, f"u/{n}") == 1
    for n in range(5):
        job = f"c/{n}"
        path = command(host, job, "#!/bin/sh\necho ran >>runs\n")
        wrapper, (how, *_) = host.wrap(job), host.cancel(job)
        wrapper.wait(20)
        assert (how == "none") == (host.status(job)[0] == "cancelled")
        assert how != "none" or not (path / "runs").exists()
    host.script = without("begun_is_one_name", tmp_path)
    path = command(host, "u/unprotected", "#!/bin/sh\necho ran >>runs\n")
    racing = [host.wrap("u/unprotected") for _ in range(4)]
    wait_for(lambda: (path / "runs").exists() and len((path / "runs").read_text().split()) > 1, 20)
    for process in racing:  # they stand in one another's way, and may try for long to write their exit file
        process.kill()
        process.wait(20)


@every_shell
def test_a_tombstone_stops_what_has_not_begun(host):
    path = command(host, "u/e", "#!/bin/sh\ntouch running\n")
    said = 'echo "$WT_TOKEN $WT_NAME" >>"$WT_JOB/asked"'
    assert host.cancel("u/e", command=said) == ["none"]
    assert host.cancel("u/e", command="exit 7") == ["none", "the scheduler's command ended with 7: "]
    assert host.wrap("u/e").wait(10) == 0
    assert not (path / "running").exists() and not (path / "DONE").exists() and (path / "asked").read_text() == "t1 wt.t1\n"
    assert host.one("claim", "R1", line=["u/e", 1, "t1"]) == ["cancelled"]
    assert host.one("submit", "R1", line=["u/e", 1, "t1", "touch submitted"])[0] == "refused"


@every_shell
def test_a_tombstone_says_why_it_was_laid_and_the_first_one_counts(host):
    lines = [["u/lost", 1, "t1", "-"], ["u/refused", 1, "t1", "-"]]
    host.run("claim", "R1", lines=[line[:3] for line in lines])
    host.run("submit", "R1", lines=[[*line[:3], "echo no such queue >&2; exit 9"] for line in lines])
    assert host.one("cancel", "lost", line=lines[0]) == ["none"] and host.one("cancel", "rejected", line=lines[1]) == ["none"]
    assert host.run("cancel", lines=lines) == [["u/lost", "none"], ["u/refused", "none"]]
    assert host.run("status", lines=[line[:3] for line in lines]) == [["u/lost", "cancelled", "why=lost"], ["u/refused", "cancelled", "why=rejected"]]
    answers = host.run("claim", "R2", lines=[line[:3] for line in lines])
    assert answers == [["u/lost", "cancelled"], ["u/refused", "done"], ["", "x", "9"], ["", "e", "no such queue"]]
    assert host.run("cancel", "two words", lines=lines, code=2) == []


@every_shell
def test_cancel_stops_what_runs_and_says_so_when_nothing_is_left(host):
    for job, text, slow in ("u/a", SLEEPER, False), ("u/b", GRACEFUL, False), ("u/c", STUBBORN, True):
        path = command(host, job, text)
        wrapper = host.begin(job)
        assert len(session_members(wrapper.pid)) > 1
        before = time.monotonic()
        answer = host.cancel(job, command='echo "id $WT_ID" >>"$WT_JOB/asked"')
        assert answer[0] == "ended" and (time.monotonic() - before > 4) == slow
        assert not session_members(wrapper.pid) and (path / "asked").read_text() == f"id {wrapper.pid}\n"
        assert fields(path / "FAILED")["cause"] == "cancelled" and fields(host.place(job) / "exit")["killed"] == "1"
        assert host.cancel(job)[0] == "ended"
    path = command(host, "u/d", "#!/bin/sh\nexit 0\n")
    host.wrap("u/d").wait(10)
    answer = host.cancel("u/d", command="touch never")
    assert answer[0] == "exited" and "code=0" in answer[1] and not list(host.data.rglob("never"))


@every_shell
def test_rule_cancel_waits(host, tmp_path):
    def living_after_cancel(host, job):
        command(host, job, STUBBORN)
        wrapper = host.begin(job)
        return host.cancel(job)[0], bool(session_members(wrapper.pid))

    assert living_after_cancel(host, "u/e") == ("ended", False)
    host.script = without("cancel_waits", tmp_path)
    assert living_after_cancel(host, "u/unprotected") == ("ended", True)


@every_shell
def test_a_dead_wrapper_and_its_job_that_lives_on(host):
    """The wrapper alone is killed: its session still lives, and cancel ends that too."""
    command(host, "u/e", SLEEPER)
    wrapper = host.begin("u/e")
    wrapper.kill()
    wrapper.wait()
    assert host.status("u/e")[1]["alive"] == "yes"
    assert host.cancel("u/e") == ["ended"] and not session_members(wrapper.pid)
    assert host.status("u/e")[1]["alive"] == "no"


@every_shell
def test_a_job_on_another_host_is_asked_for_again(host):
    path = command(host, "u/e", SLEEPER)
    host.begin("u/e")
    begun = host.place("u/e") / "begun"
    here = begun.read_text()
    begun.write_text(here.replace("host=", "host=other"))
    assert host.status("u/e")[1]["alive"] == "unknown"
    assert host.cancel("u/e")[0] == "running" and not (path / "FAILED").exists()
    begun.write_text(re.sub("boot=.*", "boot=another", here))
    assert host.status("u/e")[1]["alive"] == "no" and host.cancel("u/e")[0] == "ended"
    begun.write_text(re.sub("(leader|start)=.*", r"\1=1", here))  # the pid is someone else's now
    assert host.status("u/e")[1]["alive"] == "no"
    assert session_members(int(fields(begun)["session"]))


@every_shell
def test_status_of_every_stage_and_the_query(host):
    lines = [["u/e", 1, "t1"]]
    assert host.run("status", lines=lines) == [["u/e", "none"]]
    host.run("claim", "R1", lines=lines)
    assert host.run("status", lines=lines) == [["u/e", "claimed"]]
    (host.place("u/e") / "claim.R1").rename(host.place("u/e") / "intent.R1")
    assert host.run("status", lines=lines) == [["u/e", "intent"]]
    host.run("adopt", "R1", lines=[[*lines[0], "7"]])
    query = "printf '1\\tRUN\\n2 DONE'; echo late >&2; cat; exit 4"
    answers = [["u/e", "submitted"], ["", "query", "4"], ["", "o", "1", "RUN"], ["", "o", "2 DONE"], ["", "e", "late"]]
    assert host.run("status", query, lines=lines) == answers
    command(host, "u/e", SLEEPER)
    wrapper = host.begin("u/e")
    state, told = host.status("u/e")
    assert (state, told["alive"], told["pid"], told["id"]) == ("begun", "yes", str(wrapper.pid), str(wrapper.pid))
    ending = f"kill {wrapper.pid}; while [ ! -e '{host.data}/u/e/FAILED' ]; do sleep 0.05; done"
    assert host.run("status", ending, lines=lines)[0][1] == "exit"
    (host.place("u/e") / "said").write_text("x" * 300_000 + "\nthe last word\n")  # told only so far as is of use: a job may write there too
    told = host.run("status", lines=lines)
    assert told[-1] == ["", "e", "the last word"] and len(str(told)) < 21_000


@every_shell
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_wrapper_killed_anywhere_is_never_run_twice(host, tmp_path, when):
    for nth in range(1, 12):
        job = f"u/{nth}"
        path = command(host, job, "#!/bin/sh\necho ran >>runs\n")
        first = host.wrap(job, env=killers(tmp_path / f"shims{nth}", nth, when))
        code = first.wait(20)
        wait_for(lambda: not session_members(first.pid))
        host.wrap(job).wait(20)
        runs = (path / "runs").read_text() if (path / "runs").exists() else ""
        state, told = host.status(job)
        assert runs == "ran\n" or not runs and state == "begun"
        assert (path / "DONE").exists() <= (state == "exit") and (state == "exit" or told["alive"] == "no")
        if code == 0:
            return
    pytest.fail("the wrapper has more steps than were tried")


@every_shell
def test_status_tidies_what_killed_ones_have_left(host):
    """Killed before the last rename: the wrapper leaves its marker's hidden name, submit its files of passage."""
    where, hidden = command(host, "a/e", "#!/bin/sh\n: >running\nexec sleep 60\n"), ".watchties.new.DONE"
    wrapper = host.begin("a/e")
    for path in (here := host.place("a/e")) / "out", here / "err", here / "reply.new", where / hidden:
        path.touch()
    assert host.status("a/e")[0] == "begun" and (where / hidden).exists() and (here / "out").exists()  # nobody has ended
    (here / "exit").write_text("code=0\nwhole=yes\n")
    assert host.status("a/e")[0] == "exit" and wrapper.wait(10) is not None  # what has ended, and runs on, is ended first
    assert not list(where.glob(".watchties.new.*")) and not {"out", "err", "reply.new"} & {p.name for p in here.iterdir()}
