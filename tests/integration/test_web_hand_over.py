"""contrib/web: what a web application calls, in PHP and in shell, against a real daemon and real relays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import wait_for
from site_kit import Site

WEB = Path(__file__).parents[2] / "contrib/web"
RELAY = Path(__file__).parents[2] / "watchties/far/relay.py"
PHP = """require $argv[1]; $d = json_decode(stream_get_contents(STDIN), true);
foreach ($d['jobs'] as $job) {
    try { watchties_hand_over($d['tree'], $job, $d['marker'], $d['older']); }
    catch (InvalidArgumentException | RuntimeException $e) { fwrite(STDERR, get_class($e) . ': ' . $e->getMessage() . "\\n"); $bad = 1; }
}
exit($bad ?? 0);"""
HOSTILE = ["", "ann", "ann/", "/ann/x", "ann/../bob", "../x/y", "ann/.hidden", "ann/-rf", "-x/y", "ann/e/deep", "ann//e", "ann/new\nline",
           "ann/tab\there", "link/e", "ann/linked", "ann/missing"]  # fmt: skip
NAMES = ["ann/$(touch pwned)", "o'neil/it's \"quoted\"; `touch pwned`", "Jürgen/实验 *", "ann/a b  c", "ann/back\\slash", "ann/%s %n"]


def start(language, tree, jobs, marker="PENDING", older=None):
    if language == "php":
        argv, said = ["php", "-n", "-d", "error_reporting=-1", "-r", PHP, "--", str(WEB / "watchties.php")], {
            "tree": str(tree), "jobs": jobs, "marker": marker, "older": older and str(older)
        }  # fmt: skip
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdin.write(json.dumps(said))
        process.stdin.close()
        process.stdin = None
        return process
    argv = [str(WEB / "hand-over"), *(["--cancel"] if marker == "CANCEL" else []), "--tree", str(tree)]
    argv += [*(["--older", str(older)] if older else []), "--", *jobs]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(*args, **how):
    process = start(*args, **how)
    out, err = process.communicate(timeout=60)
    assert not out
    return process.returncode, err


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("web")) as site:
        site.wait_ready()
        yield site


def prepare(tree, job, command="true"):
    (tree / job).mkdir(parents=True, exist_ok=True)
    (tree / job / "command").write_text(command)


@pytest.mark.parametrize("language", ["php", "sh"])
def test_jobs_are_handed_over_run_stopped_and_read(site, language):
    jobs = [f"{language}{name}" for name in NAMES]
    for job in jobs:
        prepare(site.web, job)
    assert call(language, site.web, jobs) == (0, "")
    for job in jobs:
        assert site.wait_state(job, "DONE")["attempt"] == "1"
    prepare(site.web, long := f"{language}/long", "sleep 600")
    assert call(language, site.web, [long]) == (0, "")
    site.wait_state(long, "SUBMITTED")
    assert call(language, site.web, [long], marker="CANCEL") == (0, "")
    assert site.wait_state(long, "FAILED")["cause"] == "cancelled"
    assert not list(site.base.rglob("pwned")) and not list(site.web.rglob(".watchties.request*"))
    if language == "php":
        code = 'require $argv[1]; echo json_encode(watchties_state($argv[2], $argv[3]));'
        argv = ["php", "-n", "-r", code, "--", WEB / "watchties.php", site.web, jobs[1]]
        state, fields = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
        assert (state, fields["exit"], fields["host"]) == ("DONE", "0", "b01")


@pytest.mark.parametrize("language", ["php", "sh"])
def test_names_that_no_job_may_have_are_refused_each_with_a_line(tmp_path, language):
    there = "ann/e/deep", "bob/.x", "ann/.hidden", "ann/new\nline", "ann/tab\there", "-x/y"
    for name in (*(f"tree/{name}" for name in there), "scripts", "out/e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tree/link").symlink_to(tmp_path / "out")
    (tmp_path / "tree/ann/linked").symlink_to(tmp_path / "out/e")
    code, err = call(language, tmp_path / "tree", HOSTILE, older=tmp_path / "scripts")
    assert code == 1 and len(err.splitlines()) == len(HOSTILE), err
    assert not list(tmp_path.rglob("PENDING")) and not list((tmp_path / "scripts").iterdir())
    prepare(tmp_path / "tree", "ann/fine")
    code, err = call(language, tmp_path / "tree", ["ann/fine"], older=tmp_path / "nowhere")
    assert code == 1 and "nowhere/relay.lock" in err and len(err.splitlines()) == 1
    (tmp_path / "tree/ann/fine/PENDING").unlink()
    (tmp_path / "tree/ann/fine/PENDING").mkdir()
    (tmp_path / "tree/ann/fine/PENDING/x").write_text("")
    if language == "php":
        assert call(language, tmp_path / "tree", ["ann/fine"])[0] == 1


@pytest.mark.parametrize("language", ["php", "sh"])
def test_a_relay_that_is_dead_is_not_signalled_though_its_id_is_another_ones(tmp_path, language):
    prepare(tmp_path, "ann/E")
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "relay.pid").write_text(f"{sleeper.pid}\n")
        assert call(language, tmp_path, ["ann/E"], older=tmp_path) == (0, "")
        assert (tmp_path / "relay.names").read_text() == "ann/E\n" and sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_two_hundred_calls_at_once_and_none_is_lost(tmp_path):
    """The relay hears the file system of an empty tree only, so that each name that it tells came by relay.names."""
    tree, scripts, seen = tmp_path / "tree", tmp_path / "scripts", tmp_path / "seen"
    scripts.mkdir()
    jobs = [f"user{n % 7}/job {n}" for n in range(200)]
    for job in jobs:
        prepare(tree, job)
        prepare(seen, job)
        (seen / job / "PENDING").write_text("")
    argv = [sys.executable, str(RELAY), "--nonce", "00", "--no-list", "--heartbeat", "30"]
    argv += ["--directory", str(scripts), "--tree", f"t={seen}=*/*"]
    with open(tmp_path / "said", "wb") as out:
        relay = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out)
    try:
        wait_for(lambda: (scripts / "relay.pid").exists() and b"#watching" in (tmp_path / "said").read_bytes())
        calls = []
        for n, job in enumerate(jobs):
            calls.append(start("php" if n % 2 else "sh", tree, [job], older=scripts))
        for process in calls:
            said = process.communicate(timeout=120)
            assert (process.returncode, *said) == (0, "", "")
        said = lambda: (tmp_path / "said").read_text().splitlines()  # noqa: E731
        told = lambda: [line.split("\t")[2] for line in said() if line.startswith("t\t")]  # noqa: E731
        wait_for(lambda: set(told()) == set(jobs))
        assert sorted(told()) == sorted(jobs) and all((tree / job / "PENDING").exists() for job in jobs)
    finally:
        relay.kill()
        relay.wait()
        relay.stdin.close()


def test_the_daemon_takes_what_two_hundred_calls_hand_over(site):
    jobs = [f"many{n % 5}/job {n}" for n in range(200)]
    for job in jobs:
        prepare(site.web, job, "echo run >>runs.log")
    calls = [start("php" if n % 2 else "sh", site.web, [job], older=site.web.parent / "scripts") for n, job in enumerate(jobs)]
    assert [process.communicate(timeout=120)[1] for process in calls] == [""] * 200
    site.wait(lambda: all(site.marker(job)[0] == "DONE" for job in jobs), 120, "200 jobs")
    site.wait(site.quiet, 60, "quiet")
    assert [site.runs(job) for job in jobs] == [1] * 200


def test_the_shell_script_is_clean_and_asks_for_a_job():
    shellcheck = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    assert subprocess.run([shellcheck, "-s", "sh", WEB / "hand-over"], capture_output=True, text=True).stdout == ""
    ended = subprocess.run([WEB / "hand-over"], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("hand-over [")
