"""markers.py and steps.py on real files: looking, publishing, taking off; a crash before and after every call of the system,
then another daemon that knows nothing but the disk."""

import os
import stat
import tempfile
import time
from pathlib import Path

import pytest

from watchties import decide, durable, jobs, markers, record, recordfile, steps
from watchties.model import CANCEL, DONE, FAILED, MIRROR, NEW, OPEN_FLAG, PENDING, STATES, SUBMITTED, TAKEN, WEB, JobId, Request
from watchties.record import Record
from watchties.seen import Step

CALLS = ("rename", "link", "unlink", "mkdir", "fsync", "open")


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where that can be had: a thousand crashes need no disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="markers-", dir="/dev/shm") as path:
        yield Path(path)


class CrashNow(Exception):
    """The daemon dies here. No OSError, so that nobody takes it for an answer of the disk."""


def fields_of(state, token="t1"):
    return {"state": state, "attempt": 1, "token": token}


def carry_out(plan):
    result = durable.carry_out({0: plan})[0]
    if isinstance(result, OSError):
        raise result
    return result


def touch(path, ns):
    path.touch()
    os.utime(path, ns=(ns, ns))


def names(path):
    return set(os.listdir(path))


# ---- looking ----


def test_what_stands(tmp_path):
    touch(tmp_path / PENDING, 17)
    touch(tmp_path / (TAKEN + CANCEL), 18)
    carry_out(markers.publish(tmp_path, DONE, fields_of(DONE)))
    (tmp_path / OPEN_FLAG).touch()
    found = markers.look(tmp_path)
    assert found.request_ns(PENDING) == 17 and found.request_ns(CANCEL) == 0 and found.taken == {CANCEL: 18}
    assert found.states() == (DONE,) and found.markers[DONE].token == "t1" and found.open


def test_no_directory(tmp_path):
    (tmp_path / "file").touch()
    for path in tmp_path / "nothing", tmp_path / "file":
        assert not markers.look(path).exists


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 100, b"\xff\xfe=x\n", b"token", b"TOKEN=t1\n", b"x" * 200_000, b"\n" * 70_000 + b"token=t1\n"]
)
def test_junk_in_a_marker_has_no_token(tmp_path, junk):
    (tmp_path / DONE).write_bytes(junk)
    assert markers.look(tmp_path).markers[DONE].token == ""


def test_a_marker_that_is_no_file_is_junk(tmp_path):
    (tmp_path / DONE).mkdir()
    (tmp_path / SUBMITTED).symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / FAILED)
    (tmp_path / PENDING).symlink_to("/etc/passwd")
    found = markers.look(tmp_path)
    assert not found.markers and set(found.junk) == {DONE, SUBMITTED, FAILED, PENDING} and set(found.states()) == set(STATES)


def test_a_marker_that_vanishes_while_it_is_looked_at(tmp_path, monkeypatch):
    assert not markers.look(tmp_path, {PENDING, DONE, TAKEN + PENDING}).markers  # gone since the listing
    (tmp_path / DONE).write_text("token=t1\n")
    lstat = os.lstat

    def gone_after(path):
        info = lstat(path)
        os.unlink(path)
        return info

    monkeypatch.setattr(os, "lstat", gone_after)
    assert DONE not in markers.look(tmp_path).markers


def test_a_marker_that_may_not_be_read_stands_without_fields(tmp_path, monkeypatch):
    (tmp_path / DONE).write_text("token=t1\n")
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert markers.look(tmp_path).markers[DONE].fields == {}


# ---- publishing ----


@pytest.mark.parametrize("state", STATES)
def test_one_state_stands_whatever_stood_there(tmp_path, state):
    for other in STATES:
        (tmp_path / other).mkdir()
        (tmp_path / other / "keep").touch()
    carry_out(markers.publish(tmp_path, state, fields_of(state)))
    found = markers.look(tmp_path)
    assert found.states() == (state,) and found.markers[state].fields["state"] == state
    assert sorted(n for n in names(tmp_path) if "junk" in n) == [f".watchties.junk.{s}.1" for s in sorted(STATES)]


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.symlink_to("/etc/passwd"), os.mkfifo])
def test_pending_of_our_own_stands_whatever_stood_there(tmp_path, make):
    make(tmp_path / PENDING)
    (tmp_path / DONE).touch()
    job = job_of(tmp_path, record.accept(Record(), Request(WEB, PENDING, 1), "t1"))
    new = carry_out(steps.perform(job, Step("publish", "", marker=PENDING), None))
    found = markers.look(tmp_path)
    assert found.request_ns(PENDING) == new.own and not found.states() and recordfile.load(tmp_path).own == new.own


def test_pending_of_our_own_never_replaces_a_request(tmp_path):
    ns = markers.prepare_pending(tmp_path)
    touch(tmp_path / PENDING, 99)  # a person was faster
    carry_out(markers.publish_pending(tmp_path))
    assert markers.look(tmp_path).request_ns(PENDING) == 99 != ns and names(tmp_path) == {PENDING}


