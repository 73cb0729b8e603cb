"""contrib/ssh over a real sshd: a whole job goes through the gate, and nothing else does."""

import ast
import json
import os
import shlex
import shutil
import subprocess
import types
from pathlib import Path

import pytest
from helpers import free_port, put, wait_for
from site_kit import Site
from sshd_kit import Sshd

from watchties import batches, rsyncsays, ssh, transfer

GATE = Path(__file__).parents[2] / "contrib/ssh/watchties-gate"
LINE = Path(__file__).parents[2] / "contrib/ssh/authorized_keys"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def sshd(base):
    """An sshd that would allow everything, and a key that the gate holds: by the very line that contrib/ssh has."""
    with Sshd(base, "AcceptEnv *\nPermitUserEnvironment yes") as sshd:
        words = LINE.read_text().splitlines()[-1].replace("/usr/local/lib/watchties-gate", str(GATE))
        words = words.replace("--root compties", f"--root {base}/vision/compties")
        words = words.replace("ssh-ed25519 AAAA... webapp@v11\n", "").rpartition(" ssh-ed25519 ")[0]
        (sshd.folder / "authorized_keys").write_text(f"{words} {(sshd.folder / 'id.pub').read_text()}")
        yield sshd


@pytest.fixture(scope="module")
def site(base, sshd):
    """A site whose web host is behind the gate; a whole job has gone through."""
    site = Site(base, change=lambda text: text.replace('role = "web"', f'{sshd.toml()}role = "web"'))
    with site:
        site.drop("ann b/o'neil \"$(touch pwned)\"; `x`")
        site.drop("bob/fails", "echo why >&2; exit 3")
        yield site


def reach(sshd, command, *options, stdin=b""):
    words = [word for line in sshd.options for word in ssh.option_words(line)]
    shared = [] if options else ["-o", "ControlMaster=auto", "-o", f"ControlPath={sshd.folder}/c", "-o", "ControlPersist=60"]
    argv = ["ssh", "-T", *words, *shared, "-o", "BatchMode=yes", *options, sshd.ssh, *([command] if command else [])]
    return subprocess.run(argv, input=stdin, capture_output=True, timeout=60)


def framed(site, command):
    far = ssh.Far("vision", "x", str(site.web.parent))
    return ssh.argv(far, ssh.frame("0123456789abcdef", far.root, command))[-1]


def refused(ended):
    assert ended.returncode not in (0, 255) and b"refused by the gate on this key: " in ended.stderr, ended
    assert len(ended.stderr.splitlines()) == 1 and b"Traceback" not in ended.stderr and not ended.stdout
    return ended.stderr.decode()


def test_a_whole_job_goes_through_the_gate(site):
    job = "ann b/o'neil \"$(touch pwned)\"; `x`"
    assert site.wait_state(job, "DONE", 120)["exit"] == "0" and site.wait_state("bob/fails", "FAILED", 60)["exit"] == "3"
    assert (site.web / job / "out.txt").read_text() == f"input of {job}\n" and site.runs(job) == 1
    site.touch(job)  # and once more, for the relay; then a stop, for the publishing of CANCEL
    site.wait(lambda: site.runs(job) == 2, 60, "a second run")
    site.wait(lambda: site.marker(job)[1].get("attempt") == "2" and site.marker(job)[0] == "DONE", 60, "shown")
    site.wait(site.quiet, 60, "quiet")
    said = site.said()
    assert "gate:" not in said and "relay does not run" not in said and not list(site.base.rglob("pwned"))


def test_what_watchties_needs_after_a_cut_or_a_full_disk_is_let_in(site, sshd):
    job = site.web / "ann/o'brien e"
    other = site.web / "bob/fails too"
    for where in job, other:
        where.mkdir(parents=True)
        (where / ".big.dat.Ab12Cd").write_text("half")
        (where / ".big.dat.Ab12Cd").chmod(0o600)  # as rsync makes what it has not finished
        put(site.mirror / where.relative_to(site.web) / "big.dat", "a half, and another half")
    names = [str(where.relative_to(site.web)) for where in (job, other)]
    jobs = [types.SimpleNamespace(job=name, dir=str(site.mirror / name)) for name in names]
    route = route_of(site)
    batches.take_up_cut(route, jobs)
    for where in job, other:
        assert (where / ".watchties.partial/big.dat").read_text() == "half" and not (where / ".big.dat.Ab12Cd").exists()
    batches.make_room(route, jobs, inward=False)
    for where in job, other:
        assert not (where / ".watchties.partial").exists()
    for name in names:
        shutil.rmtree(site.mirror / name)


