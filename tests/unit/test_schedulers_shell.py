"""schedulers/: the protocol, and the scheduler of a plain host, whose commands run here for real."""

import inspect
import os
import signal
import subprocess
import secrets
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import put, wait_for  # noqa: E402

from watchties import schedulers  # noqa: E402
from watchties.errors import UserError  # noqa: E402
from watchties.schedulers import Entry, NotNow, QueryFailed, Refused, Submitted, Unknown  # noqa: E402
from watchties.schedulers import shell as plain  # noqa: E402

PROTOCOL = {
    "submit_command": ["job", "resources", "options"], "parse_submit": ["code", "out", "err"],
    "find_command": ["names"], "parse_find": ["code", "out", "err", "names"],
    "query_command": ["ids"], "parse_query": ["code", "out", "err", "ids"], "cancel_command": ["id", "name"], "parse_said": ["text"],
}  # fmt: skip
SHELLS = [["dash"], ["bash"], ["busybox", "sh"]]


def sh(text, shell=("sh",), **env):
    done = subprocess.run([*shell, "-c", text], env=os.environ | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", schedulers.names())
def test_every_scheduler_has_the_whole_protocol(name):
    module = schedulers.get(name)
    assert {key: list(inspect.signature(getattr(module, key)).parameters) for key in PROTOCOL} == PROTOCOL


def test_an_unknown_scheduler_names_those_there_are():
    with pytest.raises(UserError, match="lsff is no scheduler; there are .*shell"):
        schedulers.get("lsff")


@pytest.fixture
def wrapper(tmp_path):
    """Start a stand-in for agent.sh through the submit command in a shell; yield (token, function that starts it)."""
    token, started = secrets.token_hex(8), []
    agent = put(tmp_path / "agent's dir/agent.sh", 'echo "$$ $*" >"$2/started"; sleep 60; true')
    job = tmp_path / "a job; $(touch x) 'q'"
    job.mkdir()

    def start(shell=("sh",)):
        text = plain.submit_command(None, {}, [])
        code, out, err = sh(text, shell, WT_AGENT=str(agent), WT_JOB=str(job), WT_ATTEMPT="1", WT_TOKEN=token)
        started.append(plain.parse_submit(code, out, err))
        wait_for((job / "started").exists)
        return started[-1].id, (job / "started")

    yield token, start
    for submitted in started:
        os.killpg(int(submitted.id), signal.SIGKILL)


@pytest.mark.parametrize("shell", SHELLS)
def test_submit_gives_the_wrapper_a_session_of_its_own_and_says_its_number(wrapper, shell):
    token, start = wrapper
    number, started = start(shell)
    pid, *words = wait_for(started.read_text).split(" ", 1)
    assert pid == number == str(os.getsid(int(number))) and words[0].startswith("wrapper ") and words[0].endswith(f" 1 {token}\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_wrapper_is_found_by_name_and_by_number(wrapper, shell):
    token, start = wrapper
    number, _ = start()
    name = schedulers.unique_name(token)
    text = plain.find_command([schedulers.unique_name("never-was"), name])
    assert plain.parse_find(*sh(text, shell), [name]) == {name: number}
    assert plain.parse_query(*sh(plain.query_command([number, "999999999"]), shell), [number, "999999999"]) == {number: Entry("running")}


@pytest.mark.parametrize("shell", SHELLS)
def test_looking_finds_neither_itself_nor_what_calls_it(shell):
    token, me = secrets.token_hex(8), str(os.getpid())
    text = f"sh -c {plain.shlex.quote(plain.find_command([schedulers.unique_name(token)]))} wrapper; true"
    assert plain.parse_find(*sh(text, shell), [schedulers.unique_name(token)]) == {}
    assert plain.parse_query(*sh(plain.query_command([me]) + "; true", shell), [me]) in ({}, {me: Entry("running")})


def test_a_token_with_characters_of_a_pattern_is_only_itself():
    name = schedulers.unique_name("a.b*c")
    process = subprocess.Popen(["sh", "-c", "sleep 60; true", "wrapper", "aXbbc"])
    try:
        assert plain.parse_find(*sh(plain.find_command([name])), [name]) == {}
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("out", ["", "wt.a /proc/12/cmdline\n"])
@pytest.mark.parametrize("parse", [plain.parse_find, plain.parse_query])
def test_an_answer_without_the_proof_that_it_looked_is_no_answer(parse, out):
    with pytest.raises(QueryFailed):
        parse(0, out, "", ["1"])


@pytest.mark.parametrize("parse", [plain.parse_find, plain.parse_query])
def test_a_query_that_failed_is_no_answer(parse):
    with pytest.raises(QueryFailed, match="ended with 3.*no /proc"):
        parse(3, "/proc/self/cmdline\n", "no /proc", ["1"])


def test_without_grep_nothing_is_known(tmp_path):
    code, out, err = sh(plain.query_command(["1"]), ("/bin/sh",), PATH=str(tmp_path))
    with pytest.raises(QueryFailed, match="grep"):
        plain.parse_query(code, out, err, ["1"])


def test_nothing_to_ask_is_no_question():
    assert plain.query_command([]) == "" and plain.query_command(["no number"]) == ""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((0, "4711\n", ""), Submitted("4711")),
        ((0, "Welcome!\n4711\n", "noise"), Submitted("4711")),
        ((0, "", ""), Unknown("no process number in 'nothing'")),
        ((0, "4711\nbye\n", ""), Unknown("no process number in '4711\\nbye'")),
        ((2, "", "sh: 1: Cannot fork\n"), NotNow("sh: 1: Cannot fork")),
        ((254, "", "bash: fork: retry: Resource temporarily unavailable"), NotNow("bash: fork: retry: Resource temporarily unavailable")),
        ((127, "", "sh: setsid: not found"), Refused("exit code 127: sh: setsid: not found")),
        ((126, "", "cd: can't cd to /nowhere"), Refused("exit code 126: cd: can't cd to /nowhere")),
        ((137, "", "Killed"), Unknown("exit code 137: Killed")),
        ((1, "4711\n", "write error"), Unknown("exit code 1: write error")),
    ],
)
def test_answers_to_submit(answer, said):
    assert plain.parse_submit(*answer) == said


def test_the_agent_alone_ends_a_session():
    assert plain.cancel_command("12", "wt.t") == ""