def test_a_request_of_a_command_appears_whole(tmp_path):
    touch(tmp_path / PENDING, 5)
    ns = markers.put_request(tmp_path, PENDING)
    assert names(tmp_path) == {PENDING} and markers.look(tmp_path).request_ns(PENDING) == ns


# ---- taking off ----


@pytest.mark.parametrize("name", [PENDING, CANCEL])
def test_only_an_accepted_request_is_taken_off(tmp_path, name):
    touch(tmp_path / name, 5)
    carry_out(markers.take_off(tmp_path, name, {5}.__contains__))
    assert not names(tmp_path)
    touch(tmp_path / name, 6)
    carry_out(markers.take_off(tmp_path, name, {5}.__contains__))
    assert markers.look(tmp_path).request_ns(name) == 6 and names(tmp_path) == {name}
    carry_out(markers.take_off(tmp_path / "nothing", name, {5}.__contains__))


@pytest.mark.parametrize(
    "hidden, standing, left", [(5, None, None), (6, None, 6), (5, 7, 7), (6, 5, 6), (6, 7, 7)]
)  # 5 is accepted, 6 and 7 are not
def test_a_leftover_is_put_back_unless_it_is_accepted_or_a_later_one_stands(tmp_path, hidden, standing, left):
    touch(tmp_path / (TAKEN + PENDING), hidden)
    if standing:
        touch(tmp_path / PENDING, standing)
    carry_out(markers.restore(tmp_path, PENDING, {5}.__contains__))
    assert markers.look(tmp_path).request_ns(PENDING) == (left or 0) and not markers.look(tmp_path).taken


def test_a_leftover_is_put_back_over_junk(tmp_path):
    touch(tmp_path / (TAKEN + PENDING), 6)
    (tmp_path / PENDING).mkdir()
    carry_out(markers.restore(tmp_path, PENDING, {5}.__contains__))
    assert markers.look(tmp_path).request_ns(PENDING) == 6


# ---- scans ----


@pytest.mark.parametrize(
    "found, waits",
    [("", False), ("x y", False), (".watchties DONE", False), (".watchties FAILED x", False), (PENDING, True), (CANCEL, True),
     (TAKEN + PENDING, True), (".watchties DONE " + OPEN_FLAG, True), (".watchties SUBMITTED", True), (".watchties SUBMITTED DONE", True),
     (".watchties", True), ("DONE SUBMITTED", False)],
)  # fmt: skip
def test_what_a_scan_takes_up(found, waits):
    assert markers.waiting(set(found.split())) is waits


# ---- crashes ----


def job_of(path, rec):
    return jobs.Job(JobId("t", "u/e"), str(path), rec)


def crash_at(monkeypatch, number, when):
    """Make the number-th call that changes a directory the last one: `before` or `after` the real call is made."""
    count = [0]

    def wrap(real):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] > number or (count[0] == number and when == "before"):
                raise CrashNow
            result = real(*args, **kwargs)
            if count[0] == number:
                if real is opened and isinstance(result, int):
                    os.close(result)
                raise CrashNow
            return result

        return call

    opened = os.open
    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return count


def stable(path):
    """Be another daemon: read everything from the disk, do Steps until none is due; return (record, what stands, steps done)."""
    job, done, tokens = job_of(path, recordfile.load(path)), [], iter("abcdefgh")
    while step := decide.next_step(job.seen(), None):
        done.append(step.what)
        assert len(done) < 20, done
        job.record = carry_out(steps.perform(job, step, lambda: next(tokens)))
    return job.record, markers.look(path), done


FIRST = record.accept(Record(), Request(WEB, PENDING, 1), "t1")
RUNNING = record.outcome_of_submit(record.contact(FIRST, "b1"), {"id": "7"})
STORIES = {  # what the record holds, what stands, what is to be seen in the end
    "pending": (FIRST, {}, PENDING),
    "pending over an old state": (FIRST, {DONE: 1}, PENDING),
    "pending over junk": (FIRST, {PENDING: "directory"}, PENDING),
    "submitted": (RUNNING, {PENDING: "own"}, SUBMITTED),
    "done": (record.outcome_of_fetch(RUNNING, {"state": DONE}), {SUBMITTED: 1, PENDING: "own"}, DONE),
    "failed over junk": (record.fail(RUNNING, "exit", "x"), {FAILED: "directory", SUBMITTED: 1}, FAILED),
    "a request of a person": (Record(), {PENDING: 77}, PENDING),
    "a request of a person after the end": (record.outcome_of_fetch(RUNNING, {"state": DONE}), {DONE: 1, PENDING: 77}, PENDING),
    "a leftover": (RUNNING, {TAKEN + PENDING: 77}, PENDING),
    "cancel in the mirror": (FIRST, {CANCEL: 88}, FAILED),
}


