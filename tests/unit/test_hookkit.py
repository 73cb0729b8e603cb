"""hookkit.py, shell.py, retry.py: a hook's side of the contract. Real processes, real files."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import make_site, put, read_rows, runs, wait_for  # noqa: E402

from watchties import retry, shell, ssh  # noqa: E402
from watchties.errors import CommandFailed, NotNow, Transient, Unreachable, WatchtiesError  # noqa: E402
from watchties.hookkit import Job  # noqa: E402

BEGIN = "#!/usr/bin/env python3\nimport os, sys, time\nfrom watchties import errors, hookkit\ndef main(run):\n"
END = '\nif __name__ == "__main__":\n    hookkit.main(main)\n'


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


def run(site, body, jobs=("ann/e1",), **env):
    """Run a hook with that body on jobs, and return how it Ended."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    put(site.base / "hooks/own", BEGIN + lines + END).chmod(0o755)
    return site.run_hook("own", [site.job(name) for name in jobs], hooks=site.base / "hooks", **env)


# ---- outcomes and exit codes ----


def test_what_a_hook_says_of_each_job_stands_in_the_results_file(site):
    body = "a, b, c = run.jobs\nrun.done(a, id=7)\nrun.retry(b, 'not\\nyet', asked=1)\nrun.failed(c, 'no', cause='rejected')"
    ended = run(site, body, ["a/1", "a/2", "a/3"])
    assert ended.code == 0
    assert ended.rows == [
        {"tree": "ties", "job": "a/1", "outcome": "done", "reason": "", "fields": {"id": 7}},
        {"tree": "ties", "job": "a/2", "outcome": "retry", "reason": "not yet", "fields": {"asked": 1}},
        {"tree": "ties", "job": "a/3", "outcome": "failed", "reason": "no", "fields": {"cause": "rejected"}},
    ]


def test_the_run_knows_what_the_environment_tells(site):
    site.config["rule"] = [{"name": "special", "timeout": 7.0}]
    body = "j = run.jobs[0]\nrun.done(j, all=[run.rule, run.host, run.timeout, run.grace, j.dir, j.id, run.config['home']])"
    ended = run(site, body, rule="special", host="b01")
    assert ended.fields("ann/e1")["all"] == ["special", "b01", 7.0, 60.0, str(site.mirror / "ann/e1"), "ties:ann/e1", str(site.home)]


def test_a_job_line_of_a_newer_watchties_is_read(site):
    job = Job.parse(json.dumps(site.job("a/b", new_key=1, identity=17, ended=None)))
    assert job.identity == "17" and job.ended == {}


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        ("pass", 0, None),
        ("raise errors.WatchtiesError('bad\\nluck')", 1, "bad luck"),
        ("raise errors.UserError('bad use')", 2, "bad use"),
        ("raise errors.NotNow('the lock is held')", 75, "the lock is held"),
        ("raise errors.CommandFailed(['bsub', 'x y'], 9, 'out', 'err', 'why')", 1, "bsub ended with 9 (why): err"),
        ("raise errors.CommandFailed(['bsub'], 9, transient=True)", 75, "bsub ended with 9"),
        ("raise OSError(28, 'No space left on device', '/x')", 75, "[Errno 28] No space left on device: '/x'"),
        ("raise OSError(107, 'Transport endpoint is not connected', '/x')", 75, "[Errno 107] Transport endpoint is not connected: '/x'"),
        ("raise OSError(13, 'Permission denied', '/x')", 75, "[Errno 13] Permission denied: '/x'"),
        ("raise OSError(2, 'No such file or directory', '/x')", 1, "[Errno 2] No such file or directory: '/x'"),
        ("raise SystemExit(9)", 9, None),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_exit_code_and_last_line_on_standard_error(site, body, code, last):
    ended = run(site, body)
    assert ended.code == code and (ended.err.splitlines()[-1:] or [None])[-1] == last


def test_details_of_a_command_that_failed_come_before_the_reason(site):
    ended = run(site, "raise errors.CommandFailed(['bsub', 'x y'], 9, 'said', 'wept', 'why')")
    assert ended.err.splitlines()[:-1] == ["command: bsub 'x y'", "exit code: 9 why", "stdout: said", "stderr: wept"]


