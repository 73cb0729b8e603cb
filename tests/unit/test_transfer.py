"""transfer.py, batches.py: what rsync is told, what its exit codes mean, how a batch is halved. Real rsync, real files."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import free_port, make_site, put  # noqa: E402

from watchties import batches, rsyncsays, transfer# noqa: E402
from watchties.errors import CommandFailed, NotNow, Unreachable, WatchtiesError  # noqa: E402
from watchties.hookkit import Job  # noqa: E402
from watchties.shell import Result  # noqa: E402
from watchties.ssh import Far  # noqa: E402

NASTY = ["plain", "two words", "#comment", ";semi", "-dash", "star*", "que?ry", "[set]", "back\\slash", "br\\[acket", "new\nline",
         "\\#012", "é", "quote'\"", "$(touch x)", "odd\udcff", "tab\there", "end ", "\u2028sep", "\x85nel"]  # fmt: skip


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


@pytest.fixture
def route(site):
    return transfer.Route.of(site.config, "ties", "vision")


def job_of(site, name):
    return Job("ties", name, str(site.mirror / name))


def result(code, err=""):
    return Result(code, "", err)


def failure(route, code, err=""):
    return rsyncsays.RsyncFailed(["rsync"], result(code, err), route)


# ---- exit codes ----


def test_every_exit_code_has_a_kind_and_a_reason():
    for code, (kind, why) in rsyncsays.EXIT_CODES.items():
        assert kind in (rsyncsays.OK, rsyncsays.AGAIN, rsyncsays.RESOURCES, rsyncsays.PARTIAL, rsyncsays.PERMANENT)
        assert bool(why) == bool(code)


@pytest.mark.parametrize("code", [5, 10, 12, 13, 14, 16, 19, 20, 22, 30, 35, 99, 137])
def test_passing_failures_are_transient(route, code):
    assert failure(route, code).transient


@pytest.mark.parametrize("code", [1, 2, 3, 4, 25, 127])
def test_configuration_is_not_tried_again(route, code):
    assert not failure(route, code).transient and failure(route, code).kind == rsyncsays.PERMANENT


@pytest.mark.parametrize("code", [11, 23, 24])
def test_codes_that_files_are_to_blame_for(route, code):
    assert failure(route, code).kind == rsyncsays.PARTIAL


def test_a_full_disk_is_transient_and_called_so(route):
    error = failure(route, 11, 'rsync: [receiver] write failed on "/x/y": No space left on device (28)\nrsync error: error in file IO')
    assert error.transient and "a disk is full" in error.reason() and '"/x/y"' in error.reason()


# ---- halving ----


def bad_step(bad, calls, route, code=23):
    def step(jobs):
        calls.append(list(jobs))
        if bad & set(jobs):
            raise failure(route, code)
        return {job: "well" for job in jobs}

    return step


def test_one_bad_job_does_not_spoil_a_batch(route):
    calls, jobs = [], [f"j{n}" for n in range(16)]
    told = batches.each(jobs, bad_step({"j5"}, calls, route))
    assert [job for job in jobs if told[job] != "well"] == ["j5"]
    assert len(calls) == 9  # 1 + 2 at each of four levels: not one rsync a job


def test_vanished_files_are_looked_at_once_more(route):
    calls = []
    told = batches.each(["a"], bad_step({"a"}, calls, route, code=24))
    assert calls == [["a"], ["a"]] and isinstance(told["a"], rsyncsays.RsyncFailed)


def test_what_concerns_the_host_is_raised_at_once(route):
    calls = []
    with pytest.raises(rsyncsays.RsyncFailed):
        batches.each(["a", "b"], bad_step({"a"}, calls, route, code=12))
    assert len(calls) == 1


def test_a_full_disk_is_halved_too_as_small_jobs_may_still_fit(route):
    def step(jobs):
        if "big" in jobs:
            raise failure(route, 12, "write failed: No space left on device (28)")
        return dict.fromkeys(jobs, "well")

    told = batches.each(["a", "big", "b"], step)
    assert told["a"] == told["b"] == "well" and told["big"].no_space


def test_no_jobs_no_rsync(route):
    assert batches.carry(route, {}, inward=True) == {}


# ---- names ----


def test_nasty_names_travel_and_are_listed_as_they_are(site, route):
    for name in NASTY:
        put(site.web / "ann" / "e1" / name, name)
        put(site.web / "bob" / "e 2" / "sub dir" / name, name)
    jobs = [job_of(site, "ann/e1"), job_of(site, "bob/e 2")]
    told = batches.carry(route, {job: [job.job] for job in jobs}, inward=True, listing=True)
    assert set(told[jobs[0]]) == set(NASTY)
    assert set(told[jobs[1]]) == {"sub dir"} | {f"sub dir/{name}" for name in NASTY}
    for name in NASTY:
        assert (site.mirror / "ann" / "e1" / name).read_bytes() == name.encode("utf-8", "surrogateescape")


def test_unchanged_files_are_listed_too_and_begin_with_a_dot(site, route):
    put(site.web / "ann/e1/a", "x")
    job = job_of(site, "ann/e1")
    first = batches.carry(route, {job: [job.job]}, inward=True, listing=True)[job]
    second = batches.carry(route, {job: [job.job]}, inward=True, listing=True)[job]
    assert first["a"].startswith(">f") and second["a"].startswith(".f")


@pytest.mark.parametrize("name", NASTY)
def test_just_the_spared_path_is_spared(site, route, name):
    job, near = job_of(site, "ann/e[1]"), [n for n in ["starfish", "queery", "s", "e", "t", "plainer"] if n != name]
    for path in [name, f"sub/{name}", *near]:
        put(site.web / job.job / path, "web")
        put(site.mirror / job.job / path, "mirror's")
    batches.carry(route, {job: [job.job]}, spared={job: [name]}, inward=True)
    there = {path: (site.mirror / job.job / path).read_text() for path in [name, f"sub/{name}", *near]}
    assert there == {name: "mirror's", f"sub/{name}": "web"} | dict.fromkeys(near, "web")


def test_only_the_files_named_are_sent(site, route):
    for name in NASTY:
        put(site.mirror / "ann/e1/d" / name, "x")
    put(site.mirror / "ann/e1/d/other", "x")
    job = job_of(site, "ann/e1")
    batches.carry(route, {job: [f"ann/e1/d/{name}" for name in NASTY] + ["ann/e1/d"]}, inward=False, recursive=False)
    assert sorted(os.listdir(site.web / "ann/e1/d")) == sorted(NASTY)


# ---- what never travels ----


def test_markers_and_hidden_names_stay_but_results_of_the_same_name_travel(site, route):
    names = ["PENDING", "SUBMITTED", "DONE", "FAILED", "CANCEL", ".watchties/record.json", ".watchties.open", ".watchties.taken.PENDING"]
    for name in [*names, "plots/DONE", "plots/.watchties", ".hidden", "DONE.txt"]:
        put(site.web / "ann/e1" / name, "x")
    job = job_of(site, "ann/e1")
    batches.carry(route, {job: [job.job]}, inward=True)
    found = sorted(str(p.relative_to(site.mirror / "ann/e1")) for p in (site.mirror / "ann/e1").rglob("*") if p.is_file())
    assert found == [".hidden", "DONE.txt", "plots/.watchties", "plots/DONE"]


def test_the_excludes_follow_the_pattern():
    assert "/*/*/*/DONE" in transfer.never_travel("*/*/*") and "/*/.watchties*" in transfer.never_travel("exp_*")


def test_no_link_in_place_of_the_directory_of_unfinished_files_travels(site, route, tmp_path):
    secret = put(tmp_path / "secret/id", "a key")
    job, source = job_of(site, "ann/e1"), site.web / "ann/e1"
    (source / "plots").mkdir(parents=True)
    (source / "plots/.watchties.partial").symlink_to(secret.parent)
    batches.carry(route, {job: [job.job]}, inward=True)
    assert not os.path.lexists(site.mirror / "ann/e1/plots/.watchties.partial")
    put(source / "plots/id", "what the job calls so")  # through the link, rsync would take the key for its beginning, and remove it
    batches.carry(route, {job: [job.job]}, inward=True)
    assert secret.read_text() == "a key" and (site.mirror / "ann/e1/plots/id").read_text() == "what the job calls so"


def test_a_sparse_file_stays_sparse(site, route):
    job = job_of(site, "ann/e1")
    with put(site.web / "ann/e1/sparse", "begin").open("ab") as file:
        file.truncate(200 << 20)
    batches.carry(route, {job: [job.job]}, inward=True)
    found = (site.mirror / "ann/e1/sparse").stat()
    assert found.st_size == 200 << 20 and found.st_blocks * 512 < 1 << 20


def test_devices_sockets_pipes_and_set_uid_are_not_carried(site, route):
    job, source = job_of(site, "ann/e1"), site.web / "ann/e1"
    put(source / "tool", "#!/bin/sh\n").chmod(0o6755)
    os.mkfifo(source / "pipe")
    if os.geteuid() == 0:
        os.mknod(source / "null", 0o666 | 0o020000, os.makedev(1, 3))
    batches.carry(route, {job: [job.job]}, inward=True)
    assert os.listdir(site.mirror / "ann/e1") == ["tool"]
    assert (site.mirror / "ann/e1/tool").stat().st_mode & 0o7777 == 0o755 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_set_uid_is_not_carried_with_a_chmod_either(site):
    site.config["host"]["vision"]["chmod"] = "D2775,F6664"
    route, job = transfer.Route.of(site.config, "ties", "vision"), job_of(site, "ann/e1")
    put(site.mirror / "ann/e1/plots/a", "x").chmod(0o600)
    (site.web / "ann/e1").mkdir(parents=True)
    (site.web / "ann/e1").chmod(0o2750)
    names = ["ann/e1/plots", "ann/e1/plots/a"]
    batches.carry(route, {job: names}, inward=False, recursive=False)
    assert (site.web / "ann/e1/plots/a").stat().st_mode & 0o7777 == 0o664
    assert (site.web / "ann/e1/plots").stat().st_mode & 0o7777 == 0o2775
    assert (site.web / "ann/e1").stat().st_mode & 0o7777 == 0o2750  # it was there before: not ours to change


def test_what_a_user_made_read_only_does_not_stop_the_next_transfer(site, route):
    job, source = job_of(site, "ann/e1"), site.web / "ann/e1"
    put(source / "sub/a", "1").chmod(0o400)
    (source / "sub").chmod(0o500)
    batches.carry(route, {job: [job.job]}, inward=True)
    (source / "sub").chmod(0o700)
    assert (site.mirror / "ann/e1/sub").stat().st_mode & 0o700 == 0o700
    assert (site.mirror / "ann/e1/sub/a").stat().st_mode & 0o600 == 0o600


def test_a_file_becomes_executable_later(site, route):
    job, source = job_of(site, "ann/e1"), put(site.web / "ann/e1/command", "true")
    source.chmod(0o644)
    batches.carry(route, {job: [job.job]}, inward=True)
    source.chmod(0o755)
    batches.carry(route, {job: [job.job]}, inward=True)
    assert os.access(site.mirror / "ann/e1/command", os.X_OK) and (site.mirror / "ann/e1/command").stat().st_mode & 0o100


# ---- what rsync does by itself, and must not ----


def test_a_change_within_the_same_second_of_the_same_size_travels(site, route):
    job, source = job_of(site, "ann/e1"), put(site.web / "ann/e1/a", "one")
    os.utime(source, ns=(10**18, 10**18))
    batches.carry(route, {job: [job.job]}, inward=True)
    source.write_text("two")
    os.utime(source, ns=(10**18 + 1, 10**18 + 1))
    batches.carry(route, {job: [job.job]}, inward=True)
    assert (site.mirror / "ann/e1/a").read_text() == "two"
    assert os.stat(site.mirror / "ann/e1/a").st_mtime_ns == 10**18 + 1


def test_a_user_directory_keeps_its_mode_and_a_link_in_its_place_is_refused(site, route):
    job, other = job_of(site, "ann/e1"), job_of(site, "eve/e1")
    for name in "ann", "eve":
        put(site.mirror / name / "e1/a", "x")
        (site.mirror / name).chmod(0o700)
    (site.web / "ann").mkdir()
    (site.web / "ann").chmod(0o2775)
    (site.base / "elsewhere").mkdir()
    (site.web / "eve").symlink_to(site.base / "elsewhere")
    told = batches.carry(route, {j: [j.job] for j in (job, other)}, inward=False)
    assert told[job] == {} and (site.web / "ann/e1/a").read_text() == "x"
    assert (site.web / "ann").stat().st_mode & 0o7777 == 0o2775
    assert isinstance(told[other], rsyncsays.RsyncFailed) and (site.web / "eve").is_symlink()
    assert os.listdir(site.base / "elsewhere") == []


def test_nothing_is_deleted(site, route):
    put(site.mirror / "ann/e1/old", "x")
    put(site.web / "ann/e1/new", "x")
    job = job_of(site, "ann/e1")
    batches.carry(route, {job: [job.job]}, inward=True)
    assert sorted(os.listdir(site.mirror / "ann/e1")) == ["new", "old"]


def test_a_job_that_is_not_there_is_named_and_the_others_travel(site, route, capsys):
    jobs = [job_of(site, f"ann/e{n}") for n in range(5)]
    for job in jobs[:4]:
        put(site.web / job.job / "a", "x")
    told = batches.carry(route, {job: [job.job] for job in jobs}, inward=True)
    assert [job.job for job in jobs if isinstance(told[job], Exception)] == ["ann/e4"]
    assert "ann/e4" in told[jobs[4]].reason() and "vision" in told[jobs[4]].reason()
    assert (site.mirror / "ann/e3/a").exists()


@pytest.mark.parametrize("inward", [True, False])
def test_a_root_that_is_not_there_is_no_jobs_fault_and_is_not_made(site, route, monkeypatch, inward):
    monkeypatch.setattr("watchties.retry.WAIT", lambda state: 0)
    site.web.rmdir()
    job = job_of(site, "ann/e1")
    put(site.mirror / "ann/e1/a", "x")
    with pytest.raises(Unreachable, match="vision: its directory .*user_data cannot be entered; is its disk mounted"):
        batches.carry(route, {job: [job.job]}, inward=inward)
    assert not site.web.exists()


def test_a_files_name_that_says_the_root_is_missing_concerns_its_job_alone(site, route):
    words = f'rsync: [sender] send_files failed to open "{route.far_root}/a/e/change_dir "{route.far_root}" failed": Permission denied (13)'
    error = transfer.failure(route, ["rsync"], result(23, words + "\nrsync error: some files could not be transferred (code 23)"))
    assert isinstance(error, rsyncsays.RsyncFailed) and error.kind == rsyncsays.PARTIAL


@pytest.mark.parametrize("inward", [True, False])
def test_a_mirror_that_is_not_there_is_no_jobs_fault_and_is_not_made(site, route, inward):
    site.mirror.rmdir()
    job = job_of(site, "ann/e1")
    put(site.web / "ann/e1/a", "x")
    with pytest.raises(NotNow, match="the tree .*user_data is not there .*: mount it, or put it back"):
        batches.carry(route, {job: [job.job]}, inward=inward)
    assert not site.mirror.exists()


# ---- hosts that are reached ----


def test_ssh_that_cannot_connect_is_unreachable(site, monkeypatch):
    site.config["host"]["vision"] |= {"ssh": "127.0.0.1", "root": "compties", "ssh_options": [f"Port={free_port()}"]}
    monkeypatch.setattr("watchties.retry.WAIT", lambda state: 0)
    route, job = transfer.Route.of(site.config, "ties", "vision"), job_of(site, "ann/e1")
    with pytest.raises(Unreachable, match="vision did not answer: .*Connection refused"):
        batches.carry(route, {job: [job.job]}, inward=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_become_owns_what_is_written():
    with tempfile.TemporaryDirectory() as base:  # others may enter this one, but not pytest's
        os.chmod(base, 0o755)
        site = make_site(base)
        site.config["host"]["vision"] |= {"become": "nobody"}
        shutil.chown(site.web, "nobody")
        route, job = transfer.Route.of(site.config, "ties", "vision"), job_of(site, "ann/it's $(x)")
        put(site.mirror / job.job / "a b", "x")
        batches.carry(route, {job: [job.job]}, inward=False)
        assert (site.web / job.job / "a b").owner() == "nobody"


def test_what_a_run_by_hand_that_was_killed_has_left_is_removed_and_that_of_one_at_work_is_not(site, route, tmp_path, monkeypatch):
    killed = subprocess.Popen(["true"])
    killed.wait()
    rooms = site.mirror / ".watchties.coming"
    for name in f"pid-{killed.pid}", f"pid-{os.getppid()}", "pull.vision.1":
        put(rooms / name / "half.XXXXXX", b"half")
    for lock in "pull.vision.0", "pull.vision.by-hand":
        with open(tmp_path / lock, "w") as held:
            monkeypatch.setenv("WATCHTIES_LOCK_FD", str(held.fileno()))
            put(site.web / "ann/e1/data", lock)
            transfer.rsync(route, ["ann/e1"], inward=True)
            assert (site.mirror / "ann/e1/data").read_text() == lock
            assert sorted(os.listdir(rooms)) == sorted([f"pid-{os.getppid()}", "pull.vision.1"])


def test_a_mirror_where_no_directory_can_be_made_is_no_jobs_fault(site, route):
    put(site.mirror / ".watchties.coming", b"in the way")
    put(site.web / "ann/e1/data")
    with pytest.raises(NotNow, match="cannot be made: "):
        transfer.rsync(route, ["ann/e1"], inward=True)


def test_two_runs_by_hand_at_once_have_a_room_each(site, route, tmp_path, monkeypatch):
    with open(tmp_path / "pull.vision.by-hand", "w") as held:
        monkeypatch.setenv("WATCHTIES_LOCK_FD", str(held.fileno()))
        with transfer._workroom(route, True) as (option,):
            assert option.endswith(f".watchties.coming/pid-{os.getpid()}")


def test_the_words_of_the_remote_shell_survive_rsyncs_own_parser():
    far = Far("b01", "b01", "compties", "o'brien", ("-o", "ProxyCommand=nc 'x y' \"z\""))
    option, words, path = transfer.remote_shell(far)
    assert option == "-e" and words.startswith("sh -c '") and words.endswith("' rsh")
    script = words.removeprefix("sh -c '").removesuffix("' rsh").replace("''", "'")
    assert shlex.split(script)[-3:] == ["--", "b01", "$@"] and far.options[1] in shlex.split(script)
    assert shlex.split(path.removeprefix("--rsync-path="))[0] == "sh"


def test_a_program_that_is_missing_names_the_package(site, route, monkeypatch):
    monkeypatch.setenv("PATH", str(site.base))
    with pytest.raises(WatchtiesError, match="rsync is not on this machine: install the package rsync"):
        transfer.rsync(route, ["x"], inward=True)


def test_time_that_is_over_stops_rsync(site, monkeypatch):
    put(site.base / "bin/rsync", "#!/bin/sh\nsleep 30\n").chmod(0o755)
    monkeypatch.setenv("PATH", f"{site.base / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(CommandFailed, match="not done after 0.2 s") as caught:
        transfer.rsync(transfer.Route.of(site.config, "ties", "vision"), ["x"], inward=True, timeout=0.2)
    assert caught.value.transient


def test_a_name_with_a_line_feed_in_it_leads_to_no_other_jobs_file(site, route):
    """A user has made a directory so named that, listed line by line, a file of another's job stands there."""
    put(site.web / "bob/e/.data.Ab12Cd", "bob's own").chmod(0o600)
    put(site.mirror / "bob/e/data", "x")
    put(site.web / "ann/e/.a.Ab12Cd\nuser_data/bob/e/.data.Ab12Cd", "").chmod(0o600)
    (site.web / "bob/e/.data.Ab12Cd").chmod(0o640)  # no leftover of rsync's
    put(site.mirror / "ann/e/a", "x")
    batches.take_up_cut(route, [job_of(site, "ann/e"), job_of(site, "bob/e")])
    assert (site.web / "bob/e/.data.Ab12Cd").read_text() == "bob's own"


