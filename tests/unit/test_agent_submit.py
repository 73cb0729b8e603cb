"""agent.sh claim, submit, adopt: exactly one submission of an attempt, whoever dies when."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from agent_kit import AGENT, HOSTILE, Agent, every_shell, killers, make_job, shims, wait_for, without

SAY = 'printf "said %s %s %s\\n" "$WT_NAME" "$WT_ATTEMPT" "$PWD"; echo "to stderr" >&2; exit 3'
LOG = 'echo "$WT_TOKEN" >>"$WT_JOB/../../submitted"; echo 17'


@pytest.fixture
def agent(sh, tmp_path):
    (tmp_path / "data").mkdir()
    return Agent(sh, tmp_path / "data")


def place(agent, job="u/e", attempt=1, token="t1"):
    """Return the attempt's directory."""
    return agent.data / job / ".watchties" / f"{attempt}.{token}"


def submissions(agent):
    """Return the tokens that reached the scheduler."""
    log = agent.data / "submitted"
    return log.read_text().split() if log.exists() else []


@every_shell
def test_hostile_names_are_claimed_and_submitted(agent):
    lines = [[job, 1, "t1"] for job in HOSTILE]
    assert agent.run("claim", "R1", lines=lines) == [[job, "new"] for job in HOSTILE]
    answers = agent.run("submit", "R1", lines=[[*line, SAY] for line in lines])
    wanted = []
    for job in HOSTILE:
        wanted += [[job, "replied"], ["", "x", "3"], ["", "o", f"said wt.t1 1 {agent.data / job}"], ["", "e", "to stderr"]]
    assert answers == wanted
    answers = agent.run("claim", "R2", lines=lines)
    assert [a for a in answers if a[0]] == [[job, "done"] for job in HOSTILE]
    assert [a for a in answers if not a[0]] == [a for a in wanted if not a[0]]
    assert not list(agent.data.parent.rglob("pwned"))


@every_shell
def test_an_attempt_is_submitted_once_however_often_it_is_asked(agent):
    line = ["u/e", 1, "t1"]
    assert agent.one("claim", "R1", line=line) == ["new"]
    assert agent.one("claim", "R1", line=line) == ["held"]
    for _ in range(3):
        assert agent.one("submit", "R1", line=[*line, LOG]) == ["replied"]
    assert agent.one("submit", "R2", line=[*line, LOG]) == ["replied"]
    assert submissions(agent) == ["t1"]


@every_shell
def test_an_attempt_that_is_given_twice_in_one_call_is_submitted_once(agent):
    line = ["u/e", 1, "t1"]
    agent.one("claim", "R1", line=line)
    answers = agent.run("submit", "R1", lines=[[*line, LOG]] * 3)
    assert [a[1] for a in answers if a[0]] == ["replied", "refused", "refused"] and submissions(agent) == ["t1"]


@every_shell
def test_an_intent_without_reply_is_unknown_until_it_is_adopted_or_submitted_again(agent):
    line = ["u/e", 1, "t1"]
    agent.one("claim", "R1", line=line)
    place(agent).joinpath("claim.R1").rename(place(agent) / "intent.R1")  # as a crash would leave it
    assert agent.one("claim", "R2", line=line) == ["unknown"]
    assert agent.one("adopt", "R1", line=[*line, "Job <7>"])[0] == "error"
    assert agent.one("adopt", "R2", line=[*line, "Job <7>  x"]) == ["ok"]
    assert agent.run("claim", "R3", lines=[line]) == [["u/e", "done"], ["", "x", "0"], ["", "o", "Job <7>  x"]]
    line = ["u/e", 2, "t2"]
    agent.one("claim", "R4", line=line)
    place(agent, "u/e", 2, "t2").joinpath("claim.R4").rename(place(agent, "u/e", 2, "t2") / "intent.R4")
    assert agent.one("claim", "R5", line=line) == ["unknown"]
    assert agent.one("submit", "R4", line=[*line, LOG])[0] == "refused"
    assert agent.one("submit", "R5", line=[*line, LOG]) == ["replied"]
    assert submissions(agent) == ["t2"]


