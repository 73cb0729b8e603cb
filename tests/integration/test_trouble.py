"""Trouble with the real daemon: hosts and mail servers that are down, killed relays and jobs, signals. It goes on by itself."""

import email
import email.policy
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from helpers import free_port, put
from site_kit import Site
from trouble_kit import HOLD, end, quick, seldom, waits_for

# ---- hosts ----

TWO_WEBS = """
[host.iris]
role = "web"
root = "{base}/iris/compties"
[tree.other]
root = "{base}/v11/other"
web = "iris"
compute = ["b01"]
path = {{ b01 = "other_data" }}
"""


def test_a_web_host_that_is_down_holds_up_nobody_else(tmp_path):
    def change(text):
        return text + TWO_WEBS.format(base=tmp_path)

    site = Site(tmp_path, change=change, edit=quick("pull", "push", "report"))
    iris, away = tmp_path / "iris/compties", tmp_path / "iris/away"
    shutil.copytree(site.web.parent, iris)
    (site.compute.parent / "other_data").mkdir()
    with site:
        vision, site.web = site.web, iris / "user_data"
        site.drop("ann/iris", command=HOLD)
        site.wait(lambda: (site.compute.parent / "other_data/ann/iris/runs.log").exists(), 20, "it runs")
        iris.rename(away)
        site.web = vision
        put(site.compute.parent / "other_data/ann/iris/go")
        for job in "ann/e1", "ann/e2":
            site.drop(job)
            site.wait_state(job, "DONE", 20)
        waits_for(site, "other:ann/iris", "iris")
        assert not iris.exists()
        away.rename(iris)
        site.web = iris / "user_data"
        site.wait_state("ann/iris", "DONE", 40)
        site.drop("ann/later")
        site.wait_state("ann/later", "DONE", 40)


def test_a_compute_host_that_is_down_costs_its_jobs_nothing(tmp_path):
    with Site(tmp_path, edit=quick("submit", "fetch", "poll"), change=seldom) as site:
        root, away = site.compute.parent, site.compute.parent.with_name("away")
        site.drop("ann/running", command=HOLD)
        site.wait_state("ann/running", "SUBMITTED", 20)
        site.wait(lambda: site.runs("ann/running") == 1, 10, "it runs")
        root.rename(away)
        site.drop("ann/waiting")
        waits_for(site, "ann/waiting", "b01")
        (away / "user_data/ann/running/go").touch()
        time.sleep(1)
        away.rename(root)
        for job in "ann/running", "ann/waiting":
            site.wait_state(job, "DONE", 60)
        site.wait(site.quiet, 20, "quiet")
        assert site.runs("ann/running") == site.runs("ann/waiting") == 1
        assert site.record("ann/waiting").attempt == 1


def test_a_failover_goes_to_the_next_host_and_a_named_host_is_waited_for(tmp_path):
    def change(text):
        more = f'[host.b02]\nrole = "compute"\nscheduler = "shell"\nroot = "{tmp_path}/b02/compties"\n'
        return seldom(text).replace('compute = ["b01"]', 'compute = ["b01", "b02"]') + more

    site = Site(tmp_path, change=change)
    shutil.copytree(site.compute.parent, tmp_path / "b02/compties")
    away = site.compute.parent.with_name("away")
    site.compute.parent.rename(away)
    with site:
        site.wait_ready()
        time.sleep(0.5)  # the first call to a host has told that it is down
        site.drop("ann/any")
        site.drop("ann/named", CPU_SERVER="b01\n")
        assert end_on(site, "ann/any")["host"] == "b02"
        waits_for(site, "ann/named", "b01")
        away.rename(site.compute.parent)
        assert end_on(site, "ann/named")["host"] == "b01"
        assert not (site.compute / "ann/any").exists() and not (tmp_path / "b02/compties/user_data/ann/named").exists()


def end_on(site, job):
    return site.wait_state(job, "DONE", 40)


class Inbox:
    def __init__(self, refuses=""):
        self.to, self.refuses, self.asked, self.said = [], refuses, [], []

    async def handle_RCPT(self, server, session, envelope, address, options):
        self.asked.append(address)
        if address == self.refuses:
            return "550 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.to += envelope.rcpt_tos
        self.said.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 taken"

    def notices(self):
        """Return subject and text of all that the administrator was told."""
        return "\n".join(f"{said['Subject']}\n{said.get_content()}" for said in self.said if said["To"] == "root@localhost")


