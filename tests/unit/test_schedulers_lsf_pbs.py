"""schedulers/lsf.py and pbs.py: an answer is parsed or refused, never guessed.

LSF is fed with what an LSF-compatible scheduler has said (tests/data/lsf); what is marked "manual" is after the manual.
PBS has no recordings: all its answers here are after the manual.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchties.schedulers import Entry, NotNow, QueryFailed, Refused, Submitted, Unknown, lsf, pbs

LINES = (Path(__file__).parents[1] / "data/lsf/openlava-4.0.jsonl").read_text(encoding="utf-8").splitlines()
RECORDED = {row["name"]: row for row in map(json.loads, LINES)}
ALL = {"cores": 4, "memory": 2 << 30, "walltime": 5400.0, "queue": "short", "account": "physics"}
COMMANDS = [lsf.submit_command(None, ALL, ["-x", "a b"]), lsf.submit_command(None, {}, []), lsf.find_command(["wt.a", "wt.b"]), lsf.query_command(["1", "2"]),
            lsf.cancel_command("1", "wt.a"), pbs.submit_command(None, ALL, ["-x", "a b"]), pbs.submit_command(None, {}, []),
            pbs.find_command(["wt.a", "wt.b"]), pbs.query_command(["1.s"]), pbs.cancel_command("1.s", "wt.a")]  # fmt: skip


def answer(name):
    row = RECORDED[name]
    return row["exit"], row["out"], row["err"]


def part(label, code, out, err):
    """Return one part of an answer as `parts` marks it, on both streams."""
    return out + f"\nwt-part {label} {code} end\n", err + f"\nwt-part {label} {code} end\n"


def listed(code, out, err, history=""):
    jobs, past = part("jobs", code, out, err), part("history", 0, history, "")
    return 0, jobs[0] + past[0], jobs[1] + past[1]


def rows(name):
    """Return the rows of a recorded `bjobs -o ... delimiter='|'` as they are with our fields and our delimiter."""
    table = [line.split("|") for line in RECORDED[name]["out"].splitlines()[1:]]
    return "".join(f"{r[0]}^{r[1]}^{r[2]}^{r[4]}\n" for r in table)


# ---- what is run ----


@pytest.mark.parametrize("module, number", [(lsf, "101"), (pbs, "101.fake01")])
def test_only_a_job_of_the_name_is_killed_as_its_number_may_be_another_ones_by_now(tmp_path, module, number):
    (tmp_path / "jobs").mkdir()
    path = f"{Path(__file__).parents[1] / 'fakes'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        job = {"id": "101", "name": "wt.other", "state": "RUN", "code": None, "pid": other.pid, "lost": False}
        (tmp_path / "jobs/101.json").write_text(json.dumps(job))
        for name, alive in ("wt.gone", True), ("wt.other", False):
            text = "capped() { shift; \"$@\"; }; " + module.cancel_command(number, name)
            subprocess.run(["sh", "-c", text], env=os.environ | {"FAKE_BATCH": str(tmp_path), "PATH": path}, check=False, timeout=60)
            if alive:
                with pytest.raises(subprocess.TimeoutExpired):
                    other.wait(0.2)
        assert other.wait(20) == -15


@pytest.mark.parametrize("text", COMMANDS)
@pytest.mark.parametrize("shell", [["dash", "-n"], ["bash", "-n"], ["busybox", "sh", "-n"]])
def test_every_command_is_shell_text_on_one_line(text, shell):
    assert "\n" not in text and "\t" not in text
    assert subprocess.run(shell, input=text, text=True, capture_output=True, timeout=20).stderr == ""


def test_lsf_is_asked_for_what_a_job_asks_for():
    text = lsf.submit_command(None, ALL, ["-R", "rusage[scratch=1]"])
    assert "bsub -n 4 -R 'span[hosts=1]' -M 2097152KB -W 90 -q short -P physics -R 'rusage[scratch=1]' -J \"$WT_NAME\"" in text
    assert "-W" not in lsf.submit_command(None, {"walltime": None}, [])


def test_pbs_is_asked_for_what_a_job_asks_for():
    text = pbs.submit_command(None, ALL, ["-W", "umask=022"])
    assert "qsub -l select=1:ncpus=4:mem=2097152kb -l walltime=01:30:00 -q short -A physics -r n -W umask=022 -S /bin/sh -N \"$WT_NAME\"" in text
    assert "select" not in pbs.submit_command(None, {"queue": "q"}, [])


# ---- LSF: submit ----


@pytest.mark.parametrize("name", [n for n, row in RECORDED.items() if "-bsub" in n and row["exit"] == 0 and "is submitted to" in row["out"]])
def test_lsf_took_it(name):
    said = lsf.parse_submit(*answer(name))
    assert said == Submitted(RECORDED[name]["out"].partition("<")[2].partition(">")[0])


@pytest.mark.parametrize("name", ["14-bsub-bad-queue", "15-bsub-no-command", "71-bsub-dep", "a0-bsub-root-refused"])
def test_lsf_refuses_in_its_own_words(name):
    assert lsf.parse_submit(*answer(name)) == Refused(RECORDED[name]["err"].strip())


@pytest.mark.parametrize("name", ["92-bsub-mbatchd-down", "94-bsub-all-down"])
def test_lsf_was_away_and_may_have_taken_it(name):
    assert isinstance(lsf.parse_submit(*answer(name)), Unknown)


@pytest.mark.parametrize(
    "code, out, err, kind",
    [
        (0, "", "", Unknown), (255, "", "", Unknown), (137, "", "", Unknown),  # ert #8089: exit code 0 and nothing said
        (0, "Welcome to elgato!\nJob <7> is submitted to queue <q>.\nbye\n", "", Submitted), (137, "Job <7> is submitted to queue <q>.\n", "", Submitted),
        (0, "Job <7> is submitted to queue <q>.\nJob <8> is submitted to queue <q>.\n", "", Unknown), (0, "Job <7> is submitted to que", "", Unknown),
        (0, "7", "", Submitted), (0, "7\n8", "", Unknown), (255, "7", "", Unknown),
        (255, "", "User <u>: Pending job threshold reached. Job not submitted.\n", NotNow),  # manual
        (255, "", "ssh: connect to host x port 22: Connection refused\n", Unknown),
        (127, "", "sh: 1: bsub: not found\n", NotNow), (127, "", "/usr/local/bin/bsub: line 3: foo: not found\n", Unknown),
    ],
)  # fmt: skip
def test_lsf_answers_to_submit(code, out, err, kind):
    assert isinstance(lsf.parse_submit(code, out, err), kind)


@pytest.mark.parametrize("name", [n for n in RECORDED if "-bsub" in n])
def test_an_answer_of_bsub_cut_at_any_byte_is_never_another_id_and_no_refusal_out_of_nothing(name):
    code, out, err = answer(name)
    whole = lsf.parse_submit(code, out, err)
    for at in range(len(out)):
        assert lsf.parse_submit(code, out[:at], err) == whole or isinstance(lsf.parse_submit(code, out[:at], err), Unknown)
    for at in range(len(err)):
        said = lsf.parse_submit(code, out, err[:at])
        assert type(said) is type(whole) or isinstance(said, Unknown)


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_no_answer_of_bsub_is_taken_for_none(name):
    if "-bsub" not in name:
        assert not isinstance(lsf.parse_submit(*answer(name)), Submitted)


# ---- LSF: find, query ----


def find(code, out, err, name="exp_one"):
    return lsf.parse_find(0, *part("n0", code, out, err), [name])


def test_lsf_finds_by_name():
    [row] = [row for row in rows("63-bjobs-o-fields").splitlines(True) if row.startswith("203^")]
    assert find(0, row, "") == {"exp_one": "203"} and find(0, "Maintenance on Friday\n" + row, "") == {"exp_one": "203"}
    assert find(*answer("10-bjobs-J-unknown"), "nosuchname") == {} and find(*answer("a6-bjobs-a-empty")) == {}
    two = part("n0", 0, row, ""), part("n1", *answer("10-bjobs-J-unknown"))
    assert lsf.parse_find(0, two[0][0] + two[1][0], two[0][1] + two[1][1], ["exp_one", "nosuchname"]) == {"exp_one": "203"}
    with pytest.raises(QueryFailed):
        lsf.parse_find(0, *part("n0", 0, row, ""), ["exp_one", "nosuchname"])


@pytest.mark.parametrize(
    "name", ["91-bjobs-mbatchd-down", "93-bjobs-all-down", "95-bjobs-no-lsf-env", "59-bsub-V", "09-bjobs-unknown", "10-bjobs-J-unknown", "73-bjobs-a"]
)
def test_what_does_not_deny_a_name_says_nothing_of_it(name):
    with pytest.raises(QueryFailed):
        find(*answer(name))


@pytest.mark.parametrize("code, out, err", [(0, "", ""), (255, "", ""), (137, "", ""), (0, "1^RUN\n", ""), (0, "7^RUN^^other\n", ""),
                                            (255, "", "cannot talk to LIM\nNo job found\n")])  # fmt: skip
def test_an_empty_answer_is_not_none(code, out, err):
    with pytest.raises(QueryFailed):
        find(code, out, err)


def query(code, out, err, ids, history=""):
    return lsf.parse_query(*listed(code, out, err, history), ids)


def test_lsf_tells_how_jobs_stand():
    found = query(0, rows("63-bjobs-o-fields"), "", ["214", "202", "205", "209"])
    assert found["214"] == Entry("RUN (runs)", False, "", "limit") and found["202"] == Entry("DONE", True, "", "echo hello; sleep 20")
    assert found["205"] == Entry("EXIT, exit code 3", True, "", "fails") and found["209"].words == "EXIT"


def test_an_id_that_lsf_says_it_does_not_know_is_not_there_and_one_it_passes_over_is_not_known():
    code, _, err = answer("35-bjobs-multi")
    assert set(query(code, rows("63-bjobs-o-fields"), err, ["202", "203", "99999"])) == {"202", "203"}
    assert query(*answer("a4-bjobs-o-after-purge"), ["451"]) == {}
    with pytest.raises(QueryFailed, match="said nothing of 777"):
        query(0, rows("63-bjobs-o-fields"), "", ["202", "777"])
    with pytest.raises(QueryFailed):
        query(*answer("91-bjobs-mbatchd-down"), ["202"])
    with pytest.raises(QueryFailed):
        query(*answer("a6-bjobs-a-empty"), ["202"])


@pytest.mark.parametrize("state, ended", [("ZOMBI", False), ("UNKWN", False), ("PSUSP", False), ("NEWSTATE", False), ("DONE", True), ("EXIT", True)])
def test_only_done_and_exit_are_the_end(state, ended):
    assert query(0, f"7^{state}^-^wt.a\n", "", ["7"])["7"].ended is ended


HISTORY = """
Job <214>, Job Name <limit>, User <tester>, Project <default>, Command <sleep 3
                     00>