@every_shell
def test_begun_is_told_instead_of_unknown(agent):
    line = ["u/e", 1, "t1"]
    agent.one("claim", "R1", line=line)
    place(agent).joinpath("claim.R1").rename(place(agent) / "intent.R1")
    place(agent).joinpath("begun").write_text("state=begun\nid=17\nhost=n1\n")
    assert agent.one("claim", "R2", line=line) == ["begun", "state=begun id=17 host=n1"]
    assert agent.one("submit", "R2", line=[*line, LOG])[0] == "refused"
    assert submissions(agent) == []


@every_shell
def test_a_line_that_a_lost_connection_has_cut_is_neither_submitted_nor_answered(agent):
    lines = [["u/e", 1, "t1"], ["u/f", 1, "t2"]]
    agent.run("claim", "R1", lines=lines)
    whole, cut = "\t".join(map(str, [*lines[0], LOG])), "\t".join(map(str, [*lines[1], LOG[:-3]]))
    done = subprocess.run(agent.argv("submit", "R1"), input=f"{whole}\n{cut}", capture_output=True, text=True, cwd=agent.data, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines() if line[0] != "\t"] == ["u/e"]
    assert submissions(agent) == ["t1"] and (place(agent, "u/f", 1, "t2") / "claim.R1").exists()
    assert agent.one("submit", "R1", line=[*lines[1], LOG]) == ["replied"]


@every_shell
def test_rule_fenced(agent, tmp_path):
    """An orphan of run R1 submits late, after R2 has claimed: it is refused, and R2's inputs are not overtaken."""
    def submit_late(agent):
        line = ["u/e", 1, "t1"]
        assert agent.one("claim", "R1", line=line) == ["new"]
        assert agent.one("claim", "R2", line=line) == ["held"]
        return agent.one("submit", "R1", line=[*line, LOG])[0], submissions(agent)

    assert submit_late(agent) == ("refused", [])
    assert agent.one("submit", "R2", line=["u/e", 1, "t1", LOG]) == ["replied"]
    (tmp_path / "data2").mkdir()
    assert submit_late(Agent(agent.sh, tmp_path / "data2", without("fenced", tmp_path))) == ("replied", ["t1"])


@every_shell
def test_an_orphan_that_lost_its_intent_submits_nothing(agent, tmp_path):
    """R1's submit hangs in the sync of its intent, the second one; R2 claims (unknown); R1 goes on and must not reach the scheduler."""
    line = ["u/e", 1, "t1"]
    agent.one("claim", "R1", line=line)
    inputs = 'mkdir "$here/inputs" 2>/dev/null && exec "$real" "$@"; '
    hang = 'touch "$here/waiting"; while [ ! -e "$here/go" ]; do sleep 0.02; done; exec "$real" "$@"'
    here = shims(tmp_path / "shims", inputs + hang, ["sync"])
    orphan = Agent(agent.sh, agent.data, env={"PATH": f"{here}:{os.environ['PATH']}"}).start("submit", "R1", lines=[[*line, LOG]])
    wait_for((here / "waiting").exists)
    assert agent.one("claim", "R2", line=line) == ["unknown"]
    (here / "go").touch()
    assert orphan.communicate(timeout=20)[0].split("\t")[1] == "refused"
    assert submissions(agent) == []


@every_shell
def test_two_claims_and_two_submits_at_once(agent):
    """Every job is new for exactly one run and reaches the scheduler once."""
    lines = [[f"u/{n}", 1, f"t{n}"] for n in range(30)]
    claims = [agent.start("claim", run, lines=lines) for run in ("R1", "R2")]
    words = [[line.split("\t")[1] for line in c.communicate(timeout=60)[0].splitlines()] for c in claims]
    assert all(sorted(pair) == ["held", "new"] for pair in zip(*words))
    submits = [agent.start("submit", run, lines=[[*line, LOG] for line in lines]) for run in ("R1", "R2")]
    words = [[a.split("\t")[1] for a in s.communicate(timeout=60)[0].splitlines() if a[0] != "\t"] for s in submits]
    assert all(sorted(pair) == ["refused", "replied"] for pair in zip(*words))
    assert sorted(submissions(agent)) == sorted(line[2] for line in lines)