def test_a_host_that_is_down_costs_unsettled_jobs_nothing(site):
    ended = run(site, "run.done(run.jobs[0])\nraise errors.Unreachable('host b01 did not answer')", ["a/1", "a/2"])
    assert ended.code == 75 and ended.outcome("a/1") == "done"
    assert (ended.outcome("a/2"), ended.reason("a/2"), ended.fields("a/2")) == ("retry", "host b01 did not answer", {"host_down": True})


def test_what_is_settled_counts_though_the_hook_is_killed(site):
    ended = run(site, "run.done(run.jobs[0])\nos.kill(os.getpid(), 9)", ["a/1", "a/2"])
    assert ended.code == -9 and [row["job"] for row in ended.rows] == ["a/1"]


def test_what_is_settled_together_is_written_as_one_and_also_if_something_breaks_meanwhile(site):
    count = "import os as o\nreal, calls = o.fsync, []\no.fsync = lambda fd: (calls.append(fd), real(fd))\n"
    body = count + "with run.together():\n    for job in run.jobs:\n        run.done(job)\n    assert not calls\n    raise KeyError"
    ended = run(site, body, ["a/1", "a/2"])
    assert ended.code == 1 and [row["job"] for row in ended.rows] == ["a/1", "a/2"]


def test_not_carried_is_given_up_after_a_few_times(site):
    body = "run.not_carried(run.jobs[0], errors.CommandFailed(['rsync'], 23, err='x: Permission denied'))"
    ended = run(site, body)
    assert ended.outcome("ann/e1") == "retry" and ended.fields("ann/e1") == {"not_carried": 1}
    last = site.job("ann/e1", fields={"not_carried": 4})
    ended = site.run_hook("own", [last], hooks=site.base / "hooks")
    assert (ended.outcome("ann/e1"), ended.fields("ann/e1")) == ("failed", {"cause": "infrastructure"})
    assert "Permission denied" in ended.reason("ann/e1")


def test_a_full_disk_is_never_given_up(site):
    body = "run.not_carried(run.jobs[0], errors.CommandFailed(['rsync'], 11, transient=True))"
    run(site, body)
    assert site.run_hook("own", [site.job("a/b", fields={"not_carried": 400})], hooks=site.base / "hooks").outcome("a/b") == "retry"


def test_it_also_runs_as_the_forkserver_runs_it(site):
    put(site.base / "hooks/own", BEGIN + "    run.done(run.jobs[0])\n    raise errors.NotNow('later')" + END)
    env, result = site.prepare("own", [site.job("a/b")])
    code = f"from watchties import hookstart; raise SystemExit(hookstart.run_file({str(site.base / 'hooks/own')!r}))"
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 75
    assert read_rows(result)[0]["outcome"] == "done"


def test_started_by_hand_it_says_what_to_do():
    env = {key: value for key, value in os.environ.items() if not key.startswith("WATCHTIES_")}
    hook = Path(__file__).resolve().parents[2] / "hooks/report"
    ended = subprocess.run([sys.executable, str(hook)], env=env, capture_output=True, text=True)
    assert ended.returncode == 2 and "watchties run-hook RULE JOB" in ended.stderr and len(ended.stderr.splitlines()) == 1


# ---- commands ----


def test_streams_and_exit_code_come_back_whole():
    data = os.urandom(3_000_000)
    whole = data.decode("utf-8", "surrogateescape")
    assert shell.run(["sh", "-c", "cat; echo e >&2; exit 255"], timeout=20, stdin=data) == (255, whole, "e\n")


def test_odd_bytes_travel_by_input():
    odd = "a\udcff b\n"
    assert shell.run(["cat"], timeout=20, stdin=odd).out == odd


def test_a_command_that_cannot_be_started_is_told_in_one_line():
    with pytest.raises(CommandFailed, match="^cat ended with 255 .could not be started.: .*Argument list too long"):
        shell.run(["cat", "x" * 200_000], timeout=5)


