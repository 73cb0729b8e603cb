"""agent.sh identify and list: what stands at a far place, and its identity in nanoseconds."""

import os
import shutil
import subprocess

import pytest
from agent_kit import AGENT, HOSTILE, Agent, every_shell, make_job, one_shell, request, shims


@pytest.fixture
def agent(sh, tmp_path):
    (tmp_path / "user data").mkdir()
    return Agent(sh, tmp_path / "user data")


@every_shell
def test_identify(agent):
    paths = [make_job(agent.data, job) for job in HOSTILE]
    ids = [request(path) for path in paths[:-1]]
    leftover = request(paths[2], name=".watchties.taken.PENDING")
    cancel = request(paths[3], 5_000_000_007, "CANCEL")
    (paths[4] / "PENDING").unlink()
    (paths[4] / "PENDING").symlink_to("../../x")
    for name, content in ("DONE", "attempt=7\n"), ("SUBMITTED", "state=SUBMITTED\nattempt=12\n"), ("FAILED", "attempt=99" + 70_000 * "x" + "\n"):
        (paths[0] / name).write_text(content)
    (paths[1] / "DONE").symlink_to(paths[0] / "DONE")
    wanted = [[job, i, "-", "-", "-"] for job, i in zip(HOSTILE, [*ids, "-"])]
    wanted[2][3], wanted[3][2], wanted[4][1], wanted[0][4] = leftover, cancel, "-", "12"
    assert agent.run("identify", lines=[[job] for job in [*HOSTILE, "u/none", "../x"]]) == [*wanted, ["u/none", *"----"], ["../x", *"----"]]
    assert cancel == "5000000007"


@every_shell
def test_list(agent, tmp_path):
    pending = {job: request(make_job(agent.data, job)) for job in HOSTILE}
    path = make_job(agent.data, "u/e", DONE="state=DONE\ntoken=abc-1\nattempt=1\n")
    taken = request(path, name=".watchties.taken.PENDING")
    junk = make_job(agent.data, "u/f", DONE="token=a b\n")
    for deep_or_hidden in "u", "u/e/deep", "u/.hidden", ".watchties/x", "u/line\nfeed":
        request(make_job(agent.data, deep_or_hidden))
    (junk / "PENDING").mkdir()
    (agent.data / "u" / "link").symlink_to(path)
    found = agent.run("list", "2", "PENDING", "DONE")
    wanted = [["PENDING", job, i, "-"] for job, i in pending.items()]
    wanted += [["DONE", "u/e", str(os.stat(path / "DONE").st_mtime_ns), "abc-1"],
               ["DONE", "u/f", str(os.stat(junk / "DONE").st_mtime_ns), "-"],
               [".watchties.taken.PENDING", "u/e", taken, "-"]]
    assert sorted(found) == sorted(wanted)
    assert agent.run("list", "1", "PENDING") == [["PENDING", "u", str(os.stat(agent.data / "u/PENDING").st_mtime_ns), "-"]]
    agent.run("list", "2", "EVERYTHING", code=2)


@one_shell
def test_a_find_that_knows_no_nanoseconds_is_passed_over(agent, tmp_path):
    here = tmp_path / "bin"
    here.mkdir()
    (here / "find").symlink_to(shutil.which("busybox"))
    agent.env["PATH"] = f"{here}:{os.environ['PATH']}"
    i = request(make_job(agent.data, "u/e"))
    assert agent.run("identify", lines=[["u/e"]]) == [["u/e", i, "-", "-", "-"]]


@every_shell
def test_an_empty_mount_point_is_not_taken_for_the_tree(sh, tmp_path):
    scripts, data = tmp_path / "compties/scripts", tmp_path / "compties/user_data"
    scripts.mkdir(parents=True), data.mkdir()
    shutil.copy(AGENT, scripts)

    def call(*words, given=""):
        return subprocess.run([*sh, "scripts/agent.sh", *words], cwd=tmp_path / "compties", input=given, capture_output=True, text=True)

    claim, cancel = ("claim", "user_data", "run1"), ("cancel", "user_data")
    assert call("status", "user_data").returncode == 0 and not (data / ".watchties.tree").exists(), "its disk may come later"
    assert call(*claim, given="ann/e1\t1\ttok1\n").stdout == "ann/e1\tnew\n"
    assert call("status", "user_data", given="ann/e1\t1\ttok1\n").stdout == "ann/e1\tclaimed\n"
    mark = (data / ".watchties.tree").read_text()
    data.rename(tmp_path / "away")
    data.mkdir()
    for command in (claim, cancel, ("status", "user_data"), ("identify", "user_data"), ("publish", "user_data"), ("list", "user_data", "2", "PENDING")):
        done = call(*command, given="ann/e1\t1\ttok1\t-\n")
        assert (done.returncode, done.stdout) == (66, "") and f"{data} is not the tree that was there; mount its disk" in done.stderr
    assert not list(data.iterdir())
    data.rmdir()
    (tmp_path / "away").rename(data)
    assert call("status", "user_data", given="ann/e1\t1\ttok1\n").stdout == "ann/e1\tclaimed\n"
    (data / ".watchties.tree").unlink()
    assert call("status", "user_data").returncode == 66
    (scripts / ".watchties.trees").unlink()
    assert call("status", "user_data").returncode == 0 and (data / ".watchties.tree").read_text() not in ("", mark)


@every_shell
def test_agents_that_see_a_tree_for_the_first_time_together_remember_one_mark(sh, tmp_path):
    late = shims(tmp_path / "late", "sleep 0.$(shuf -i 0-9 -n 1)\nexec $real \"$@\"", tools=("ln", "rm", "sync"))
    for life in range(2):
        scripts, data = tmp_path / f"{life}/scripts", tmp_path / f"{life}/user_data"
        scripts.mkdir(parents=True), make_job(data, "ann/e1")
        shutil.copy(AGENT, scripts)
        (data / ".watchties.tree.1").write_text("of one that was killed\n")
        agents = [Agent(sh, data, scripts / "agent.sh", {"PATH": f"{late}:{os.environ['PATH']}"}).start("status") for _ in range(6)]
        said = [(*each.communicate(timeout=60), each.returncode) for each in agents]
        assert [code for *_, code in said] == [0] * 6, said
        mark = (data / ".watchties.tree").read_text().strip()
        assert {line.split("\t")[0] for line in (scripts / ".watchties.trees").read_text().splitlines()} == {mark}
        assert sorted(os.listdir(data)) == [".watchties.tree", "ann"], "no half is left"
