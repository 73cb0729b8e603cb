"""What stands on the web host, as runs and relays tell it in turn: the newer word counts, whoever said it."""

from watchties.jobs import Job
from watchties.model import JobId
from watchties.record import Record


def job():
    return Job(JobId("main", "ann/e1"), "/nowhere", Record())


def test_what_a_run_saw_replaces_what_was_announced_before_it():
    one = job()
    one.hear(pending=17, cancel=18, taken=True)
    one.look_at_web()
    one.seen_by_run(pending=0, cancel=0, taken=False)
    assert (one.web.pending, one.web.cancel, one.web.taken) == (0, 0, False)


def test_a_request_announced_while_a_run_was_looking_outlives_what_the_run_saw():
    one = job()
    one.look_at_web()
    one.hear(pending=17)
    one.seen_by_run(pending=0, cancel=0)
    assert (one.web.pending, one.web.cancel) == (17, 0)
    one.look_at_web()
    one.seen_by_run(pending=0)
    assert one.web.pending == 0