def test_a_leftover_whose_name_is_no_utf8_stops_no_push(site, route):
    odd, plain = (os.fsdecode(name) for name in (b"n\xff", b"plain"))
    for name in odd, plain:
        put(site.mirror / "ann/e" / name, "half and half")
        put(site.web / f"ann/e/.{name}.Ab12Cd", "half").chmod(0o600)
    batches.take_up_cut(route, [job_of(site, "ann/e")])
    assert (site.web / "ann/e/.watchties.partial/plain").read_text() == "half" and (site.web / f"ann/e/.{odd}.Ab12Cd").exists()


def test_leftovers_far_down_in_a_tree_are_taken_up_though_their_names_fill_a_command_line(site, route):
    deep = "/".join("d" * 200 for _ in range(5))
    for n in range(batches.shell.FEW):
        put(site.mirror / "ann/e" / deep / f"data{n}", "half and half")
        put(site.web / "ann/e" / deep / f".data{n}.Ab12Cd", "half").chmod(0o600)
    quotes = "/".join("'" * 200 for _ in range(12))  # each becomes five, and is named three times
    put(site.mirror / "ann/e" / quotes / "data", "half and half")
    put(site.web / "ann/e" / quotes / ".data.Ab12Cd", "half").chmod(0o600)
    batches.take_up_cut(route, [job_of(site, "ann/e")])
    kept = [(site.web / "ann/e" / deep / ".watchties.partial" / f"data{n}").read_text() for n in range(batches.shell.FEW)]
    assert kept == ["half"] * batches.shell.FEW


def test_a_leftover_that_was_whole_and_not_yet_renamed_is_taken_up(site, route):
    """rsync gives a file its permissions and time before its name: killed in between, it leaves one that others may read."""
    for name in "whole", "other":
        put(site.mirror / "ann/e" / name, "the same")
    put(site.web / "ann/e/.whole.Ab12Cd", "the same").chmod(0o644)
    shutil.copystat(site.mirror / "ann/e/whole", site.web / "ann/e/.whole.Ab12Cd")
    put(site.web / "ann/e/.other.backup", "a user's own").chmod(0o644)
    batches.take_up_cut(route, [job_of(site, "ann/e")])
    assert sorted(p.name for p in (site.web / "ann/e").iterdir() if p.name.startswith(".")) == [".other.backup", ".watchties.partial"]
