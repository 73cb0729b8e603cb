"""The command line by itself: help, options, places, names of jobs, tables, errors, what is imported when."""

import json
import os
import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from watchties import checks, hookfiles, hostanswers
from watchties.cli import COMMANDS, main
from watchties.cli.common import Places, aligned, width
from watchties.cli.logs import Following, Picker
from watchties.cli.names import Names
from watchties.errors import CommandFailed, ConfigError, Unreachable, UserError
from watchties.journal import Journal
from watchties.model import JobId

RULES = os.path.join(os.path.dirname(__file__), "..", "..", "conf.d", "30-rules.toml")


def call(*args, **options):
    return CliRunner().invoke(main, [str(arg) for arg in args], **options)


def contexts(line):
    """Return the Context of the command in a line as it would be typed, parsed but not called."""
    words = shlex.split(line)
    assert words[0] == "watchties"
    outer = main.make_context("watchties", words[1:])
    name, command, rest = main.resolve_command(outer, [*getattr(outer, "_protected_args", ()), *outer.args])
    return command.make_context(name, rest, parent=outer)


# ---- help ----


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_that_parse(name):
    shown = call(name, "--help")
    assert shown.exit_code == 0, shown.output
    examples = [line.strip() for line in shown.output.partition("Example:")[2].splitlines() if line.strip().startswith("watchties ")]
    assert examples, "an example is missing"
    for example in examples:
        assert contexts(example).info_name == name
    assert len(max(shown.output.splitlines(), key=len)) <= 80


def test_the_first_help_fits_a_narrow_terminal():
    assert len(max(call("--help").output.splitlines(), key=len)) <= 80


def test_help_lists_every_command_with_the_text_of_the_table():
    shown = " ".join(call("--help").output.split())
    for name, (_, text) in COMMANDS.items():
        assert f"{name} {text}" in shown


def test_every_option_has_a_help():
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert all(option.help for option in command.params if isinstance(option, click.Option)), name


def test_no_command_of_that_name_names_the_nearest():
    shown = call("statusu")
    assert shown.exit_code == 2 and "did you mean status?" in shown.output