COMMANDS = [
    "id", "sh", "sh -c id", "bash -i", "cat /etc/passwd", "scp -t /tmp", "scp -f x", "/usr/lib/openssh/sftp-server", "internal-sftp",
    "rsync --server --daemon .", "rsync --server --sender -sltrRe.iLsfxCIvu", "sh -c 'cd 2>/dev/null; id'",
    "sh -c 'cd 2>/dev/null; true; id'",
    "sh -c 'cd 2>/dev/null; true' ; id", "sh -c 'cd 2>/dev/null; true' && id", "sh -c 'cd 2>/dev/null; true'\nid", "$(id)", "`id`",
    "sh -c 'cd 2>/dev/null; exec rsync \"$@\"' rsync --server -sltrRe.iLsfxCIvu; id",
    "sh -c 'cd 2>/dev/null; exec rsync \"$@\"' rsync --server -sltrRe.iLsfxCIvu --log-file=/tmp/x",
    "sh -c 'u=www-data; exec sudo' become id",
]  # fmt: skip
FRAMED = [
    "id", "true; id", "true $(id)", "sh scripts/agent.sh version; id", "sh scripts/agent.sh version extra",
    "sh scripts/agent.sh submit user_data r",
    "sh scripts/agent.sh wrapper user_data/a/b 1 t",
    "sh scripts/agent.sh list .. 2 PENDING", "sh scripts/agent.sh list user_data 2 '$(id)'",
    "sh scripts/agent.sh identify user_data/../..", "sh scripts/agent.sh publish /etc", "sh ../agent.sh version",
    "sh scripts/agent.sh claim user_data r",
    *(batches.FIND_CUT.format(where) for where in ("/etc", "user_data/../..", "-delete", "user_data/a /etc", "$(id)")),
    batches.FIND_CUT.format("user_data/a").replace("stat", "id"), batches.FIND_CUT.format("user_data/a") + " -delete",
    "[ -r scripts/agent.sh ] || exit 68; exec id", "exec sh scripts/agent.sh version",
    "find user_data/a -type d -name .watchties.partial -prune -exec id {} +",
    "find user_data -type d -name .watchties.partial -prune -exec rm -rf {} +",
    "mkdir -p user_data/a/.watchties.partial && mv -f user_data/a/.f.AbCdEf /etc/f",
    "mkdir -p user_data/a/.watchties.partial && mv -f user_data/a/secret user_data/a/.watchties.partial/secret",
    "mkdir -p user_data/a/../../.watchties.partial && mv -f user_data/a/../../.f.AbCdEf user_data/a/../../.watchties.partial/f",
    "cmp -s - x && echo yes || :",
]  # fmt: skip


def test_other_commands_are_refused_each_with_one_line(site, sshd):
    for command in COMMANDS:
        refused(reach(sshd, command))
    for command in FRAMED:
        refused(reach(sshd, framed(site, command)))
    root = site.web.parent
    for elsewhere in "/etc", f"{root}/..", f"{root}/user_data", f"{root}/":
        refused(reach(sshd, framed(site, "true").replace(str(root), elsewhere)))
    relay = f"cd -- {root} && exec python3 scripts/relay.py --nonce 00"
    trees = "--tree t=/etc=*/*", "--tree t=user_data/../..=*/*", "--tree 't=user_data=../*'"
    for more in (*trees, "--directory /tmp", "--poll 1", "; id", "-h"):
        refused(reach(sshd, shlex.join(["sh", "-c", f"cd 2>/dev/null; {relay} {more}"])))
    assert "asked for: a shell" in refused(reach(sshd, ""))
    subsystem = reach(sshd, "sftp", "-s")  # whose standard error sshd passes on to nobody
    assert subsystem.returncode == 77 and not subsystem.stdout


# Options of rsync, as a client that is not ours may send them on standard input.
SENT = [
    ["--log-file=/tmp/x"], ["--files-from=/etc/passwd"], ["--rsync-path=id"], ["-e", "id"], ["--rsh=id"], ["--daemon"], ["--config=/x"],
    ["--write-batch=/tmp/x"], ["--read-batch=/tmp/x"], ["--temp-dir", "/tmp"], ["--backup-dir", "/tmp"], ["--partial-dir", "/tmp"],
    ["--copy-links"], ["-L"], ["--delete"], ["--remove-source-files"], ["--copy-dest", "/etc"], ["--link-dest", "/etc"], ["--chown=0:0"],
    ["--exclude-from=/etc/passwd"], ["--password-file=/x"], ["--debug=all"], ["--timeout=1;id"], ["--only-write-batch=x"], ["--iconv=a"],
]  # fmt: skip


