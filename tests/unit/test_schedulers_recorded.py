"""schedulers/slurm, sge: what they make of answers that real ones gave (tests/lab/record.py), whole, cut and spoilt."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from watchties import standing  # noqa: E402
from watchties.agent import Answer  # noqa: E402
from watchties.hookkit import Job  # noqa: E402
from watchties.schedulers import Entry, NotNow, QueryFailed, Refused, Submitted, Unknown, sge, slurm  # noqa: E402

DATA = Path(__file__).resolve().parent.parent / "data"
MODULES = {"slurm": slurm, "slurm-accounting": slurm, "sge": sge}
IDS = {"query": ["1", "2", "3", "4", "5", "99"], "query-one-unknown": ["99"], "query-with-unknown": ["1", "98", "99"], "query-cancelled": ["2"],
       "query-no-controller": ["1"], "query-no-master": ["2"]}  # fmt: skip
NAMES = {"find": ["wt.long", "wt.done", "wt.never", "wt.waits"], "find-nothing-yet": ["wt.never"], "find-no-controller": ["wt.done"]}
SLURM_NAMES = ["wt.long", "wt.never", "wt.bad2"]


def recorded(folder, title):
    """Return (exit code, standard output, standard error) of an answer."""
    [path] = DATA.joinpath(folder).glob(f"[0-9][0-9]-{title}.txt")
    lines = path.read_text().splitlines()
    streams = ("\n".join(line[8:] for line in lines if line.startswith(f"{name}: ")) for name in ("stdout", "stderr"))
    code = next(line for line in lines if line.startswith("exit code: "))
    return int(code[11:]), *streams


def submit(folder, title):
    return MODULES[folder].parse_submit(*recorded(folder, title))


def query(folder, title, ids=None):
    if ids is None:
        ids = IDS[title] if folder == "sge" or title != "query" else ["1", "2", "3", "4", "5"]
    return MODULES[folder].parse_query(*recorded(folder, title), ids)


def find(folder, title):
    return MODULES[folder].parse_find(*recorded(folder, title), SLURM_NAMES if folder != "sge" and title == "find" else NAMES[title])


@pytest.mark.parametrize("folder", MODULES)
def test_what_was_taken_has_its_number(folder):
    assert [submit(folder, title) for title in ("submit", "submit-long", "submit-fails")] == [Submitted("1"), Submitted("2"), Submitted("3")]


@pytest.mark.parametrize(
    ("folder", "title", "said"),
    [
        ("slurm", "submit-bad-partition", "Invalid partition name specified"),
        ("slurm", "submit-bad-constraints", "Requested node configuration is not available"),
        ("slurm", "submit-bad-option", "unrecognized option '--frobnicate'"),
        ("sge", "submit-bad-queue", 'job requests unknown queue "nowhere"'),
        ("sge", "submit-bad-resource", 'unknown resource "foo"'),
        ("sge", "submit-bad-option", 'invalid option argument "-frobnicate"'),
    ],
)
def test_what_is_refused_for_good_is_told_in_the_schedulers_words(folder, title, said):
    answer = submit(folder, title)
    assert isinstance(answer, Refused) and said in answer.reason


@pytest.mark.parametrize(("folder", "title"), [("slurm", "submit-no-controller"), ("slurm-accounting", "submit-no-controller"), ("sge", "submit-no-master")])
def test_a_controller_that_is_away_refuses_nothing(folder, title):
    assert isinstance(submit(folder, title), NotNow), recorded(folder, title)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"), Unknown),
        ((1, "", "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"), NotNow),
        ((1, "", "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"), NotNow),
        ((1, "", "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received"), Unknown),
        ((137, "", "Killed"), Unknown),
        ((127, "", "sh: 1: sbatch: not found"), NotNow),
        ((0, "", ""), Unknown),
        ((0, "Welcome to elgato, 12 users\n4711\n", ""), Submitted("4711")),
        ((0, "4711;other\n", ""), Submitted("4711")),
        ((1, "4711\n", ""), Unknown),
    ],
)
def test_answers_of_sbatch_that_the_manual_or_its_source_tells_of(answer, kind):
    said = slurm.parse_submit(*answer)
    assert said == kind if isinstance(kind, Submitted) else isinstance(said, kind)


@pytest.mark.parametrize("folder", ["slurm", "slurm-accounting"])
def test_slurms_states(folder):
    assert query(folder, "query") == {
        "1": Entry("COMPLETED", True, "", "wt.done"), "2": Entry("RUNNING", False, "", "wt.long"),
        "3": Entry("FAILED (NonZeroExitCode)", True, "", "wt.fails"), "4": Entry("FAILED (JobLaunchFailure)", True, "", "wt.memory"),
        "5": Entry("FAILED (BadConstraints)", True, "", "wt.bad2"),
    }  # fmt: skip
    assert query(folder, "query-cancelled") == {"2": Entry("CANCELLED", True, "cancelled", "wt.long")}
    assert query(folder, "query-one-unknown") == {} and set(query(folder, "query-with-unknown")) == {"1"}
    assert find(folder, "find") == {"wt.long": "2", "wt.bad2": "5"}  # a refused one, too: it stays in the queue


@pytest.mark.parametrize("folder", ["slurm", "slurm-accounting"])
def test_without_the_controller_nothing_is_known(folder):
    for ask in query, find:
        with pytest.raises(QueryFailed, match="squeue ended with 1: .*Unable to contact slurm controller"):
            ask(folder, f"{ask.__name__}-no-controller")


def test_what_slurmstepd_says_tells_the_cause():
    says = "slurmstepd-elgato: error: StepId=2.batch exceeded memory limit (208261120 > 20971520), being killed\n"
    says += "slurmstepd-elgato: error: *** JOB 2 ON elgato CANCELLED AT 2026-11-28T00:48:53 ***\n"
    assert slurm.parse_said(says).cause == "memory" and "exceeded memory limit" in slurm.parse_said(says).words
    assert slurm.parse_said("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-28T00:50:09 DUE TO TIME LIMIT ***").cause == "time"
    assert slurm.parse_said("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-28T00:50:09 DUE TO NODE FAILURE ***").cause == "node"
    assert slurm.parse_said("the job said: exceeded memory limit") is None and sge.parse_said(says) is None


def test_grid_engines_states():
    said = query("sge", "query")
    assert (said["1"], said["2"]) == (Entry("failed 0, exit_status 0", True, "", "wt.done"), Entry("r (running)", False, "", "wt.long"))
    assert said["3"] == Entry("failed 0, exit_status 3", True, "", "wt.fails") and "99" not in said
    assert (said["4"].ended, said["4"].cause, said["4"].name) == (True, "time", "wt.time")
    assert query("sge", "query-cancelled")["2"].cause == "cancelled"
    assert find("sge", "find") == {"wt.long": "2", "wt.done": "1", "wt.waits": "7"} and find("sge", "find-nothing-yet") == {}


def test_without_the_master_nothing_is_known():
    with pytest.raises(QueryFailed, match="qstat ended with 1: .*Connection refused"):
        query("sge", "query-no-master")


def job(id="2", token="long"):
    return Job("main", "u/e", "/nowhere", token=token, fields={"id": id})


def test_a_number_that_another_job_has_now_is_not_believed():
    """submitit #1660"""
    entries = query("slurm", "query")
    assert set(standing.own(job(token="long"), entries)) == {"2"} and standing.own(job(token="none"), entries) == {}
    assert standing.own(job(), None) is None


