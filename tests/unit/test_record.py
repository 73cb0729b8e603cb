"""record.py: transitions of the protocol, and a file that is never taken for absent because it is damaged."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchties import durable, record, recordfile
from watchties.errors import Unsafe
from watchties.model import CANCEL, DONE, FAILED, MIRROR, PENDING, SUBMITTED, WEB, Request
from watchties.record import Attempt, Record

ONE, TWO, THREE = Request(WEB, PENDING, 10), Request(WEB, PENDING, 20), Request(MIRROR, PENDING, 5)
FIRST = record.accept(Record(), ONE, "t1")
AT_HOST = record.contact(FIRST, "b1")
RUNNING = record.outcome_of_submit(AT_HOST, {"id": "7", "since": 3.0})
ENDED = record.outcome_of_fetch(RUNNING, {"state": DONE, "exit": "0", "bytes": "12"})


def carry_out(plan):
    result = durable.carry_out({0: plan})[0]
    if isinstance(result, OSError):
        raise result


# ---- transitions ----


def test_what_may_run_on_when_it_is_failed_must_still_be_proven_ended():
    failed = record.outcome_of_fetch(RUNNING, {"state": FAILED, "cause": "node", "unproven": 1})
    assert failed.phase == FAILED and failed.old.token == RUNNING.token and "unproven" not in failed.fields
    again = record.accept(failed, TWO, "t9")
    assert again.old == failed.old and again.attempt == 2
    ended = record.outcome_of_cancel(again, failed.old.token, None, "ended")
    assert ended.old is None and ended.phase == PENDING


def test_the_first_request_begins_the_first_attempt():
    assert (FIRST.attempt, FIRST.token, FIRST.phase, FIRST.host, FIRST.contacted) == (1, "t1", PENDING, "", False)
    assert FIRST.accepted == FIRST.served == ("web:PENDING:10",)


def test_attempts_go_on_from_the_state_that_is_shown_where_the_record_was_removed():
    assert record.accept(Record(), ONE, "t1", 4).attempt == 5
    assert record.accept(ENDED, TWO, "t2", 1).attempt == 2 and record.accept(FIRST, TWO, "t2", 9).attempt == 1
    assert record.accept(Record(), ONE, "t1", record.TOO_MANY).attempt == 1, "nobody of ours has written that"


def test_requests_merge_until_the_first_contact_and_then_cause_one_more_attempt():
    merged = record.accept(record.accept(FIRST, TWO, "x"), THREE, "y")
    assert (merged.attempt, merged.token, merged.old) == (1, "t1", None) and len(merged.served) == 3
    later = record.accept(record.accept(AT_HOST, TWO, "t2"), THREE, "t3")
    assert (later.attempt, later.token, later.contacted) == (2, "t2", False)
    assert later.served == (str(ONE), str(TWO), str(THREE))  # it hands on what the overtaken one promised


@pytest.mark.parametrize("rec, old", [(AT_HOST, Attempt(1, "t1", "b1")), (RUNNING, Attempt(1, "t1", "b1")), (ENDED, None)])
def test_an_overtaken_attempt_is_remembered_until_it_is_proven_ended(rec, old):
    after = record.accept(rec, TWO, "t2")
    assert after.old == old and after.phase == PENDING and after.ended == after.tries == after.fields == {}
    assert after.served == ((str(TWO),) if rec is ENDED else (str(ONE), str(TWO)))
    assert record.outcome_of_cancel(after, "t1", None, "ended").old is None


def test_an_attempt_that_is_still_to_be_ended_is_not_forgotten_by_further_requests():
    after = record.accept(record.accept(RUNNING, TWO, "t2"), THREE, "t3")
    assert after.old == Attempt(1, "t1", "b1") and after.token == "t2"


def test_known_requests_are_known_by_place_marker_and_time():
    rec = replace(FIRST, own=5)
    assert rec.has_accepted(ONE) and rec.has_accepted(Request(MIRROR, PENDING, 5))
    for other in Request(MIRROR, PENDING, 10), Request(WEB, CANCEL, 10), TWO, Request(WEB, PENDING, 5), Request(MIRROR, CANCEL, 5):
        assert not rec.has_accepted(other)
    assert record.accept_cancel(rec, Request(WEB, CANCEL, 30), False).accepted_at(WEB) == [10, 30]


def test_the_host_that_a_job_names_outlasts_its_attempt():
    named = record.outcome_of_pull(Record(pulling="p"), "p", ONE, {"cpu_server": "b2"}, "t1")
    assert named.fields["cpu_server"] == "b2"
    ended = record.outcome_of_fetch(record.outcome_of_submit(record.contact(named, "b2"), {"id": "7"}), {"state": DONE, "exit": "0"})
    again = record.accept(ended, THREE, "t2")  # in the mirror: there is no pull that could say it
    assert again.fields == {"cpu_server": "b2"}
    pulled = record.outcome_of_pull(replace(ended, pulling="q"), "q", TWO, {}, "t2")
    assert not pulled.fields["cpu_server"]


def test_only_the_open_pull_says_what_was_pulled():
    rec = Record(pulling="p2")
    assert record.outcome_of_pull(rec, "p1", ONE, {}, "t1") == rec
    assert record.outcome_of_pull(rec, "p2", ONE, {"bytes": "9"}, "t1") == replace(FIRST, size=9, fields={"cpu_server": ""})
    assert record.outcome_of_pull(replace(FIRST, pulling="p2"), "p2", ONE, {}, "t9").attempt == 1


def test_outcomes_of_another_phase_change_nothing():
    for rec in RUNNING, ENDED:
        assert record.outcome_of_submit(rec, {"id": "8"}) == rec
    for rec in AT_HOST, ENDED:
        assert record.outcome_of_fetch(rec, {"state": FAILED}) == rec


def test_cancel_of_the_current_attempt():
    stop = Request(WEB, CANCEL, 30)
    for how, phase in ("ended", FAILED), ("none", FAILED), ("exited", SUBMITTED):
        after = record.outcome_of_cancel(RUNNING, "t1", stop, how)
        assert after.phase == phase and after.has_accepted(stop)
    assert record.outcome_of_cancel(RUNNING, "t0", stop, "ended") == RUNNING
    assert record.outcome_of_cancel(ENDED, "t1", stop, "ended").phase == DONE


def test_tries_are_counted_until_the_rule_ends():
    rec = record.put_off(record.put_off(RUNNING, "poll", 10, 5, "a", {"missing": 1}), "poll", 20, 7, "b", {"x": 2})
    assert rec.tries["poll"] == {"count": 2, "first": 10, "at": 20, "next": 27, "reason": "b", "fields": {"missing": 1, "x": 2}}
    assert record.end_rule(rec, "poll", "done").tries == {}


# ---- on disk ----

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
numbers = st.integers(0, 1 << 62)
requests = st.builds(Request, st.sampled_from([WEB, MIRROR]), st.sampled_from([PENDING, CANCEL]), numbers)
plain = st.recursive(st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | words,
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6)  # fmt: skip
dicts = st.dictionaries(words, plain, max_size=4)
some_requests = st.lists(requests.map(str), max_size=6).map(tuple)
times = st.integers(0, 1 << 32) | st.floats(0, 1e10)
tried = st.builds(lambda needed, more: needed | more, st.fixed_dictionaries({"next": times, "reason": words}),
                  st.fixed_dictionaries({}, optional={"count": st.integers(0, 99), "first": times, "fields": dicts}))  # fmt: skip
records = st.builds(
    lambda attempt, **values: Record(attempt=attempt, token=f"t{attempt}" if attempt else "", **values),
    attempt=st.integers(0, 5), accepted=some_requests, served=some_requests, own=numbers, host=words, contacted=st.booleans(),
    phase=st.sampled_from(["", PENDING, SUBMITTED, DONE, FAILED]), pulling=words, old=st.none() | st.builds(Attempt, numbers, words, words),
    ended=dicts, tries=st.dictionaries(words, tried, max_size=3), fields=dicts, size=numbers,
    extra=dicts.map(lambda d: {k: v for k, v in d.items() if k not in Record.__dataclass_fields__ and k != "version"}),
)  # fmt: skip


@given(records)
def test_what_is_written_is_what_is_read(rec):
    assert recordfile.loads(recordfile.dumps(rec)) == rec


@given(dicts.filter(lambda d: not d.keys() & {*Record.__dataclass_fields__, "version"}))
def test_keys_of_a_newer_version_are_kept(future):
    data = json.dumps({**json.loads(recordfile.dumps(RUNNING)), **future, "version": 2}).encode()
    again = recordfile.loads(recordfile.dumps(record.accept(recordfile.loads(data), TWO, "t2")))
    assert again.extra == future and again.attempt == 2


@given(records, st.data())
def test_a_torn_record_is_never_read_as_another(rec, data):
    whole = recordfile.dumps(rec)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        recordfile.loads(part)


@given(records, st.sampled_from(sorted(set(Record.__dataclass_fields__) - {"extra", "old"})), plain)
def test_a_value_of_another_kind_is_damage(rec, name, value):
    stored = json.loads(recordfile.dumps(rec))
    kinds = {"accepted": list, "served": list}
    if type(value) is kinds.get(name, type(getattr(Record(), name))):
        return
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        recordfile.loads(json.dumps({**stored, name: value}).encode())


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[]", b"null", b"\0" * 300, b"\xff\xfe", b'{"version":1,"accepted":["PENDING"]}', b'{"version":1,"attempt":1}',
             b'{"version":1,"phase":"RUNNING"}', b'{"version":1,"old":{"attempt":1}}', b'{"version":1,"old":[]}x', b"[" * 200_000, b'{"version":1,"tries":{"push":{"count":1}}}', b'{"version":1,"tries":{"push":7}}',
             b'{"version":1,"tries":{"push":{"next":Infinity,"reason":""}}}', b'{"version":1,"fields":{"since":"soon"}}',
             b'{"version":1,"fields":{"cpu_server":[]}}', b'{"version":1,"old":{"attempt":1,"token":"t","host":[]}}']
)  # fmt: skip
def test_a_damaged_record_is_never_taken_for_absent(tmp_path, junk):
    carry_out(recordfile.save(tmp_path, RUNNING))
    (tmp_path / ".watchties" / "record.json").write_bytes(junk)
    with pytest.raises(Unsafe, match="record.json is damaged .*move it away"):
        recordfile.load(tmp_path)


def test_a_record_that_cannot_be_read_is_not_taken_for_absent(tmp_path):
    (tmp_path / ".watchties" / "record.json").mkdir(parents=True)
    with pytest.raises(OSError):
        recordfile.load(tmp_path)


def test_no_record_is_an_empty_one(tmp_path):
    assert recordfile.load(tmp_path) == recordfile.load(tmp_path / "nothing") == Record()


@given(records, records)
def test_a_crash_between_any_two_steps_leaves_the_old_or_the_new(tmp_path_factory, before, after):
    job = tmp_path_factory.mktemp("job")
    carry_out(recordfile.save(job, before))
    plan = recordfile.save(job, after)
    next(plan)
    assert recordfile.load(job) == before
    plan.close()  # here the daemon dies; the next one writes again
    carry_out(recordfile.save(job, after))
    assert recordfile.load(job) == after and os.listdir(job / ".watchties") == ["record.json"]
