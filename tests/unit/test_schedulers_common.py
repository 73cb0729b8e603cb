"""schedulers/__init__: several commands in one text, and what each of them said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_kit import every_shell  # noqa: E402

from watchties import ssh  # noqa: E402
from watchties.agent import Agent  # noqa: E402
from watchties.schedulers import QueryFailed, Submitted, get, names, parse_parts, parts, sge  # noqa: E402

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


@pytest.mark.parametrize("name", names())
def test_a_query_of_thousands_of_jobs_fits_into_one_word_of_a_command_line(name):
    far = ssh.Far("elgato", ssh="webapp@elgato")
    query = get(name).query_command([str(10_000_000 + number) for number in range(2000)])  # as many as poll takes at once
    text = Agent(far, "user_data")._text("status", [query])
    word = max(ssh.argv(far, ssh.frame(ssh.new_nonce(), far.root, text)), key=len)
    assert subprocess.run(["true", word], check=False).returncode == 0 and len(word) < 128 * 1024 * 3 // 4  # some for a host's setup


SGE = """capped() { shift; "$@"; }
qstat() { echo '<?xml version="1.0"?><a><job_list><JB_job_number>11</JB_job_number><state>r</state><JB_name>wt.a</JB_name></job_list></a>'; }
qacct() {
    [ "$2" = 12 ] || { echo "error: job id $2 not found" >&2; return 1; }
    printf '====\\njobnumber 12\\njobname wt.b\\nfailed 0\\nexit_status 3\\n'
}
"""


@every_shell
def test_sge_is_asked_for_the_account_of_each_job_that_its_queue_does_not_have(sh):
    text = SGE + sge.query_command(["11", "12", "13"])
    done = subprocess.run([*sh, "-c", text], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ, check=False)
    found = sge.parse_query(done.returncode, done.stdout, done.stderr, ["11", "12", "13"])
    assert {id: (entry.name, entry.ended) for id, entry in found.items()} == {"11": ("wt.a", False), "12": ("wt.b", True)}