@every_shell
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_anywhere_in_claim_or_submit(agent, tmp_path, when):
    """Called again as the protocol has it, with the query by name: one submission, none lost, nothing moved aside lost."""
    for nth in range(1, 16):
        job, token = f"u/{nth}", f"t{nth}"
        path = make_job(agent.data, job, DONE="old", FAILED="old", **{"remote_ties_run.res": "old", "a b": "old"})
        line = [job, 2, token]
        dying = Agent(agent.sh, agent.data, env=killers(tmp_path / f"shims{nth}", nth, when))
        cut = dying.start("claim", "R1", lines=[[*line, "a b"]])
        cut.communicate(timeout=30)
        if cut.returncode == 0:
            cut = dying.start("submit", "R1", lines=[[*line, LOG]])
            cut.communicate(timeout=30)
        state = agent.one("claim", "R2", line=[*line, "a b"])[0]
        if state == "unknown" and token in submissions(agent):  # the query by name finds it
            assert agent.one("adopt", "R2", line=[*line, "17"]) == ["ok"]
        elif state != "done":
            assert agent.one("submit", "R2", line=[*line, LOG]) == ["replied"]
        assert submissions(agent).count(token) == 1
        kept = path / ".watchties" / "before.2"
        assert {p.name for p in kept.iterdir()} == {"DONE", "FAILED", "remote_ties_run.res", "a b"} and not (path / "DONE").exists()
        if cut.returncode == 0:
            return
    pytest.fail("claim and submit have more steps than were tried")


@every_shell
def test_what_an_earlier_attempt_left_is_moved_aside_over_nothing(agent):
    outputs = {"remote_ties_run.res": "4", "remote_ties_run.err": "5"}
    path = make_job(agent.data, "u/e", DONE="1", FAILED="2", SUBMITTED="3", kept="6", **outputs, **{"[x]": "7"})
    make_job(agent.data, "u/e/plots", **{"a.csv": "8", "b.csv": "9"})
    make_job(agent.data, "u/e/.watchties/before.2", DONE="older")
    (path / "away").symlink_to(path / "plots")
    evidence = ["plots/*.csv", "[x]", "none", "away/a.csv"]
    assert agent.one("claim", "R1", line=["u/e", 2, "t2", *evidence]) == ["new"]
    before = path / ".watchties" / "before.2"
    kept = {str(p.relative_to(before)): p.read_text() for p in before.rglob("*") if p.is_file()}
    assert kept == {"DONE": "older", "DONE.1": "1", "FAILED": "2", "SUBMITTED": "3", "[x]": "7",
                    "plots/a.csv": "8", "plots/b.csv": "9", **outputs}
    assert {p.name for p in path.iterdir()} == {".watchties", "kept", "plots", "away"}
    for bad in "../e2/x", "/etc/passwd", ".watchties/2.t2", "a/../../b":
        assert agent.one("claim", "R1", line=["u/e", 3, "t3", bad])[0] == "error"