def test_memory_is_believed_before_any_other_cause():
    said = Answer("begun", ["alive=no"], err=["slurmstepd-n: error: StepId=4.batch exceeded memory limit (2 > 1), being killed"])
    assert standing.why_ended(slurm, job("4", "memory"), said, query("slurm", "query")).cause == "memory"
    cancelled = {"2": Entry("CANCELLED", True, "cancelled", "wt.long")}
    assert standing.why_ended(slurm, job(), said, cancelled).cause == "memory"
    assert standing.why_ended(slurm, job(), Answer("begun", []), cancelled).words == "CANCELLED"
    assert standing.why_ended(slurm, job(), Answer("begun", []), None) is None


def test_what_the_scheduler_has_ended_is_gone_and_what_never_began_waits():
    ended, runs = {"2": Entry("TIMEOUT", True, "time", "wt.long")}, {"2": Entry("RUNNING", name="wt.long")}
    elsewhere = Answer("begun", ["alive=unknown"])
    assert standing.judged(elsewhere, "2", ended, "").gone and not standing.judged(elsewhere, "2", ended, "").waits
    assert standing.judged(Answer("submitted", []), "2", ended, "").waits and standing.judged(Answer("submitted", []), "2", {}, "").waits
    assert not standing.judged(elsewhere, "2", runs, "").gone and not standing.judged(elsewhere, "2", None, "asked in vain").gone