def test_options_and_paths_of_rsync_beyond_ours_are_refused(site, sshd):
    tree = f"{site.web}/."
    for flags in "--sender -sltrRe.iLsfxCIvu", "-slOtErRe.iLsfxCIvu":
        command = f"sh -c 'cd 2>/dev/null; exec rsync \"$@\"' rsync --server {flags}"
        for options in SENT:
            sent = "\0".join(["rsync", *options, ".", tree, "", ""]).encode()
            assert options[0] in refused(reach(sshd, command, stdin=sent))
        for paths in [["/etc/."], [f"{site.web}/../."], [f"{site.web}"], [f"{site.web}/ann/.", tree], [tree, "/etc/."], ["."], []]:
            refused(reach(sshd, command, stdin="\0".join(["rsync", ".", *paths, "", ""]).encode()))
        for flag in "LkKHDgoAXzbuWP":
            refused(reach(sshd, command.replace("R", flag), stdin=b"rsync\0.\0x\0\0"))


def route_of(site):
    config = json.loads(next(Path(site.state).rglob("config*.json")).read_text())
    return transfer.Route.of(config | {"control": ""}, "main", "vision")


def test_no_link_and_no_dots_lead_out_of_the_tree(site, base):
    """What the rsync of a client does that knows all tricks; the far side is ours to confine."""
    secret = base / "vision/secret"
    secret.mkdir(exist_ok=True)
    (secret / "key").write_text("s3cret")
    job = site.web / "eve/E"
    job.mkdir(parents=True, exist_ok=True)
    for name, target in ("out", secret), ("home", "../../../.."):
        (job / name).symlink_to(target)
    route = route_of(site)
    for name in "eve/E/out/key", "../secret/key", "../../secret/./key", "eve/E/home/secret/key":
        with pytest.raises(Exception):  # noqa: B017  (rsync's error, or that the host does not answer)
            transfer.rsync(route, [name], inward=True)
        assert not [found for found in site.mirror.rglob("key")] and not (base / "v11/secret").exists()
    shutil.rmtree(site.mirror / "eve", ignore_errors=True)
    mine = site.mirror / "eve/E"
    (mine / "out").mkdir(parents=True)
    (mine / "out/key").write_text("changed")
    (mine / "new").write_text("fine")
    (mine / "leads out").symlink_to("/etc/passwd")
    (mine / "stays in").symlink_to("new")
    names = ["eve/E/out/key", "eve/E/new", "eve/E/leads out", "eve/E/stays in"]
    with pytest.raises(rsyncsays.RsyncFailed, match="eve/E/out/key"):
        transfer.rsync(route, names, inward=False, recursive=False)
    assert (secret / "key").read_text() == "s3cret" and (job / "new").read_text() == "fine" and os.readlink(job / "stays in") == "new"
    assert not os.path.lexists(job / "leads out")


def test_ports_terminals_and_environment_are_refused(sshd, site, base):
    port = free_port()
    forward = reach(sshd, "", "-N", "-o", "ExitOnForwardFailure=yes", "-R", f"{port}:127.0.0.1:{sshd.port}")
    assert forward.returncode == 255 and b"forwarding failed" in forward.stderr
    through = reach(sshd, "", "-W", f"127.0.0.1:{sshd.port}")
    assert through.returncode == 255 and b"prohibited" in through.stderr
    assert b"PTY allocation request failed" in reach(sshd, "id", "-tt").stderr
    (base / "evil").mkdir()
    (base / "evil/re.py").write_text(f"open({str(base / 'evil/ran')!r}, 'w')\n")
    (base / "evil/sh").write_text(f"#!/bin/sh\n: >{base}/evil/ran\n")
    (base / "evil/sh").chmod(0o755)
    evil = f"SetEnv=PYTHONPATH={base}/evil PATH={base}/evil ENV={base}/evil/sh PYTHONSTARTUP={base}/evil/re.py"
    ended = reach(sshd, framed(site, "sh scripts/agent.sh version"), "-o", evil)
    assert b"agent " in ended.stdout and not (base / "evil/ran").exists()


def test_the_gate_is_one_file_for_an_old_python():
    tree = ast.parse(GATE.read_text(), feature_version=(3, 6))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_a_host_that_lost_its_tree_is_told_in_words_that_watchties_knows(site):
    away = site.web.with_name("away")
    wait_for(site.quiet)
    os.rename(site.web, away)
    try:
        with pytest.raises(transfer.Unreachable, match="cannot be entered"):
            transfer.rsync(route_of(site), ["bob/fails"], inward=True)
    finally:
        os.rename(away, site.web)
