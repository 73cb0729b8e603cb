"""schedulers/__init__: several commands in one text, and what each of them said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_kit import every_shell  # noqa: E402

from watchties.schedulers import QueryFailed, Submitted, get, names, parse_parts, parts  # noqa: E402

TEXT = parts({"one": "echo a; echo b >&2; (exit 3)", "two": "printf c"})


def said(sh):
    done = subprocess.run([*sh, "-c", TEXT], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ)
    return done.stdout, done.stderr


@every_shell
def test_each_part_has_its_own_exit_code_and_streams(sh):
    assert parse_parts(*said(sh), ["one", "two"]) == {"one": (3, "a", "b"), "two": (0, "c", "")}


def test_an_answer_that_is_cut_anywhere_is_no_answer():
    out, err = said(["sh"])
    for cut in range(len(out) - 1):
        with pytest.raises(QueryFailed, match="cut off before the end of"):
            parse_parts(out[:cut], err, ["one", "two"])
    for cut in range(len(err) - 1):
        with pytest.raises(QueryFailed, match="cut off before the end of"):
            parse_parts(out, err[:cut], ["one", "two"])


@pytest.mark.parametrize("name", names())
def test_a_bare_id_that_was_found_by_name_and_adopted_is_a_submission(name):
    """`agent adopt` stores what parse_find has found where the reply never came; the next claim hands it to parse_submit."""
    for number in ("4711", "4711.pbs01.lab.example") if name == "pbs" else ("4711",):
        assert get(name).parse_submit(0, number, "") == Submitted(number)