class FarAgent:
    """What the agent and its query answered; more: what further queries did, one after the other."""

    def __init__(self, answer, said, more=()):
        self.answer, self.said, self.more = answer, said, list(more)

    def query(self, text):
        return self.more.pop(0)

    def status(self, jobs, query):
        code, out, err = self.said
        return dict.fromkeys(jobs, self.answer), Answer("query", [], code, out.split("\n"), err.split("\n"))


def nodes(*answers):
    return [(0, f"{line}\n", "") if line is not None else (1, "", "slurm_load_node: Unable to contact") for line in answers]


def test_a_killed_wrapper_on_another_host_is_proven_ended_by_the_scheduler_and_its_node(monkeypatch):
    monkeypatch.setattr(standing, "AGAIN", 0)
    gone, asked = Answer("begun", ["host=node2 alive=unknown"]), job()
    for said, proven in ("query-cancelled", True), ("query", False), ("query-no-controller", False):
        found, *_ = standing.killed_elsewhere(FarAgent(gone, recorded("slurm", said), nodes("node2|planned", "node2|idle~")), slurm, [asked])
        assert bool(found) is proven, said
    for answers in ("node2|down*",), ("node2|mixed*",), ("node2|idle", "node2|down*"), ("node2|drained$",), ("node2|mixed@",), ("node2|idle%",):
        far = FarAgent(gone, recorded("slurm", "query-cancelled"), nodes(*answers))
        assert standing.killed_elsewhere(far, slurm, [asked]) == ([], {asked: "node2"}, ""), answers
    far = FarAgent(gone, recorded("slurm", "query-cancelled"), nodes(None))
    assert standing.killed_elsewhere(far, slurm, [asked]) == ([], {asked: "node2"}, "sinfo ended with 1: slurm_load_node: Unable to contact")
    far = FarAgent(gone, recorded("slurm", "query-cancelled"), nodes("node7|idle", "node7|idle"))
    assert standing.killed_elsewhere(far, slurm, [asked]) == ([asked], {}, ""), "no node of Slurm's has the host's name"
    seen_from_here = Answer("begun", ["host=elgato alive=yes"])
    assert standing.killed_elsewhere(FarAgent(seen_from_here, recorded("slurm", "query-cancelled")), slurm, [asked]) == ([], {}, "")


def test_an_overtaken_attempt_of_which_only_the_name_is_known_is_proven_ended_too():
    one, mark = job(id=""), "\nwt-part {} 0 end\n"
    found = f"2|CANCELLED|wt.long|None\n{mark.format('squeue')}{mark.format('sacct')}"
    gone = Answer("begun", ["host=node2 alive=unknown"])
    idle, marks = nodes("node2|idle", "node2|idle"), mark.format("squeue") + mark.format("sacct")
    far = FarAgent(gone, recorded("slurm", "query-cancelled"), [(0, found, marks), *idle])
    assert standing.killed_elsewhere(far, slurm, [one]) == ([one], {}, "")