def prepare(path, story):
    rec, stands, _ = STORIES[story]
    if "own" in stands.values():
        rec = record.replace(rec, own=55)
    if rec.attempt:
        carry_out(recordfile.save(path, rec))
    for name, value in stands.items():
        if value == "directory":
            (path / name).mkdir()
        else:
            touch(path / name, 55 if value == "own" else value)


def check(path, story, rec, stands):
    _, before, end = STORIES[story]
    person = [Request(MIRROR, PENDING, ns) for ns in before.values() if ns == 77]
    assert rec.phase == end and rec == recordfile.load(path)
    assert all(rec.has_accepted(request) for request in person)
    assert sum(text.startswith(MIRROR) for text in rec.accepted) == len(person) + (CANCEL in before)
    assert stands.states() == (() if end == PENDING else (end,)) and (PENDING in stands.markers) == (end == PENDING)
    assert not stands.taken and CANCEL not in stands.markers
    hidden = {n for n in names(path) if n.startswith(NEW)}
    assert hidden <= {NEW + s for s in (*STATES, PENDING)}


@pytest.mark.parametrize("story", STORIES)
def test_the_daemon_ends_in_the_same_place_without_a_crash(tmp_path, story):
    prepare(tmp_path, story)
    rec, stands, done = stable(tmp_path)
    check(tmp_path, story, rec, stands)
    assert done and len(done) == len({*done}) and stable(tmp_path)[2] == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("story", STORIES)
def test_a_crash_at_any_call_loses_and_repeats_nothing(tmp_path, story, when):
    number, crashed = 0, True
    while crashed:
        number += 1
        path = tmp_path / str(number)
        path.mkdir()
        prepare(path, story)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, number, when)
            try:
                stable(path)
                crashed = False
            except CrashNow:
                pass
        rec, stands, _ = stable(path)
        check(path, story, rec, stands)
        assert rec.attempt <= STORIES[story][0].attempt + 1
    assert number > 5  # it did crash at many places


@pytest.mark.parametrize("story", STORIES)
def test_a_crash_at_any_barrier_loses_and_repeats_nothing(tmp_path, story):
    number, crashed = 0, True
    while crashed:
        number += 1
        path = tmp_path / str(number)
        path.mkdir()
        prepare(path, story)
        crashed = not through_barriers(path, number)
        rec, stands, _ = stable(path)
        check(path, story, rec, stands)
    assert number > 1


def through_barriers(path, count):
    """Do Steps, and drop the plan at the count-th barrier; return whether it got to the end before."""
    job = job_of(path, recordfile.load(path))
    while step := decide.next_step(job.seen(), None):
        plan = steps.perform(job, step, lambda: "new")
        while True:
            try:
                durable.sync(next(plan))
            except StopIteration as stop:
                job.record = stop.value
                break
            count -= 1
            if not count:
                plan.close()
                return False
    return True


def test_the_record_holds_our_own_pending_before_it_can_be_seen(tmp_path, monkeypatch):
    prepare(tmp_path, "pending")
    seen = []
    link = os.link
    monkeypatch.setattr(os, "link", lambda *args: seen.append(recordfile.load(tmp_path).own) or link(*args))
    rec, stands, _ = stable(tmp_path)
    assert seen == [rec.own] == [stands.request_ns(PENDING)]


def test_the_open_flag_stands_before_the_record_and_goes_last(tmp_path):
    job = job_of(tmp_path, Record())
    plan = steps.save(job, FIRST)
    next(plan)
    assert markers.look(tmp_path).open and recordfile.load(tmp_path) == Record()
    for _ in plan:
        pass
    carry_out(steps.perform(job, Step("close", ""), None))
    assert not markers.look(tmp_path).open and recordfile.load(tmp_path) == FIRST


def test_a_job_that_the_mirror_does_not_hold_is_made(tmp_path):
    job = job_of(tmp_path / "user" / "exp", Record())
    carry_out(steps.create(job, FIRST))
    assert recordfile.load(job.dir) == FIRST and stat.S_ISDIR(os.lstat(job.dir).st_mode)


def test_markers_say_what_people_need_in_order(tmp_path):
    rec = record.fail(RUNNING, "exit", "exit code 3\nand more")
    carry_out(markers.publish(tmp_path, FAILED, steps.marker_fields(rec)))
    lines = (tmp_path / FAILED).read_text().splitlines()
    assert lines == ["state=FAILED", "attempt=1", "token=t1", "host=b1", "id=7", "cause=exit", "reason=exit code 3 and more"]
    assert markers.look(tmp_path).markers[FAILED].ns <= time.time_ns()


def test_what_a_crash_left_under_a_hidden_name_goes_with_the_next_state(tmp_path):
    """Killed right after the link of our own PENDING, or before the rename of a state."""
    for name in PENDING, SUBMITTED:
        (tmp_path / f".watchties.new.{name}").touch()
    carry_out(markers.publish(tmp_path, DONE, {"state": DONE}))
    assert [path.name for path in tmp_path.iterdir()] == [DONE]