def test_a_child_that_is_killed_before_it_is_a_program_costs_no_job_its_attempt(monkeypatch):
    """As one is at any moment, where memory is short; sh then finds nothing where its child says its number."""
    child, parent = os.fork, os.getpid()
    monkeypatch.setattr(os, "fork", lambda: child() or os.getpid() == parent or os.kill(os.getpid(), 9))
    with pytest.raises(CommandFailed, match="killed before it had become that program") as caught:
        shell.run(["cat"], timeout=20)
    assert caught.value.transient


def test_items_are_given_a_few_at_a_time():
    assert [len(some) for some in shell.chunks([str(n) for n in range(250)])] == [50] * 5 and list(shell.chunks([])) == []


@pytest.mark.parametrize("item", ["d" * 4000, "'" * 500])
def test_long_items_are_given_so_many_at_a_time_as_fit_into_one_word_for_ssh(item):
    items, far = [f"{item}{n}" for n in range(100)], ssh.Far("b01", "b01", "/tmp")
    several = list(shell.chunks(items))
    assert [item for some in several for item in some] == items and len(several) < 50
    for some in several:
        word = ssh.argv(far, ssh.frame("0" * 16, "/tmp", f"echo {shlex.join(some)}"))[-1]
        assert subprocess.run(["sh", "-c", word], capture_output=True, text=True, check=True).stdout


def test_nothing_is_standard_input_unless_given():
    assert shell.run(["cat"], timeout=20) == (0, "", "")


def test_killed_by_a_signal_is_128_and_the_signal():
    assert shell.run(["sh", "-c", "kill -9 $$"], timeout=20).code == 137


def test_a_command_starts_without_a_tenth_of_a_second_of_waiting():
    def seconds():
        begin = time.monotonic()
        shell.run(["true"], timeout=20)
        return time.monotonic() - begin

    assert min(seconds() for _ in range(20)) < 0.08  # `sh` with its own _timeout never takes less than 0.1


def test_a_time_limit_stops_the_command(tmp_path):
    with pytest.raises(CommandFailed, match="not done after 0.3 s, stopped") as caught:
        shell.run(["sh", "-c", f"echo $$ >{tmp_path}/pid; exec sleep 60"], timeout=0.3)
    assert caught.value.transient
    wait_for(lambda: not runs(int((tmp_path / "pid").read_text())), 5)


def test_a_command_that_never_stops_talking_is_stopped_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(shell, "MOST", 1 << 20)
    with pytest.raises(CommandFailed, match="^sh ended with 137 .it said more than 1 MB, stopped.$") as caught:
        shell.run(["sh", "-c", "while :; do head -c 100000 /dev/zero; sleep 0.1; done"], timeout=60)
    assert caught.value.transient


def test_a_command_that_is_missing_is_one_clear_line():
    with pytest.raises(WatchtiesError, match="^no-such-thing is not on this machine: install the package no-such-thing"):
        shell.run(["no-such-thing"], timeout=5)


def test_a_far_command_runs_in_the_root_and_its_exit_code_is_its_own(tmp_path):
    far = ssh.Far("b01", root=str(tmp_path))
    assert shell.far(far, "pwd; cat; echo e >&2; exit 255", stdin="in") == (255, f"{tmp_path}\nin", "e\n")


def test_a_far_root_that_is_missing_is_the_hosts_fault(tmp_path):
    with pytest.raises(Unreachable, match="host b01 is there, but its compties directory is not"):
        shell.far(ssh.Far("b01", root=str(tmp_path / "gone")), "true")


# ---- tries ----


class Flaky:
    """Fails as often as there are errors, then returns "well"."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self, value="well"):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return value


def test_what_is_transient_is_tried_again(capsys):
    flaky, pauses = Flaky(Transient("one"), Transient("two")), []
    assert retry.network(flaky, "fine", sleep=pauses.append) == "fine" and flaky.calls == 3
    assert len(pauses) == 2 and all(0 <= pause <= 8 for pause in pauses) and "try 2: two" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "calls"), [(Transient("x"), 4), (Unreachable("x"), 2), (NotNow("x"), 1), (WatchtiesError("x"), 1), (ValueError("x"), 1)]
)
def test_how_often_depends_on_the_type_alone(error, calls):
    flaky = Flaky(*[error] * 9)
    with pytest.raises(type(error)) as caught:
        retry.network(flaky, sleep=lambda seconds: None)
    assert flaky.calls == calls and caught.value is error