def test_shell_completion_of_commands_and_of_jobs(tmp_path):
    journal(tmp_path / "state", [("main", "ann/Exp 1", "DONE"), ("main", "bob/b", "DONE")])
    env = {**os.environ, "_WATCHTIES_COMPLETE": "bash_complete", "WATCHTIES_STATE_DIR": str(tmp_path / "state")}

    def completed(words):
        asked = env | {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        done = subprocess.run([sys.executable, "-c", "from watchties.cli import main; main(prog_name='watchties')"],
                              env=asked, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("watchties re") == ["requeue", "rebuild"]
    assert completed("watchties requeue ") == ["ann/Exp 1", "bob/b"]
    assert completed("watchties cancel bo") == ["bob/b"]


def test_the_light_commands_import_nothing_heavy(tmp_path):
    journal(tmp_path, [("main", "ann/a", "DONE")])
    heavy = "pydantic asyncio rich sh tenacity watchdog inotify_simple"
    code = ("import sys; from watchties.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit as e: assert not e.code, e.code\n"
            f"print(*sorted(set(sys.modules) & set('{heavy}'.split())), file=sys.stderr)")
    for args in (["--help"], ["--state", str(tmp_path), "status", "--all"], ["requeue", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stderr.strip() == "", (args, done.stderr)


# ---- errors ----


def failing(monkeypatch, error):
    @click.command("status")
    def broken():
        raise error

    monkeypatch.setattr("watchties.cli.status.status", broken)
    return call("status")


def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(monkeypatch):
    shown = failing(monkeypatch, UserError("no such thing; do that"))
    assert (shown.exit_code, shown.output) == (2, "watchties: no such thing; do that\n")


def test_every_problem_of_a_configuration_has_its_line(monkeypatch):
    shown = failing(monkeypatch, ConfigError(["a: wrong", "b: wrong"]))
    assert (shown.exit_code, shown.output) == (2, "watchties: a: wrong\nwatchties: b: wrong\n")


def test_another_failure_is_exit_code_1_with_details(monkeypatch):
    assert failing(monkeypatch, Unreachable("host b01 did not answer")).exit_code == 1
    shown = failing(monkeypatch, CommandFailed(["rsync", "a b"], 23, "", "no room", "partial"))
    assert shown.exit_code == 1 and "command: rsync 'a b'" in shown.output and "stderr: no room" in shown.output


def test_an_error_of_the_system_is_one_line(monkeypatch):
    shown = failing(monkeypatch, PermissionError(13, "Permission denied", "/etc/shadow"))
    assert (shown.exit_code, shown.output) == (1, "watchties: /etc/shadow: Permission denied\n")


def test_nobody_reads_any_more_is_silent():
    process = subprocess.Popen([sys.executable, "-m", "watchties.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(30)


# ---- places ----


def test_options_before_and_after_the_command_and_the_environment(tmp_path):
    journal(tmp_path / "one", [("main", "ann/one", "DONE")])
    journal(tmp_path / "two", [("main", "ann/two", "DONE")])
    one, two = tmp_path / "one", tmp_path / "two"
    assert "ann/one" in call("--state", one, "status", "--all").output
    assert "ann/two" in call("status", "--all", "--state", two).output
    assert "ann/two" in call("--state", one, "status", "--all", "--state", two).output, "the later one counts"
    assert "ann/one" in call("status", "--all", env={"WATCHTIES_STATE_DIR": str(one)}).output
    assert "ann/two" in call("--state", two, "status", "--all", env={"WATCHTIES_STATE_DIR": str(one)}).output
    assert "ann/two" in call("status", "--all", "--state", two, env={"WATCHTIES_STATE_DIR": str(one)}).output


def test_the_usual_places(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    places = Places.of(None, None)
    assert places == Places(str(tmp_path / "c/watchties/conf.d"), str(tmp_path / "s/watchties"))
    assert places.hooks == str(tmp_path / "c/watchties/hooks")


def test_without_a_journal_status_says_what_to_do(tmp_path):
    shown = call("--state", tmp_path, "status")
    assert shown.exit_code == 2 and "start one: watchties run" in shown.output and len(shown.output.splitlines()) == 1


# ---- status from a journal ----


def journal(state, rows):
    """Make a journal with rows of (tree, job, state) or (tree, job, state, waiting_on)."""
    book = Journal(os.path.join(state, "journal.sqlite"))
    book.put_many([(tree, job, phase, 1, "b01", "", 1.7e9 + n, "".join(rest)) for n, (tree, job, phase, *rest) in enumerate(rows)])
    book.close()


ROWS = [("main", "ann/Exp 1", "SUBMITTED", "it runs or waits on b01"), ("main", "ann/old", "DONE"), ("main", "bob/b", "FAILED"),
        ("two", "bob/late", "DONE", "push is tried again: no room"), ("two", "bob/p", "PENDING", "b01 is down")]


def listed(*args):
    shown = call(*args, "--json")
    assert shown.exit_code == 0, shown.output
    return {row["job"] for row in json.loads(shown.stdout)["jobs"]}


def test_status_shows_what_something_is_left_to_do_for(tmp_path):
    journal(tmp_path, ROWS)
    assert listed("--state", tmp_path, "status") == {"ann/Exp 1", "bob/p", "bob/late"}
    assert listed("--state", tmp_path, "status", "--all") == {row[1] for row in ROWS}
    assert listed("--state", tmp_path, "status", "--in", "failed", "--in", "DONE") == {"ann/old", "bob/b", "bob/late"}
    assert listed("--state", tmp_path, "status", "--all", "--user", "ann") == {"ann/Exp 1", "ann/old"}
    assert listed("--state", tmp_path, "status", "--user", "an") == set()
    assert len(listed("--state", tmp_path, "status", "--all", "--limit", 2)) == 2


def test_status_in_plain_columns_says_why_a_job_waits(tmp_path):
    journal(tmp_path, ROWS)
    lines = call("--state", tmp_path, "status").output.splitlines()
    assert lines[0] == "no daemon is at work; start it: watchties run"
    assert lines[1] == "1 PENDING, 1 SUBMITTED, 2 DONE, 1 FAILED"
    row = next(line for line in lines if line.startswith("two:bob/p "))
    assert row.endswith("b01 is down") and row.index("PENDING") == lines[3].index("STATE")


def test_columns_are_aligned_also_for_wide_and_combining_letters():
    assert width("実験") == 4 and width("e\u0301") == 1
    lines = aligned([("実験", "x"), ("e\u0301a", "y"), ("long name", "z")])
    assert [width(line[: line.index(mark)]) for line, mark in zip(lines, "xyz")] == [11, 11, 11]


def test_a_terminal_that_is_not_utf8_still_gets_an_answer(tmp_path):
    journal(tmp_path, [("main", "zoë/Exp", "PENDING")])
    env = {**os.environ, "PYTHONIOENCODING": "iso8859-7"}
    for more in [], ["--json"]:
        words = [sys.executable, "-m", "watchties.cli", "--state", str(tmp_path), "status", *more]
        done = subprocess.run(words, env=env, capture_output=True, timeout=60)
        assert done.returncode == 0 and b"zo\\" in done.stdout
    assert json.loads(done.stdout)["jobs"][0]["job"] == "zoë/Exp"


# ---- names of jobs ----


@pytest.fixture
def mirrors(tmp_path):
    """Two trees; ann/same is in both."""
    for path in ("a/ann/same", "a/ann/Exp 1/plots", "a/bob/only", "b/ann/same", "b/zoë/x:y"):
        (tmp_path / path).mkdir(parents=True)
    return {"one": (str(tmp_path / "a"), "*/*"), "two": (str(tmp_path / "b"), "*/*")}


def test_names_of_jobs(mirrors, tmp_path, monkeypatch):
    find = Names(mirrors).find
    assert find("bob/only") == JobId("one", "bob/only")
    assert find("two:ann/same") == JobId("two", "ann/same")
    assert find("zoë/x:y") == JobId("two", "zoë/x:y")
    assert find(str(tmp_path / "a/ann/Exp 1")) == JobId("one", "ann/Exp 1")
    assert find(str(tmp_path / "a/ann/Exp 1/plots")) == JobId("one", "ann/Exp 1"), "a path within a job is the job's"
    monkeypatch.chdir(tmp_path / "b/ann")
    assert find("same") == find("./same") == find("same/") == JobId("two", "ann/same")
    monkeypatch.chdir(tmp_path / "b/ann/same")
    assert find(".") == JobId("two", "ann/same")


def test_a_path_through_a_link_to_the_mirror_is_found(mirrors, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert Names(mirrors).find(str(tmp_path / "link/bob/only")) == JobId("one", "bob/only")
    linked = {"one": (str(tmp_path / "link"), "*/*")}
    assert Names(linked).find(str(tmp_path / "a/bob/only")) == JobId("one", "bob/only"), "the mirror's root may be the link"


def test_an_ambiguous_name_names_the_candidates(mirrors):
    with pytest.raises(UserError, match="one:ann/same, two:ann/same"):
        Names(mirrors).find("ann/same")


def test_an_unknown_name_names_the_nearest(mirrors):
    with pytest.raises(UserError, match="did you mean one:bob/only"):
        Names(mirrors).find("bob/onyl")
    with pytest.raises(UserError, match="JOB is USER/EXPERIMENT"):
        Names(mirrors).find("qqqqqq")


def test_names_of_the_journal_count_too(mirrors, tmp_path):
    journal(tmp_path, [("one", "ann/gone", "DONE"), ("two", "eve/gone too", "DONE")])
    names = Names(mirrors, Places("", str(tmp_path)).reader())
    assert names.find("ann/gone") == JobId("one", "ann/gone")
    assert names.find("gone too") == JobId("two", "eve/gone too")
    with pytest.raises(UserError, match="one:ann/gone is not in the mirror"):
        names.find_on_disk("ann/gone")


@pytest.mark.parametrize("bad", ["../a", "/etc", "ann/../bob/only", "-x/y", ".", "", "ann", "ann/Exp 1/plots", "a\nb/c"])
def test_what_is_no_job_is_refused(mirrors, bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        Names(mirrors).find(bad)


# ---- logs ----


def lines_for(job, text):
    picker = Picker(job)
    return [got for line in text.splitlines() for got in picker.take(line)]


LOG = """\
2026-01-01 10:00:00.000 push-1 start host=vision jobs=2: main:ann/a, main:ann/a b
2026-01-01 10:00:00.100 push-2 start host=vision jobs=1: main:ann/a b
2026-01-01 10:00:01.000 push-1 hello from the first
2026-01-01 10:00:01.100 push-2 hello from the second
2026-01-01 10:00:02.000 push-1 job main:ann/a done
2026-01-01 10:00:02.000 push-1 job main:ann/a b failed: no room
2026-01-01 10:00:02.000 push-1 end host=vision done=1 failed=1 exit=0 seconds=2.00
2026-01-01 10:00:02.100 push-2 job main:ann/a b done
2026-01-01 10:00:02.100 push-2 end host=vision done=1 exit=0 seconds=2.00
"""


def test_logs_of_a_job_are_its_runs_without_the_outcomes_of_others():
    mine = lines_for(JobId("main", "ann/a"), LOG)
    assert [line.split(" ", 2)[2] for line in mine] == [
        "push-1 start host=vision jobs=2: main:ann/a, main:ann/a b", "push-1 hello from the first", "push-1 job main:ann/a done",
        "push-1 end host=vision done=1 failed=1 exit=0 seconds=2.00"]
    others = lines_for(JobId("main", "ann/a b"), LOG)
    assert sum(" push-2 " in line for line in others) == 4 and sum(" push-1 " in line for line in others) == 4


def test_a_job_that_the_start_line_of_a_large_run_does_not_name_is_found():
    head = "2026-01-01 10:00:00.000 pull-1 start host=v jobs=30: main:a/1 and 29 more\n2026-01-01 10:00:00.500 pull-1 hello\n"
    tail = "2026-01-01 10:00:01.000 pull-1 job main:a/29 done\n2026-01-01 10:00:01.000 pull-1 end host=v done=30 exit=0 seconds=1.00\n"
    assert lines_for(JobId("main", "a/29"), head + tail) == (head + tail).splitlines()
    assert lines_for(JobId("main", "a/2"), head + tail) == []


def test_what_was_rotated_before_is_shown_first(tmp_path):
    (tmp_path / "push.log").write_text("2026-01-01 10:00:02.000 b 2\n")
    (tmp_path / "push.log.20260101T100001").write_text("2026-01-01 10:00:00.000 a 1\n")
    (tmp_path / "push.log.txt").write_text("2026-01-01 10:00:00.000 a 9\n")
    following = Following(str(tmp_path), "push", None)
    assert [line[-1] for line in following.new_lines()] == ["1", "2"]
    following.close()


def test_following_goes_over_rotation_and_loses_no_line(tmp_path):
    log = tmp_path / "push.log"
    log.write_text("2026-01-01 10:00:00.000 a 1\n2026-01-01 10:00:00.100 a 2")
    following = Following(str(tmp_path), None, None)
    assert following.new_lines() == ["2026-01-01 10:00:00.000 a 1"]
    with open(log, "a") as file:
        file.write("\n2026-01-01 10:00:01.000 a 3\n")
    os.rename(log, f"{log}.20260101T100001")
    log.write_text("2026-01-01 10:00:02.000 b 4\n")
    (tmp_path / "pull.log").write_text("2026-01-01 10:00:01.500 c 5\n")
    assert [line[-1] for line in following.new_lines()] == ["2", "3", "5", "4"], "a line that was half written is whole; all by time"
    os.unlink(f"{log}.20260101T100001")
    assert following.new_lines() == []
    following.close()


# ---- hooks' files, and what a host says ----


def test_own_hooks_come_first_and_must_be_safe(tmp_path):
    hooks = tmp_path / "hooks"
    hooks.mkdir(mode=0o755)
    own = hooks / "push"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    found = hookfiles.find_all(["push", "pull"], ["push", "pull"], str(hooks))
    assert found["push"] == str(own) and found["pull"].startswith(hookfiles.folders("")[1])
    own.chmod(0o777)
    with pytest.raises(ConfigError, match=re.escape(f"run: chmod go-w {own}")):
        hookfiles.find_all(["push"], ["push"], str(hooks))
    with pytest.raises(ConfigError, match="hook nosuch is not in"):
        hookfiles.find_all(["nosuch"], ["mine"], str(tmp_path / "none"))


def test_a_hook_elsewhere_that_others_may_write_to_is_refused(tmp_path):
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o757)
    with pytest.raises(ConfigError, match="others may write to it"):
        hookfiles.find_all([str(hook)], ["mine"], str(tmp_path / "hooks"))


@pytest.mark.parametrize("said, ok", [("rsync  version 3.2.7  protocol version 31", True), ("rsync  version v3.1.3", True),
                                      ("rsync  version 3.1.2  protocol", False), ("openrsync: protocol version 29", False), ("", False)])
def test_the_version_of_rsync(said, ok):
    assert checks.rsync("here", said).ok is ok


def test_what_a_host_says_is_judged_with_a_remedy_each():
    class Web:
        role, trigger, scheduler = "web", "relay", None

    answers = [("agent", "agent 0"), ("rsync", ""), ("python", "3.5.1"), ("relay", ""), ("find", "BusyBox"), ("free", "10", "user_data"),
               ("missing", "bin"), ("closed", "user_data"), ("lacking", "flock")]
    wrong = [finding for finding in hostanswers.judged("host v", "v", Web, answers) if finding.ok is False]
    assert len(wrong) == 9 and all(finding.remedy for finding in wrong)
    assert "run: watchties deploy v" in wrong[0].line() and wrong[0].line().startswith("WRONG  host v: ")


def test_the_light_reading_of_trees_says_what_is_wrong(tmp_path):
    places = Places(str(tmp_path), str(tmp_path))
    (tmp_path / "20-trees.toml").write_text('[tree.main]\nweb = "v"\n')
    with pytest.raises(ConfigError, match="run: watchties check"):
        places.trees()
    (tmp_path / "20-trees.toml").write_text('[tree.main]\nroot = "~/x/../y"\n')
    assert places.trees() == {"main": (os.path.expanduser("~/y"), "*/*")}


def test_nothing_to_read_is_said_in_one_line():
    shown = call("--config", "/nonexistent/x", "requeue", "a/b").output
    assert shown == "watchties: /nonexistent/x: cannot be read (No such file or directory); `watchties init` makes a configuration\n"
