"""Outside commands: nobody goes on before what a failed one has started has ended."""

import time

from watchties import shell

HALVES = "sh -c 'sleep {0}; echo late >>put_away; exit 0' & {1}"


def test_what_a_killed_command_has_started_puts_away_its_things_first(tmp_path):
    done = shell.run(["sh", "-c", HALVES.format(0.5, "kill -9 $$")], timeout=20, cwd=str(tmp_path))
    assert done.code == 137 and (tmp_path / "put_away").read_text() == "late\n"


def test_what_takes_too_long_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shell, "REST", 0.3)
    assert shell.run(["sh", "-c", HALVES.format(3, "exit 3")], timeout=20, cwd=str(tmp_path)).code == 3
    assert not (tmp_path / "put_away").exists()


def test_what_goes_on_after_a_command_that_went_well_is_let_be(tmp_path):
    assert shell.run(["sh", "-c", HALVES.format(2, "exit 0")], timeout=20, cwd=str(tmp_path)).code == 0
    assert not (tmp_path / "put_away").exists()
    time.sleep(3)
    assert (tmp_path / "put_away").exists()
