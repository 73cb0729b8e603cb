"""Far commands that are begun before what they need is known: given their input later, or none, and then they do nothing."""

import os
import time

import pytest
from helpers import wait_for
from watchties import shell
from watchties.errors import Unreachable
from watchties.ssh import Far

TAKE = "touch begun; while IFS= read -r line; do echo \"$line\" >>taken; echo \"got $line\"; done"


@pytest.fixture
def here(tmp_path):
    return Far("here", root=str(tmp_path))


def test_it_is_at_work_before_it_is_given_anything_and_answers_then(here, tmp_path):
    with shell.begun(here, TAKE) as begun:
        wait_for(lambda: (tmp_path / "begun").exists(), 20)
        assert not (tmp_path / "taken").exists()
        assert begun.finish("a\nb\n", 20)[:2] == (0, "got a\ngot b\n")
        assert begun.finish("c\n", 20) is None  # it is used up: the caller makes a call of its own
    assert (tmp_path / "taken").read_text() == "a\nb\n"


def test_what_is_given_nothing_does_nothing_and_ends(here, tmp_path):
    with shell.begun(here, TAKE + "; touch ended") as _:
        wait_for(lambda: (tmp_path / "begun").exists(), 20)
    assert not (tmp_path / "taken").exists()


def test_it_holds_its_channel_no_longer_than_for_a_while(here, tmp_path, monkeypatch):
    monkeypatch.setattr(shell, "STALE", 0.2)
    with shell.begun(here, TAKE + "; touch ended") as begun:
        wait_for(lambda: (tmp_path / "ended").exists(), 20)
        assert begun.finish("a\n", 20) is None
    assert not (tmp_path / "taken").exists()


def test_more_than_a_pipe_takes_is_left_to_a_call_of_its_own(here, tmp_path):
    with shell.begun(here, TAKE) as begun:
        assert begun.finish("x" * (shell.PIPE + 1), 20) is None


def test_one_that_has_failed_meanwhile_says_why(here, tmp_path):
    os.rmdir(tmp_path)
    with shell.begun(here, TAKE) as begun:
        time.sleep(0.1)
        with pytest.raises(Unreachable, match="its compties directory is not"):
            begun.finish("a\n", 20)


def test_an_error_meanwhile_stops_it(here, tmp_path):
    with pytest.raises(KeyError), shell.begun(here, TAKE + "; touch ended"):
        wait_for(lambda: (tmp_path / "begun").exists(), 20)
        raise KeyError
    assert not (tmp_path / "taken").exists()


def test_the_end_of_its_time_may_come_at_any_moment(here, tmp_path):
    class Taken(list):
        def pop(self):
            while self:
                super().pop().close()  # the timer is faster, by the width of one line
            raise IndexError

    with shell.begun(here, TAKE) as begun:
        begun._given = Taken(begun._given)
        assert begun.finish("a\n", 20) is None
    assert not (tmp_path / "taken").exists()