@every_shell
def test_links_for_directories_are_refused(agent, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (agent.data / "link").symlink_to(outside)
    make_job(agent.data, "u").joinpath("link").symlink_to(outside)
    make_job(agent.data, "u/e").joinpath(".watchties").symlink_to(outside)
    for job in "link/e", "u/link", "u/e", "../outside/x", "u/../e":
        assert agent.one("claim", "R1", line=[job, 1, "t1"])[0] == "error"
        assert agent.one("submit", "R1", line=[job, 1, "t1", LOG])[0] == "error"
        assert agent.one("cancel", line=[job, 1, "t1", "-"])[0] == "error"
        assert agent.one("status", line=[job, 1, "t1"])[0] == "error"
    assert not list(outside.iterdir())
    assert agent.one("claim", "R1", line=["u/f", "1", "../../x"])[0] == "error"
    agent.run("claim", "../R", lines=[["u/f", 1, "t1"]], code=2)


@every_shell
def test_setup_and_odd_command_lines(agent):
    lines = [[f"u/{n}", 1, "t"] for n in range(7)]
    agent.run("claim", "R1", lines=lines)
    commands = ["bsub 'it'", "echo \"a  b\"\techo 'c\\d' *", "exit 255", "syntax ( error", "cat; echo read nothing", "printf 'no line end'",
                "f=$unset; cd /; echo $0"]
    setup = 'bsub() { echo "Job <$1>"; }; echo banner; cd /; IFS=:; set -u; set -e; cat'
    answers = agent.run("submit", "R1", setup, lines=[[*line, c] for line, c in zip(lines, commands)])
    by_job, code = {}, {}
    for a in answers:
        if a[0]:
            job = by_job[a[0]] = []
            assert a[1] == "replied"
        elif a[1] == "x":
            code[a[0] or next(reversed(by_job))] = int(a[2])
        elif a[1] == "o":
            job.append("\t".join(a[2:]))
    assert [by_job[f"u/{n}"] for n in (0, 1, 4, 5)] == [["Job <it>"], ["a  b echo c\\d *"], ["read nothing"], ["no line end"]]
    assert code["u/2"] == 255 and code["u/3"] != 0 and "banner" not in str(answers) and "banner" in agent.err
    line = ["u/x", 1, "t"]
    agent.one("claim", "R1", line=line)
    agent.run("submit", "R1", "exit 0", lines=[[*line, LOG]], code=70)
    assert submissions(agent) == []


@every_shell
def test_a_disk_that_cannot_be_synced_is_called_so_and_not_taken_for_a_setup_that_exits(agent, tmp_path):
    line = ["u/e", 1, "t"]
    agent.one("claim", "R1", line=line)
    agent.env["PATH"] = f"{shims(tmp_path / 'shims', 'exit 1', ['sync'])}:{os.environ['PATH']}"
    if agent.sh[0] == "busybox":
        agent.env["ENV"] = ""
    agent.run("submit", "R1", lines=[[*line, LOG]], code=71)
    assert "cannot sync" in agent.err and "setup" not in agent.err and submissions(agent) == []


HOLD = """import fcntl, os, sys
lock, fd = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])
fcntl.flock(lock, fcntl.LOCK_EX)
os.dup2(lock, fd, inheritable=True)
os.execvp(sys.argv[3], sys.argv[3:])"""


@every_shell
@pytest.mark.parametrize("fd", [3, 9, 10, 13, 77])
def test_inherited_descriptors_are_closed(agent, tmp_path, fd):
    """A lock that the caller holds on a descriptor and passes on is free while a program that was started still runs."""
    lock = tmp_path / "lock"
    lock.touch()
    line = ["u/e", 1, "t1"]
    agent.one("claim", "R1", line=line)
    plain = agent.sh
    agent.sh = [sys.executable, "-c", HOLD, str(lock), str(fd), *plain]
    answer, _, (_, _, pid) = agent.run("submit", "R1", lines=[[*line, "sleep 30 >/dev/null 2>&1 & echo $!"]])
    try:
        assert answer == ["u/e", "replied"] and not agent.err
        os.kill(int(pid), 0)
        assert subprocess.run(["flock", "-n", lock, "true"]).returncode == 0, f"descriptor {fd} was passed on"
    finally:
        os.kill(int(pid), 9)


@pytest.mark.parametrize("helper", ["busybox", "python3"])
def test_where_there_is_no_bash_another_program_closes_them(tmp_path, helper):
    """dash cannot name a descriptor above 9."""
    python = f"#!/bin/sh\nexec {sys.executable} \"$@\"\n"
    for tool in "dash", "sh", "ls", helper:
        path = tmp_path / tool
        if tool == "python3":
            path.write_text(python)
            path.chmod(0o755)
        else:
            path.symlink_to(shutil.which("dash" if tool == "sh" else tool))
    script = tmp_path / "agent.sh"
    script.write_text(AGENT.read_text().replace("version:0) ", "version:0) ls /proc/self/fd >&2; "))
    (tmp_path / "lock").touch()
    argv = [sys.executable, "-c", HOLD, tmp_path / "lock", "33", tmp_path / "dash", script, "version"]
    done = subprocess.run(argv, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout.startswith("agent") and done.stderr.split() and "33" not in done.stderr.split(), done.stderr


@pytest.fixture(params=["timeout", "without"])
def capper(request, agent, tmp_path):
    """The agent on a host with timeout(1), and on one without it."""
    if request.param == "without":
        bin = tmp_path / "bin"
        bin.mkdir()
        for folder in "/usr/sbin", "/usr/bin", "/bin":
            for tool in os.scandir(folder):
                if tool.name != "timeout" and not (bin / tool.name).is_symlink():
                    (bin / tool.name).symlink_to(tool.path)
        agent.env["PATH"] = str(bin)
    return agent


@every_shell
def test_a_command_that_hangs_is_killed_in_time_and_its_exit_code_is_known(capper):
    """busybox has a timeout of its own, which nothing can hide from it."""
    hangs, ends = "u/hangs", "u/ends"
    capper.run("claim", "R1", lines=[[hangs, 1, "t1"], [ends, 1, "t2"]])
    began = time.monotonic()
    text = "capped 1 sh -c 'echo said; exec sleep 30'"
    answers = capper.run("submit", "R1", lines=[[hangs, 1, "t1", text], [ends, 1, "t2", "echo given | capped 9 sh -c 'cat; exit 3'"]])
    assert time.monotonic() - began < 9
    assert [hangs, "replied"] in answers and ["", "x", "137"] in answers and ["", "o", "said"] in answers
    assert answers[answers.index([ends, "replied"]) + 1 :] == [["", "x", "3"], ["", "o", "given"]]
    bare = [["u/bare", 1, "t3"], ["u/word", 1, "t4"]]  # nothing but a capped command: run without a shell of its own
    capper.run("claim", "R1", lines=bare)
    answers = capper.run("submit", "R1", lines=[[*bare[0], "capped 1 sleep 30"], [*bare[1], 'capped 9 echo "$WT_NAME"  \'a  b\'']])
    assert [a for a in answers if a[1] != "e"] == [["u/bare", "replied"], ["", "x", "137"], ["u/word", "replied"], ["", "x", "0"], ["", "o", "wt.t4 a  b"]]
    answers = capper.run("status", "capped 1 sleep 30; echo $?")
    assert answers[:2] == [["", "query", "0"], ["", "o", "137"]]


@every_shell
def test_what_starts_the_wrapper_is_whole_for_another_shell_whatever_the_job_is_called(agent):
    agent.run("claim", "R1", lines=[[job, 1, "t1"] for job in HOSTILE])
    text = 'eval "set -- $WT_WRAPPER"; shift; for word; do printf "<%s>\\n" "$word"; done; echo "$WT_SAID"'
    answers = agent.run("submit", "R1", lines=[[job, 1, "t1", text] for job in HOSTILE])
    for job in HOSTILE:
        at = answers.index([job, "replied"])
        words = ["<sh>", f"<{AGENT}>", "<wrapper>", f"<{agent.data / job}>", "<1>", "<t1>", ".watchties/1.t1/said"]
        assert answers[at + 1 : at + 9] == [["", "x", "0"], *(["", "o", word] for word in words)]


@every_shell
def test_what_the_scheduler_wrote_about_an_attempt_is_told_with_its_status(agent):
    line = ["u/e", 1, "t1"]
    agent.run("claim", "R1", lines=[line])
    agent.run("submit", "R1", lines=[[*line, 'echo "killed: too big" >"$WT_SAID"']])
    assert agent.run("status", lines=[line]) == [["u/e", "submitted"], ["", "e", "killed: too big"]]
    (place(agent) / "exit").write_text("code=0\nwhole=yes\n")
    assert agent.run("status", lines=[line])[0][:3] == ["u/e", "exit", "code=0"] and not agent.run("status", lines=[line])[1:]


@every_shell
def test_a_failure_that_was_slow_in_coming_speaks_for_the_rest_which_are_claims_again(agent):
    lines = [[f"u/e{n}", 1, f"t{n}"] for n in range(12)]
    agent.run("claim", "R1", lines=lines)
    (agent.data / ".watchties.slow.4194305").touch()  # of one that was killed: no process has so high a number (proc(5), pid_max)
    answers = agent.run("submit", "R1", lines=[[*line, f"{LOG}; sleep 4.5; exit 1"] for line in lines])
    assert not list(agent.data.glob(".watchties.slow.*"))
    words = [answer[1] for answer in answers if answer[0]]
    assert words == ["replied"] * 4 + ["later"] * 8 and len(submissions(agent)) == 4
    claims = agent.run("claim", "R2", lines=lines)
    assert [answer[1] for answer in claims if answer[0]] == ["done"] * 4 + ["held"] * 8