@pytest.mark.parametrize("way", ["server", "sendmail"])
def test_a_mail_server_that_is_down_delays_the_mail_and_nothing_else(tmp_path, way):
    """Nothing is lost meanwhile, though the daemon is killed; an address that is refused for good is told once, and not tried again."""
    port, box = free_port(), Inbox(refuses="eve@localhost")
    ways = {"server": f'server = "127.0.0.1"\nport = {port}', "sendmail": f'sendmail = "{shutil.which("msmtp")} -C {tmp_path}/msmtprc"'}
    put(tmp_path / "msmtprc", f"account default\nhost 127.0.0.1\nport {port}\nauth off\ntls off\n").chmod(0o600)

    def change(text):
        return text.replace(f'folder = "{tmp_path}/mail"', ways[way])

    with Site(tmp_path, change=change, edit=quick("mail", "notice"), daemon='grace = "2s"\nreconcile = "1s"') as site:
        for job in "ann/e1", "bob/e2", "eve/e3":
            site.drop(job)
            site.wait_state(job, "DONE", 20)
        waits_for(site, "ann/e1", "mail", str(port))
        site.kill()
        site.start().wait_ready()
        controller = Controller(box, hostname="127.0.0.1", port=port)
        controller.start()
        try:
            site.wait(lambda: {"ann@localhost", "bob@localhost", "root@localhost"} <= set(box.to), 60, f"mail: {box.to}")
            site.wait(lambda: "eve@localhost" in box.asked and site.quiet(), 20, "quiet")
            told = box.notices() + "".join(path.read_text() for path in (site.state / "notices").iterdir())  # sent, or about to be
            assert "mail failed for good: " in told and told.count("550 no such user here") == 1
            host = socket.gethostname()
            starts = [f"watchties started on {host}", f"watchties started again, after a crash, on {host}"]
            site.wait(lambda: all(start in box.notices() for start in starts), 30, "both starts are told")  # the first perhaps by an orphan
            seen = site.record("eve/e3")
            assert seen.ended["mail@DONE"] == "refused" and not seen.tries.get("mail")
            site.touch("eve/e3")  # another attempt: it is asked once more, and no more than that
            site.wait(lambda: box.asked.count("eve@localhost") == 2 and site.quiet(), 30, "the second refusal")
            site.drop("ann/more")
            site.wait(lambda: box.to.count("ann@localhost") == 2 and site.quiet(), 30, "mail to ann")
        finally:
            controller.stop()
        assert box.to.count("bob@localhost") == 1 and box.asked.count("eve@localhost") == 2