def test_what_slurm_has_forgotten_has_ended_if_its_node_is_at_work(monkeypatch):
    monkeypatch.setattr(standing, "AGAIN", 0)
    marks, gone = "\nwt-part squeue 0 end\n\nwt-part sacct 0 end\n", Answer("begun", ["host=node2 alive=unknown"])
    for known, found in (job(), []), (job(id=""), [(0, marks, marks)]):
        for answers, ended in (("node2|idle", "node2|idle"), True), (("node2|down*",), False), (("node2.cluster|idle",) * 2, False):
            far = FarAgent(gone, (0, marks, marks), [*found, *nodes(*answers)])
            assert standing.killed_elsewhere(far, slurm, [known])[:2] == (([known], {}) if ended else ([], {known: "node2"})), answers
    unheard = FarAgent(gone, (0, marks, marks), [(1, "", "Unable to contact")])
    assert standing.killed_elsewhere(unheard, slurm, [job(id="")]) == ([], {}, ""), "it could not be asked"


@pytest.mark.parametrize(
    ("answers", "proven"),
    [(["node2|idle", "node2|mixed"], True), (["node2|idle", "node2|down*"], False), (["node2|down*"], False), (["node2|idle*"], False),
     (["node2|unknown"], False), ([""], False), ([None], False), (["node2|idle", "node7|idle"], False)],
)  # fmt: skip
def test_what_began_on_a_node_that_failed_has_ended_when_the_scheduler_has_the_node_back(monkeypatch, answers, proven):
    monkeypatch.setattr(standing, "AGAIN", 0)
    asked = job()
    marks = "\nwt-part squeue 0 end\n\nwt-part sacct 0 end\n"
    said = f"{asked.fields['id']}|NODE_FAIL|wt.{asked.token}|NodeDown{marks}"
    far = FarAgent(Answer("begun", ["host=node2.cluster alive=unknown"]), (0, said, marks), nodes(*answers))
    assert standing.killed_elsewhere(far, slurm, [asked])[:2] == (([asked], {}) if proven else ([], {asked: "node2"})) and not far.more


QUERIES = [("slurm", "query"), ("slurm", "query-with-unknown"), ("slurm-accounting", "query-with-unknown"), ("sge", "query")]


@pytest.mark.parametrize(("folder", "title"), QUERIES)
def test_an_answer_cut_anywhere_is_refused(folder, title):
    code, out, err = recorded(folder, title)
    ids = IDS[title] if folder == "sge" or title != "query" else ["1", "2", "3", "4", "5"]
    for cut in range(len(out)):
        with pytest.raises(QueryFailed):
            MODULES[folder].parse_query(code, out[:cut], err, ids)
    for cut in range(len(err)):
        with pytest.raises(QueryFailed):
            MODULES[folder].parse_query(code, out, err[:cut], ids)


TEXT = st.text(st.sampled_from("0123|;<>=-wt.RUNNIG XMLjob_list qacct \n\t?é\0")) | st.text()


@given(code=st.sampled_from([0, 1, 2, 137, 255]), out=TEXT, err=TEXT, folder=st.sampled_from(sorted(MODULES)))
def test_whatever_is_answered_is_parsed_or_refused(code, out, err, folder):
    module = MODULES[folder]
    said = module.parse_submit(code, out, err)
    assert isinstance(said, (Submitted, Refused, NotNow, Unknown))
    assert not isinstance(said, Submitted) or code == 0 and said.id in out
    for parse, asked in (module.parse_query, ["1", "2"]), (module.parse_find, ["wt.a", "wt.b"]):
        with pytest.raises(QueryFailed):  # without the marks of the parts there is no answer
            parse(code, out, err, asked)
    assert module.parse_said(out) is None or module is slurm


@given(data=st.data(), where=st.sampled_from(QUERIES))
def test_a_spoilt_answer_is_parsed_or_refused(data, where):
    code, out, err = recorded(*where)
    at = data.draw(st.integers(0, len(out)))
    spoilt = out[:at] + data.draw(TEXT) + out[at + data.draw(st.integers(0, 30)) :]
    try:
        found = MODULES[where[0]].parse_query(code, spoilt, err, ["1", "2"])
    except QueryFailed:
        return
    assert set(found) <= {"1", "2"} and all(isinstance(entry, Entry) for entry in found.values())
