"""manifest.py, judge.py, agent.py, standing.py: lists of files, verdicts, answers. Pure, or on real files."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import put  # noqa: E402

from watchties import agent, judge, manifest, standing, webstate  # noqa: E402
from watchties.errors import Unsafe  # noqa: E402
from watchties.hookkit import Job  # noqa: E402
from watchties.manifest import DIRECTORY, LINK, Entry  # noqa: E402
from watchties.schedulers import Entry as Told  # noqa: E402
from watchties.schedulers import shell as scheduler  # noqa: E402

PATHS = st.binary(min_size=1, max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
ENTRIES = st.builds(Entry, st.integers(-2, 2**60), st.integers(0, 2**62), PATHS)


# ---- lists ----


@given(lists=st.dictionaries(PATHS, ENTRIES, max_size=5))
def test_a_list_comes_back_as_it_was_written(tmp_path_factory, lists):
    job = Job("ties", "a/b", str(tmp_path_factory.mktemp("job")), attempt=3)
    assert manifest.write("made", {job: lists}) == {}
    assert manifest.read(manifest.place(job, "made")) == lists
    assert os.listdir(job.dir + "/.watchties") == ["made.3"]


def test_many_lists_and_one_that_cannot_be_written(tmp_path):
    jobs = [Job("ties", f"a/{n}", str(tmp_path / str(n)), attempt=1) for n in range(20)]
    put(tmp_path / "7")
    errors = manifest.write("made", {job: {} for job in jobs})
    assert list(errors) == [jobs[7]] and all(manifest.read(manifest.place(job, "made")) == {} for job in jobs if job != jobs[7])


def test_a_list_that_is_not_there_is_none(tmp_path):
    assert manifest.read(str(tmp_path / "made.1")) is None


def test_walk_sees_what_travels_and_follows_nothing(tmp_path):
    for name in ["a", "d/e/f", "DONE", "d/DONE", ".watchties/x", "d/.watchties.partial/x", ".watchties.open", ".hidden"]:
        put(tmp_path / "job" / name, "xy")
    (tmp_path / "job/link").symlink_to("d")
    os.mkfifo(tmp_path / "job/pipe")
    found = manifest.walk(str(tmp_path / "job"))
    assert {path: entry.s for path, entry in found.items()} == {
        "a": 2, "d": DIRECTORY, "d/e": DIRECTORY, "d/e/f": 2, "d/DONE": 2, ".hidden": 2, "link": LINK,
    }  # fmt: skip
    assert found["a"].m == os.stat(tmp_path / "job/a").st_mtime_ns and found["link"].t == "d"
    assert manifest.totals(found) == (4, 8) and manifest.walk(str(tmp_path / "gone")) == {}


def test_walk_refuses_a_job_that_is_a_link(tmp_path):
    (tmp_path / "job").symlink_to(tmp_path)
    with pytest.raises(Unsafe, match="is a symbolic link"):
        manifest.walk(str(tmp_path / "job"))


def test_changed_and_made():
    both = {"same": Entry(1, 5), "d": Entry(DIRECTORY)}
    before = both | {"touched": Entry(1, 5), "gone": Entry(1, 5), "gone-d": Entry(DIRECTORY), "l": Entry(LINK, 0, "a")}
    now = both | {"touched": Entry(1, 6), "l": Entry(LINK, 0, "b"), "new": Entry(0, 1), "mirror only": Entry(0, 1)}
    assert manifest.changed(before, now) == {"touched", "gone", "l"}
    assert list(manifest.made(before, now, {"same", "touched", "d", "l", "new", "not here"})) == ["l", "new", "touched"]
    assert manifest.changed({"d": Entry(DIRECTORY)}, {"d": Entry(3, 3)}) == {"d"}


@pytest.mark.parametrize(
    ("path", "target", "outside"),
    [
        ("l", "a", False), ("l", ".", False), ("l", "..", True), ("l", "/", True), ("l", "../job/a", True), ("d/l", "../a", False),
        ("d/l", "../../x", True), ("l", "d/../a", False), ("l", "d/../../x", True), ("l", "nowhere/at/all", False), ("l", "", False),
        ("l", "d/up/../x", True), ("d/deep/l", "../up/x", False), ("l", "self", False), ("l", "..a", False),
    ],
)  # fmt: skip
def test_links_that_lead_outside(tmp_path, path, target, outside):
    put(tmp_path / "job/a")
    (tmp_path / "job/d/deep").mkdir(parents=True)
    (tmp_path / "job/d/up").symlink_to("..")  # the job itself
    (tmp_path / "job/self").symlink_to("self")
    entries = {path: Entry(LINK, 0, target)}
    assert manifest.leading_outside(str(tmp_path / "job"), entries) == ([path] if outside else [])


# ---- verdicts ----


def test_everything_that_is_wrong_with_a_job_is_said_at_once(tmp_path):
    put(tmp_path / "CPU_SERVER", "\nb\x1b02 please")
    tree = {"compute": ["b01", "elgato"], "limits": {"size": 3, "files": 0}}
    fields = judge.inputs(str(tmp_path), manifest.walk(str(tmp_path)), tree)
    assert fields["cause"] == "rejected" and fields["reason"].split("; ") == [
        "12 bytes are 9 more than the limit of 3", "1 files are 1 more than the limit of 0",
        "there is no file command in it: put there what is to be run",
        "CPU_SERVER names b?02, which is no compute host of this tree: there are b01, elgato",
    ]  # fmt: skip


def test_an_empty_cpu_server_names_nothing_and_a_link_is_not_read(tmp_path):
    put(tmp_path / "command")
    put(tmp_path / "CPU_SERVER", " \n")
    assert "cpu_server" not in judge.inputs(str(tmp_path), manifest.walk(str(tmp_path)), {"compute": ["b01"]})
    (tmp_path / "CPU_SERVER").unlink()
    (tmp_path / "CPU_SERVER").symlink_to(put(tmp_path / "name", "b01"))
    assert judge.inputs(str(tmp_path), manifest.walk(str(tmp_path)), {"compute": ["b01"]}) == {"bytes": 3, "files": 2}


def test_a_directory_called_command_is_no_command(tmp_path):
    (tmp_path / "command").mkdir()
    assert judge.inputs(str(tmp_path), manifest.walk(str(tmp_path)), {"compute": []})["reason"] == "command is not a file"


def test_only_what_was_made_is_evidence():
    assert list(judge.not_met({"out/a.csv": Entry(1)}, {"require": ["*.csv"]})) == ["it made no *.csv, which this tree requires"]
    assert list(judge.not_met({"out/a.csv": Entry(1)}, {"require": ["out/*.csv"], "forbid": ["a.csv"]})) == []
    assert list(judge.not_met({}, {"stderr_empty": True})) == []


def test_killed_is_cancelled_whatever_the_exit_code(tmp_path):
    verdict = judge.results(str(tmp_path), {}, {"code": "0", "killed": "1"}, {})
    assert (verdict["state"], verdict["cause"]) == ("FAILED", "cancelled")


# ---- the agent's answers ----


def test_answers_with_replies_and_a_query():
    text = "a/b\tdone\n\tx\t255\n\to\tone\n\to\ttwo\twith tab\n\te\twept\nc d/e\tbegun\tid=7\talive=yes\n\tquery\t3\n\to\trow\n"
    (name, done), (other, begun), (_, query) = agent.parse(text)
    assert (name, done.reply()) == ("a/b", (255, "one\ntwo\twith tab", "wept"))
    assert (other, begun.values) == ("c d/e", {"id": "7", "alive": "yes"})
    assert query.word == "query" and query.reply() == (3, "row", "")


@pytest.mark.parametrize("junk", ["\tx\tmany", "\tx", "\tquery\tx", "\tquery", "\t", "x\t", "\tx\t" + "9" * 5000, "../..\tdone\tid=1", "\0"])
def test_answers_that_no_agent_gives_are_passed_over(junk):
    answers = dict(agent.parse(f"a/b\tdone\n{junk}\n\tx\t7\n\to\tsaid\nc/d\tnew"))
    assert answers["a/b"].reply() == (7, "said", "") or junk.partition("\t")[0]
    assert answers["c/d"].word == "new"


def test_counts_of_an_exit_file_that_are_none_ask_for_nothing():
    assert judge.arrived({}, {}, {"files": "many", "bytes": "1e9"}) == ""


def test_words_of_one_detail_are_values_too():
    assert agent.Answer("begun", ["state=begun id=7 host=b01"]).values["id"] == "7"


@given(fields=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=4))
def test_a_line_to_the_agent_is_one_line_without_empty_fields(fields):
    words = agent._line("a/b", fields)[:-1].split("\t")
    assert len(words) == len(fields) + 1 and all(words) and "\n" not in "".join(words)


def test_what_is_internal_does_not_reach_the_marker():
    fields = {"asked": 1, "exit": "0", "spare": "/x", "state": "x", "own": "y", "resubmitted": 1}
    job = Job("t", "a/b", "", marker="DONE", attempt=2, token="tok", host="b01", fields=fields)
    assert webstate.content(job) == {"state": "DONE", "attempt": 2, "token": "tok", "host": "b01", "exit": "0", "own": "y"}


# ---- how a job stands ----


def judged(word, *details, states=None, number="7"):
    return standing.judged(agent.Answer(word, list(details)), number, states, "no answer")


def test_the_exit_file_is_believed_before_the_scheduler():
    assert judged("exit", "code=0", states={}).state == "DONE" and judged("exit", "code=3", states={"7": Told("RUN")}).state == "FAILED"
    assert judged("exit", "code=0", "killed=1").state == "FAILED"


def test_gone_is_proven_by_processes_or_said_by_a_query_that_succeeded():
    assert judged("begun", "alive=no").gone and judged("begun", "alive=no").proven
    assert judged("begun", "alive=unknown", states={}).gone and not judged("begun", "alive=unknown", states={}).proven
    assert judged("submitted", states={}).gone and not judged("submitted", states={"7": Told("PEND")}).gone
    assert judged("submitted", states={"7": Told("PEND")}).note == "PEND"
    for word in "intent", "claimed":  # its reply could not be noted down, but its number is known
        assert judged(word, states={}).gone and judged(word, states={}).waits and not judged(word, states={"7": Told("RUN")}).gone
        assert not judged(word, number="", states={}).gone and not judged(word, states=None).gone


@pytest.mark.parametrize("word", ["begun", "submitted", "none", "intent", "claimed", "error"])
def test_without_an_answer_nothing_changes(word):
    assert not judged(word, states=None).gone and not judged(word, states={}, number="").gone
    if word in ("none", "error"):
        assert not judged(word, states={}).gone


def test_a_query_that_failed_is_heard_as_such():
    states, why = standing.heard(scheduler, agent.Answer("query", [], 255, [], ["timed out"]), ["7"])
    assert states is None and "timed out" in why


def test_moments():
    assert standing.seconds("12.5") == 12.5 and standing.seconds("1970-01-01T00:01:00+00:00") == 60
    assert standing.seconds("1970-01-01T00:01:00Z") == 60 and standing.seconds(None) == standing.seconds("junk") == 0
