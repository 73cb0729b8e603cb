"""A compute host that went down just as a job ended: what it counted and no longer has is lost, and not DONE."""

import runpy
from pathlib import Path

import pytest
from agent_kit import Agent, every_shell, make_job

from watchties import hookstart, manifest
from watchties.errors import AGAIN

FETCH = runpy.run_path(str(Path(__file__).resolve().parents[2] / "hooks" / "fetch"), run_name="fetch")


def ended(tmp_path, sh, boot, last="whole=yes\n"):
    """Return what `status` answers of a job that ended on this host under a boot of that name. last: line of its exit file."""
    make_job(tmp_path, "u/e")
    attempt = tmp_path / "u/e/.watchties/1.t1"
    attempt.mkdir(parents=True)
    host = Path("/proc/sys/kernel/hostname").read_text().strip()
    (attempt / "exit").write_text(f"code=0\nfiles=3\nbytes=300\nhost={host}\nboot={boot}\n{last}")
    return Agent(sh, tmp_path).one("status", line=["u/e", 1, "t1"])


@every_shell
def test_status_tells_that_the_host_has_booted_since(tmp_path, sh):
    assert "rebooted=1" in ended(tmp_path, sh, "another-boot")


@every_shell
def test_and_says_nothing_of_it_where_it_has_not(tmp_path, sh):
    answer = ended(tmp_path, sh, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    assert answer[0] == "exit" and "code=0" in answer and not any(word.startswith("rebooted") for word in answer)


@every_shell
def test_an_exit_file_that_has_been_cut_or_is_being_written_does_not_count(tmp_path, sh):
    assert ended(tmp_path, sh, "another-boot", last="whole=ye")[0] == "none"


class Result:
    def __init__(self, size):
        self.spared, self.listed = {}, {"a": "", "b": "", "c": ""}
        self.entries = {name: manifest.Entry(size, 1) for name in self.listed}


class Run:
    host, grace = "b01", 60.0

    def retry(self, job, reason, **fields):
        return None


class Job:
    id, fields = "main:u/e", {}


@pytest.mark.parametrize("rebooted, short, verdict", [(True, True, "lost"), (False, True, "awaited"), (True, False, "taken")])
def test_results_that_a_reboot_has_cut_are_lost(rebooted, short, verdict):
    left = {"code": "0", "files": "3", "bytes": "300"} | ({"rebooted": "1"} if rebooted else {})
    taken = FETCH["whole"](Run(), Job(), Result(50 if short else 100), left)
    assert ("lost" if left.get("cause") == "lost" else "taken" if taken else "awaited") == verdict


def test_a_hook_that_meets_half_an_upgrade_is_run_again(tmp_path, capsys):
    hook = tmp_path / "hook"
    hook.write_text("from watchties.model import no_such_word_yet\n")
    assert hookstart.run_file(str(hook)) == AGAIN
    hook.write_text("raise ZeroDivisionError\n")
    assert hookstart.run_file(str(hook)) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
