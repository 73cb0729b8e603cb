"""init, check and deploy on real directories, with hosts that are this machine."""

import asyncio
import json
import os
import re
import shlex
import subprocess

import pytest
from click.testing import CliRunner

from watchties import deploy, ssh
from watchties.cli import main
from watchties.errors import Unreachable, WatchtiesError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, with a blank and a quote in its name; everything that watchties makes by itself lies there."""
    home = tmp_path / "ho me's"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("WATCHTIES_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home


def call(*args):
    shown = CliRunner().invoke(main, [str(arg) for arg in args])
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.output
    return shown


def wrong(*args):
    """Return the findings of check that are wrong."""
    return [finding for finding in json.loads(call("check", "--json", *args).stdout) if finding["ok"] is False]


def test_init_deploy_check_on_a_fresh_home(home):
    first = call("init")
    conf = home / ".config/watchties/conf.d"
    assert first.exit_code == 0 and "watchties deploy" in first.output
    assert len(list(conf.glob("*.toml"))) == 5
    assert (home / ".config/watchties/hooks").is_dir() and (home / ".local/state/watchties").is_dir()

    before = call("check")
    assert before.exit_code == 1 and "run: watchties deploy b01" in before.output, "nothing is deployed yet"
    assert call("deploy", "vision", "b01").exit_code == 0
    after = call("check")
    assert after.exit_code == 0 and "WRONG" not in after.output and "Everything is as it must be." in after.output, after.output
    for path in ("scripts/agent.sh", "scripts/relay.py", "scripts/relay_ties_directories", "bin", "user_data"):
        assert (home / "compties-b01" / path).exists()


def test_init_overwrites_nothing(home):
    call("init")
    mine = home / ".config/watchties/conf.d/10-hosts.toml"
    mine.write_text("# mine\n")
    again = call("init")
    assert again.exit_code == 0 and mine.read_text() == "# mine\n"
    assert "left alone" in next(line for line in again.output.splitlines() if line.endswith("10-hosts.toml"))


def test_what_init_writes_is_never_writable_for_the_group(home):
    old = os.umask(0o002)
    try:
        call("init")
    finally:
        os.umask(old)
    assert call("check", "--here").exit_code == 0


def test_check_tells_a_template_of_mail_that_is_broken(home):
    call("init")
    mail, templates = home / ".config/watchties/conf.d/40-mail.toml", home / "templates"
    mail.write_text(mail.read_text().replace("[mail]\n", f"[mail]\ntemplates = {json.dumps(str(templates))}\n", 1))
    templates.mkdir()
    (templates / "done.html").write_text("<p>$experiment costs 5 $</p>\n")
    (templates / "failed.txt").write_text("Subject: $experimnt\n\nx\n")
    found = wrong("--here")
    assert [finding["where"] for finding in found] == ["mail", "mail"]
    assert "done.html" in found[0]["text"] and "$$" in found[0]["text"]
    assert "failed.txt" in found[1]["text"] and "$experimnt" in found[1]["text"]


def test_check_tells_every_error_of_the_configuration(home):
    call("init")
    conf = home / ".config/watchties/conf.d"
    (conf / "10-hosts.toml").write_text('[host.vision]\nrole = "wbe"\n[host.b01]\nrole = "compute"\nscheduler = "shell"\nrot = "x"\n')
    shown = call("check")
    assert shown.exit_code == 1 and shown.output.count("WRONG") == 2 and "[host.vision]" in shown.output and "rot" in shown.output


def test_check_refuses_what_others_may_write_to(home):
    call("init")
    (home / ".config/watchties/hooks").chmod(0o777)
    (finding,) = wrong("--here")
    assert finding["text"].endswith("; run: chmod go-w " + shlex.quote(f"{home}/.config/watchties/hooks"))


def test_check_sees_what_is_missing_on_a_host(home):
    call("init")
    call("deploy", "vision", "b01")
    agent = home / "compties-b01/scripts/agent.sh"
    agent.write_text(re.sub(r"^AGENT_VERSION=.*$", "AGENT_VERSION=0", agent.read_text(), flags=re.MULTILINE))
    (home / "compties-vision/user_data").rmdir()
    (home / "compties-vision/scripts/relay.py").unlink()
    found = {(finding["where"], finding["remedy"]): finding["text"] for finding in wrong()}
    assert "agent 0" in found["host b01", "run: watchties deploy b01"]
    assert any("user_data not there" in finding["text"] for finding in wrong())
    assert any("its relay is not ours" in finding["text"] for finding in wrong())


def test_deploy_names_the_hosts_there_are(home):
    call("init")
    shown = call("deploy", "b1")
    assert shown.exit_code == 2 and 'did you mean "b01"?' in shown.output


# ---- deploy itself ----


def put(root, *directories):
    return asyncio.run(deploy.deploy(ssh.Far("b01", root=str(root)), directories or ["user_data"]))


def test_deploy_is_new_then_unchanged_then_replaced(tmp_path):
    root = tmp_path / "com pties"
    assert set(put(root).files.values()) == {"new"}
    assert set(put(root).files.values()) == {"unchanged"}
    old = root / "scripts/agent.sh"
    old.write_text("#!/bin/sh\n" + deploy.STAMP.decode() + "\necho an older one\n")
    assert put(root).files == {"agent.sh": "replaced", "relay.py": "unchanged", "relay_ties_directories": "unchanged"}
    assert subprocess.run([old, "version"], capture_output=True, text=True).stdout.strip() == deploy.version()
    assert (root / "scripts/relay.py").read_bytes() == (root / "scripts/relay_ties_directories").read_bytes()
    assert [path for path in os.listdir(root / "scripts") if path.startswith(".")] == []


def test_deploy_takes_over_a_file_of_ours_that_was_copied_by_hand(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/agent.sh").write_bytes(deploy.source("agent.sh"))
    assert put(tmp_path).files["agent.sh"] == "replaced"


@pytest.mark.skipif(os.geteuid(), reason="only root may run what it says")
def test_deploy_into_a_home_that_is_root_s_says_what_root_has_to_run(tmp_path):
    for folder in [tmp_path, *tmp_path.parents]:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    far = ssh.Far("vision", root=str(tmp_path / "compties"), become="nobody")
    with pytest.raises(WatchtiesError, match="Permission denied; run there as root: install -d .*, then deploy again$") as refused:
        asyncio.run(deploy.deploy(far, ["user_data"]))
    subprocess.run(["sh", "-c", str(refused.value).partition("as root: ")[2].partition(", then")[0]], check=True)
    assert asyncio.run(deploy.deploy(far, ["user_data"])).files["agent.sh"] == "new"
    assert (tmp_path / "compties/user_data").owner() == "nobody"


def test_deploy_where_a_file_is_in_the_way_says_so_alone(tmp_path):
    (tmp_path / "compties").write_text("")
    with pytest.raises(WatchtiesError, match="File exists$"):
        put(tmp_path / "compties")


@pytest.mark.parametrize("name", deploy.FILES)
def test_deploy_touches_no_file_if_one_is_not_ours(tmp_path, name):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / name).write_text("#!/bin/sh\necho by somebody else\n")
    with pytest.raises(deploy.Refused, match=f"scripts/{name}; move it away"):
        put(tmp_path)
    assert os.listdir(tmp_path / "scripts") == [name]
    assert (tmp_path / "scripts" / name).read_text() == "#!/bin/sh\necho by somebody else\n"


def test_deploy_follows_no_link(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "mine").write_text("#!/bin/sh\n" + deploy.STAMP.decode() + "\n")
    (tmp_path / "scripts/relay.py").symlink_to(tmp_path / "mine")
    with pytest.raises(deploy.Refused):
        put(tmp_path)


def test_deploy_makes_the_directories_of_every_tree(tmp_path):
    put(tmp_path / "c", "user_data", "teach ing/data's", str(tmp_path / "elsewhere"))
    assert (tmp_path / "c/teach ing/data's").is_dir() and (tmp_path / "elsewhere").is_dir() and (tmp_path / "c/bin").is_dir()


def test_a_file_that_comes_incomplete_is_not_put_in_place(tmp_path):
    far = ssh.Far("b01", root=".")
    with pytest.raises(WatchtiesError, match="it came incomplete"):
        asyncio.run(deploy._call(far, deploy.PUT, [str(tmp_path / "agent.sh"), "100"], b"#!/bin/sh\n"))
    assert os.listdir(tmp_path) == []


def test_deploy_says_what_the_host_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WatchtiesError, match="host b01: .*[Nn]ot a directory"):
        put(tmp_path / "file" / "compties")


def test_a_host_that_does_not_answer_is_unreachable():
    far = ssh.Far("b01", ssh="nobody@127.0.0.1", options=("-p", "1", "-o", "ConnectTimeout=2"))
    with pytest.raises(Unreachable, match="host b01 did not answer"):
        asyncio.run(deploy.deploy(far, ["user_data"]))


def test_check_of_a_host_that_does_not_answer(home):
    call("init")
    conf = home / ".config/watchties/conf.d/10-hosts.toml"
    text = conf.read_text().replace('[host.vision]\n', '[host.vision]\nssh = "nobody@127.0.0.1"\nssh_options = ["Port=1"]\n', 1)
    conf.write_text(text)
    call("deploy", "b01")
    assert [finding["where"] for finding in wrong()] == ["host vision"]
    assert "did not answer" in wrong()[0]["text"]
    assert call("deploy", "vision").exit_code == 1