Sun Nov 22 08:46:18: Exited with exit code 140. The CPU time used is 0.0 second
                     s;
Sun Nov 22 08:46:18: Completed <exit>; TERM_RUNLIMIT: job killed after reaching
                      LSF run time limit;
"""  # manual


def test_lsf_says_why_it_ended_a_job():
    found = query(0, "214^EXIT^140^wt.a\n213^EXIT^143^wt.b\n", "", ["214", "213"], HISTORY)
    assert found["214"] == Entry("EXIT, exit code 140; TERM_RUNLIMIT: job killed after reaching LSF run time limit", True, "time", "wt.a")
    assert found["213"].cause == ""
    assert lsf.parse_said("-----\n\nTERM_MEMLIMIT: job killed after reaching LSF memory usage limit.\nExited with exit code 137.\n").cause == "memory"
    assert lsf.parse_said("Exited with exit code 3.\n") is None and lsf.parse_said("TERM_OWNER: job killed by owner.\n").cause == "cancelled"
    assert lsf.parse_said("TERM_REMOVE_HUNG_JOB: job removed from LSF.\n").cause == "node"


def test_a_list_cut_at_any_byte_says_nothing():
    code, out, err = listed(0, rows("63-bjobs-o-fields"), "")
    whole = lsf.parse_query(code, out, err, ["202", "203"])
    for at in range(len(out) - 1):
        with pytest.raises(QueryFailed):
            lsf.parse_query(code, out[:at], err, ["202", "203"])
    assert lsf.parse_query(code, out, err, ["202", "203"]) == whole


TEXT = st.text(alphabet=st.sampled_from("0123456789^RUNDOEXIT <>Jobisntfud.\n="), max_size=80)


@given(st.sampled_from([0, 1, 137, 153, 255]), TEXT, TEXT)
def test_nothing_is_made_out_of_junk(code, out, err):
    for module, ids in (lsf, ["7"]), (pbs, ["7.s"]):
        said = module.parse_submit(code, out, err)
        assert isinstance(said, Submitted | Refused | NotNow | Unknown)
        assert not isinstance(said, Submitted) or said.id.split(".")[0] in out
        for parse, asked in (module.parse_find, ["wt.a"]), (module.parse_query, ids):
            with pytest.raises(QueryFailed):
                parse(code, out, err, asked)


# ---- PBS (manual) ----


def qsub(code, out, err=""):
    return pbs.parse_submit(code, f"wt-qsub\n{out}wt-code {code}\n", err)


@pytest.mark.parametrize(
    "code, out, err, said",
    [
        (0, "123.pbs01\n", "", Submitted("123.pbs01")), (0, "Welcome\n123.pbs01\n", "", Submitted("123.pbs01")), (0, "123\n", "", Submitted("123")),
        (170, "", "qsub: Unknown queue\n", Refused("qsub: Unknown queue")), (15, "", "qsub: Job exceeds queue resource limits\n", Refused("qsub: Job exceeds queue resource limits")),
        (38, "", "qsub: would exceed complex's per-user limit\n", NotNow("qsub: would exceed complex's per-user limit")),
        (111, "", "qsub: cannot connect to server pbs01 (errno=111)\n", NotNow("qsub: cannot connect to server pbs01 (errno=111)")),
        (37, "", "qsub: Maximum number of jobs already in queue\n", NotNow("qsub: Maximum number of jobs already in queue")),
    ],
)  # fmt: skip
def test_pbs_answers_to_submit(code, out, err, said):
    assert qsub(code, out, err) == said


@pytest.mark.parametrize("code, out, err", [(0, "", ""), (137, "", ""), (137, "123.pbs01\n", ""), (1, "", "qsub: End of File\n"), (255, "", "ssh: x\n")])
def test_pbs_may_have_taken_it(code, out, err):
    assert isinstance(qsub(code, out, err), Unknown)


def test_an_answer_of_qsub_cut_at_any_byte_is_unknown():
    text = "wt-qsub\n123.pbs01\nwt-code 0\n"
    for at in range(len(text) - 2):
        assert isinstance(pbs.parse_submit(0, text[:at], ""), Unknown), text[:at]
    assert pbs.parse_submit(0, "123.pbs01", "") == Submitted("123.pbs01")  # what agent adopt has stored


def named(*answers):
    found = [part(f"n{i}", *one) for i, one in enumerate(answers)]
    return 0, "".join(o for o, _ in found), "".join(e for _, e in found), [f"wt.{i}" for i in range(len(answers))]


def test_pbs_finds_by_name():
    assert pbs.parse_find(*named((0, "7.s\n", ""), (0, "", ""))) == {"wt.0": "7.s"}
    for bad in (1, "", "qselect: cannot connect"), (137, "", ""), (0, "Usage: none\n", ""):
        with pytest.raises(QueryFailed):
            pbs.parse_find(*named((0, "7.s\n", ""), bad))
    with pytest.raises(QueryFailed):
        pbs.parse_find(*named((0, "7.s\n", ""))[:3], ["wt.0", "wt.1"])


def job(number, state, **more):
    lines = {"Job_Name": f"wt.{number}", "job_state": state, **more}
    return f"Job Id: {number}.s\n" + "".join(f"    {key} = {value}\n" for key, value in lines.items()) + "\n"


def qstat(code, out, err, ids):
    return pbs.parse_query(0, *part("jobs", code, out, err), ids)


def test_pbs_tells_how_jobs_stand():
    text = job(1, "R") + job(2, "F", Exit_status="0") + job(3, "F", Exit_status="271") + job(4, "F", Exit_status="-27") + job(5, "F", Exit_status="-29", comment="Job\n\tkilled")
    found = qstat(153, text, "qstat: Unknown Job Id 9.s\n", ["1.s", "2.s", "3.s", "4.s", "5.s", "9.s"])
    assert found["1.s"] == Entry("R (runs)", False, "", "wt.1") and "9.s" not in found
    assert found["2.s"] == Entry("F (finished), Exit_status 0", True, "", "wt.2")
    assert qstat(0, job(6, "F", Exit_status="-20"), "", ["6.s"])["6.s"].cause == "node"
    assert [found[f"{n}.s"].cause for n in (3, 4, 5)] == ["cancelled", "memory", "time"] and found["5.s"].words.endswith("; Jobkilled")
    table = {"Resource_List.walltime": "00:01:00", "resources_used.walltime": "00:01:03"}
    assert qstat(0, job(6, "F", Exit_status="271", **table), "", ["6.s"])["6.s"].cause == "time"


@pytest.mark.parametrize(
    "code, out, err",
    [(0, "", ""), (0, job(1, "R"), ""), (153, job(1, "R"), ""), (153, "", "qstat: Unknown Job Id 2.s\nqstat: cannot connect\n"),
     (0, job(1, "R") + "Job Id: 2.s\n    Job_Name = x\n", ""), (1, job(1, "R") + job(2, "R"), ""),
     (1, "", "qstat: PBS is not configured to maintain job history\n")],
)  # fmt: skip
def test_a_partial_answer_of_qstat_says_nothing(code, out, err):
    with pytest.raises(QueryFailed):
        qstat(code, out, err, ["1.s", "2.s"])


def test_an_answer_of_qstat_cut_at_any_byte_says_nothing():
    out, err = part("jobs", 0, job(1, "R") + job(2, "F", Exit_status="0"), "")
    for at in range(len(out) - 1):
        with pytest.raises(QueryFailed):
            pbs.parse_query(0, out[:at], err, ["1.s", "2.s"])


def test_pbs_writes_behind_a_jobs_errors_why_it_was_killed():
    assert pbs.parse_said("=>> PBS: job killed: walltime 61 exceeded limit 60\n").cause == "time"
    assert pbs.parse_said("x\n=>> PBS: job killed: mem 210kb exceeded limit 200kb\n").cause == "memory"
    assert pbs.parse_said("Terminated\n") is None