def test_a_mail_server_that_hangs_holds_up_nobody_else(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f'server = "127.0.0.1"\nport = {silent.getsockname()[1]}'
        change = lambda text: text.replace(f'folder = "{tmp_path}/mail"', server)  # noqa: E731
        with Site(tmp_path, change=change, edit=quick("mail", "notice"), daemon='stop_timeout = "1s"') as site:
            for job in "ann/e1", "bob/e2":
                site.drop(job)
                site.wait_state(job, "DONE", 20)


# ---- the daemon ----


def test_a_relay_that_is_killed_is_started_again(tmp_path):
    with Site(tmp_path) as site:
        site.drop("ann/e1")
        end(site, "ann/e1")
        relays = [pid for pid, words in children(site.process.pid).items() if b"relay.py" in words]
        assert len(relays) == 2
        for pid in relays:
            os.kill(pid, signal.SIGKILL)
        site.drop("ann/e2")
        end(site, "ann/e2", seconds=15)


def test_what_ended_while_a_compute_host_s_relay_was_dead_is_asked_for_when_there_is_one_again(tmp_path):
    with Site(tmp_path, change=seldom, daemon='grace = "2s"\nheartbeat = "1s"') as site:
        site.drop("ann/e1", command=HOLD)
        site.wait_state("ann/e1", "SUBMITTED", 20)
        site.wait(lambda: site.runs("ann/e1") == 1, 10, "it runs")
        (relay,) = [pid for pid, words in children(site.process.pid).items() if b"relay.py" in words and b"DONE,FAILED" in words]
        os.kill(relay, signal.SIGSTOP)
        put(site.compute / "ann/e1/go")
        site.wait(lambda: (site.compute / "ann/e1/DONE").exists(), 10, "it has ended there")
        end(site, "ann/e1", seconds=30)


def test_a_relay_that_does_not_run_is_replaced_by_listings_until_it_does(tmp_path):
    def change(text):
        return text.replace("[host.b01]", 'poll = "1s"\n[host.b01]')

    site = Site(tmp_path, change=change, daemon='reconcile = "5s"')
    relay, text = site.web.parent / "scripts/relay.py", (site.web.parent / "scripts/relay.py").read_text()
    relay.write_text("import sys\nsys.exit('no relay today')\n")
    with site:
        site.drop("ann/e1")
        end(site, "ann/e1")
        assert "its relay does not run" in (site.base / "daemon.out").read_text()
        relay.write_text(text)
        site.wait(lambda: any(str(site.web.parent).encode() in cwd for cwd in relays_at(site)), 20, "the relay runs again")


def relays_at(site):
    """Return the working directories of the daemon's relays."""
    return [os.fsencode(os.readlink(f"/proc/{pid}/cwd")) for pid, words in children(site.process.pid).items() if b"relay.py" in words]


def children(parent):
    """Return pid -> command line of a process's children."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(") ")[2].split()[1]) == parent:
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("backend", ["inotify", "polling"])
def test_hosts_without_relays_are_listed_and_a_mirror_without_inotify_is_polled(tmp_path, backend):
    def change(text):
        return text.replace("[host.b01]", 'trigger = "poll"\npoll = "1s"\n[host.b01]\ntrigger = "poll"\npoll = "1s"')

    with Site(tmp_path, change=change, tree=f'backend = "{backend}"') as site:
        site.drop("ann/e1")
        end(site, "ann/e1")
        site.touch("ann/e1", tree=site.mirror)
        site.wait(lambda: site.runs("ann/e1") == 2, 30, "once more, from the mirror")
        end(site, "ann/e1")
        site.drop("ann/e2", command=HOLD)
        site.wait(lambda: site.runs("ann/e2") == 1, 20, "it runs")
        site.touch("ann/e2", "CANCEL")
        assert end(site, "ann/e2", "FAILED")["cause"] == "cancelled"
        assert not any(b"relay.py" in words for words in children(site.process.pid).values())


def test_a_wrapper_that_is_killed_is_lost_after_the_grace_period(tmp_path):
    with Site(tmp_path, change=lambda text: text.replace("[host.b01]", '[host.b01]\npoll = "1s"'), edit=quick("poll", "fetch")) as site:
        site.drop("ann/e1", command="echo half > out.txt; echo $$ > pid; sleep 1000\n")
        number = int(site.wait_state("ann/e1", "SUBMITTED", 20)["id"])
        site.wait(lambda: (site.compute / "ann/e1/pid").exists(), 10, "it runs")
        os.killpg(number, signal.SIGKILL)
        fields = end(site, "ann/e1", "FAILED", seconds=30)
        assert fields["cause"] == "lost" and "no exit" in fields["reason"]
        assert (site.web / "ann/e1/out.txt").read_text() == "half\n"


def test_sighup_reads_the_configuration_again_and_keeps_the_former_if_it_is_broken(tmp_path):
    with Site(tmp_path) as site:
        site.drop("ann/running", command=HOLD)
        site.wait(lambda: site.runs("ann/running") == 1, 20, "it runs")
        text = (site.conf / "10-site.toml").read_text()
        (site.conf / "10-site.toml").write_text(text + "colour = 1\n")
        site.process.send_signal(signal.SIGHUP)
        site.wait(lambda: "the former one stays" in (site.base / "daemon.out").read_text(), 20, "refused")
        site.drop("ann/e2")
        site.wait_state("ann/e2", "DONE", 20)
        (site.conf / "10-site.toml").write_text(text.replace(f'folder = "{tmp_path}/mail"', f'folder = "{tmp_path}/letters"'))
        site.process.send_signal(signal.SIGHUP)
        site.wait(lambda: "was read again" in (site.base / "daemon.out").read_text(), 20, "read again")
        put(site.compute / "ann/running/go")
        end(site, "ann/running")
        assert [path for path in (tmp_path / "letters").glob("ann.running*")] and site.runs("ann/running") == 1


def test_sigterm_ends_it_cleanly_at_any_moment(tmp_path):
    site = Site(tmp_path, daemon='stop_timeout = "1s"', change=seldom)
    for turn in range(5):
        site.drop(f"ann/e{turn}")
        site.start()
        site.wait_ready()
        time.sleep(0.12 * turn)
        began = time.monotonic()
        assert site.stop() == 0, site.said()
        assert time.monotonic() - began < 15
    with site:
        for turn in range(5):
            site.wait_state(f"ann/e{turn}", "DONE", 20)
        site.wait(site.quiet, 20, "quiet")
        assert {site.runs(f"ann/e{turn}") for turn in range(5)} == {1}
