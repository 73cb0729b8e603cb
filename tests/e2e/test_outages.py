"""Hosts that are down, hang, reboot or are not who they were; links that are long or slow: nothing is lost, nothing runs twice."""

import contextlib
import os
import subprocess
import time

import pytest
from lab_kit import LabSite
from trouble_kit import waits_for

pytestmark = pytest.mark.slow

SOON = {"daemon": 'grace = "2s"\nheartbeat = "2s"', "host": 'ssh_options = ["ConnectTimeout=4"]'}  # silence is noticed after 8 s
SLOW_JOB = "echo run >>runs.log\nsleep 4\ncat in.txt >out.txt\n"


@contextlib.contextmanager
def broken(lab, op, host, *args):
    """Break a host's network for a while."""
    lab.fault(op, host, *args)
    try:
        yield
    finally:
        lab.fault("clear", host)


def said(site):
    """Return what the daemon that was started last has said."""
    return (site.base / "daemon.out").read_text(errors="replace").rpartition("logs are in")[2]


def all_done(site, jobs, seconds=90):
    """Wait until all are DONE and at rest; each has run once and brought back what it made."""
    site.wait(lambda: all(site.marker(job)[0] == "DONE" for job in jobs), seconds, f"all DONE: {[site.marker(j)[0] for j in jobs]}")
    site.wait(site.quiet, 60, "quiet")
    for job in jobs:
        assert site.runs(job) == 1, job
        assert (site.web / job / "out.txt").read_text() == f"input of {job}\n"


@pytest.mark.parametrize(("op", "seconds"), [("drop", 25), ("down", 40)])
def test_b01_is_gone_in_the_middle_and_elgato_goes_on(lab, op, seconds):
    with LabSite(lab, **SOON) as site:
        site.wait_ready()
        running = ["ann/running 1", "bob/running 2"]
        for job in running:
            site.drop(job, SLOW_JOB)
        site.wait(lambda: all(site.runs(job) for job in running), 30, "they run on b01")
        waiting, named, free = "eve/waits for b01", ["ann/elgato 1", "bob/elgato 2"], ["ann/failover 1", "bob/failover 2"]
        with broken(lab, op, "b01"):
            began = time.monotonic()
            for job in named:
                site.drop(job, files={"CPU_SERVER": "elgato\n"})
            site.drop(waiting, files={"CPU_SERVER": "b01\n"})
            site.wait(lambda: all(site.marker(j)[0] == "DONE" for j in named), 30, "elgato goes on")
            took = time.monotonic() - began
            waits_for(site, waiting, "b01", "did not answer", seconds=60)
            noticed = time.monotonic() - began
            for job in free:
                site.drop(job)
            site.wait(lambda: all(site.marker(j)[0] == "DONE" for j in free), 30, "failover")
            assert {site.marker(job)[1]["host"] for job in [*named, *free]} == {"elgato"}
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            away = time.monotonic() - began
        began = time.monotonic()
        all_done(site, [*running, waiting, *named, *free])
        rest = time.monotonic() - began
        print(f"{op}: {away:.0f} s away; elgato took {took:.1f} s, status told after {noticed:.1f} s, at rest {rest:.1f} s after")
        assert {site.marker(job)[1]["host"] for job in [*running, waiting]} == {"b01"}
        assert {site.marker(job)[1]["attempt"] for job in running} == {"1"}


def test_an_sshd_that_accepts_and_hangs_holds_up_nobody_else(lab):
    with LabSite(lab, **SOON) as site:
        site.wait_ready()
        site.drop("ann/running", SLOW_JOB)
        site.wait(lambda: site.runs("ann/running"), 30, "it runs")
        with broken(lab, "freeze", "b01"):
            site.drop("bob/waits", files={"CPU_SERVER": "b01\n"})
            site.drop("eve/elgato", files={"CPU_SERVER": "elgato\n"})
            site.wait_state("eve/elgato", "DONE", 30)
            waits_for(site, "bob/waits", "host b01", seconds=60)
        all_done(site, ["ann/running", "bob/waits", "eve/elgato"])


def test_a_host_key_that_changed_is_told_and_nothing_is_sent_there(lab):
    known = lab.home("v11", "webapp") / ".ssh/known_hosts"
    right = known.read_text()
    with LabSite(lab, **SOON) as site:
        site.wait_ready()
        try:
            lab.stop_host("b01")
            key = lab.folder / "b01/ssh/key"
            for path in key, key.with_suffix(".pub"):
                path.rename(path.with_name(path.name + ".former"))
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "b01", "-f", key], check=True, stdin=subprocess.DEVNULL)
            lab.start_host("b01")
            site.drop("ann/waits", files={"CPU_SERVER": "b01\n"})
            waits_for(site, "ann/waits", "Host key verification failed", seconds=60)
            assert site.runs("ann/waits") == 0
            checked = site.watchties("check", check=False)
            assert [line for line in checked.stdout.splitlines() if "WRONG" in line and "b01" in line and "key" in line], checked.stdout
            new = " ".join(key.with_suffix(".pub").read_text().split()[:2])
            lines = [line if not line.startswith("b01,") else f"{line.split()[0]} {new}" for line in right.splitlines()]
            known.write_text("\n".join(lines) + "\n")
            all_done(site, ["ann/waits"], 60)
        finally:
            for path in key, key.with_suffix(".pub"):
                if path.with_name(path.name + ".former").exists():
                    path.with_name(path.name + ".former").rename(path)
            known.write_text(right)
            lab.stop_host("b01")
            lab.start_host("b01")


def test_twenty_milliseconds_on_every_link_are_only_slower(lab):
    jobs = [f"user {n}/far 'away' {n}" for n in range(4)]
    with LabSite(lab) as site, lab.delayed(20):
        site.wait_ready()
        began = time.monotonic()
        for job in jobs:
            site.drop(job)
        all_done(site, jobs)
        print(f"four jobs with 20 ms on every link: {time.monotonic() - began:.1f} s")
        assert "ended" not in said(site), said(site)


def test_a_slow_link_full_of_one_transfer_starves_no_heartbeat_and_no_short_command(lab):
    load, short, running = "ann/bulk", "bob/short", "eve/to be stopped"
    small = lambda text: text.replace('alone_above = "100MB"', 'alone_above = "100KB"')  # noqa: E731
    with LabSite(lab, daemon='grace = "2s"\nheartbeat = "5s"', edit=small) as site:
        site.wait_ready()
        site.drop(running, "echo run >>runs.log\nsleep 300\n")
        site.wait_state(running, "SUBMITTED")
        site.wait(lambda: site.runs(running), 20, "it runs")
        with broken(lab, "rate", "b01", 64):
            site.drop(load, files={"noise.bin": os.urandom(300_000)})  # which take 38 s
            site.wait(lambda: list((site.compute / load).glob(".noise.bin.*")), 30, "the large file is on its way")
            began = time.monotonic()
            site.touch(running, "CANCEL")
            assert site.wait_state(running, "FAILED", 30)["cause"] == "cancelled"
            cancelled = time.monotonic() - began
            assert site.marker(load)[0] == "PENDING" and not (site.compute / load / "noise.bin").exists()
            site.drop(short)  # its inputs share the cable, but no connection
            site.wait_state(short, "DONE", 90)
            done = time.monotonic() - began
            assert site.marker(load)[0] == "PENDING" and not (site.compute / load / "noise.bin").exists()
            site.wait_state(load, "DONE", 90)
            whole = time.monotonic() - began
            print(f"64 kbit/s: cancelled in {cancelled:.1f} s; short job DONE {done:.0f} s, large one {whole:.0f} s after")
        all_done(site, [load, short])
        for word in "fell silent", "shared connection", "did not answer", "relay ended", "is up again":
            assert word not in said(site), said(site)


def masters_of(lab, host):
    """Return the pids, on v11, of the shared connections to a host: short, bulk."""
    found = lab.on("v11", ["pgrep", "-a", "-f", f"^ssh .*-M .*@{host}$"], check=False).stdout.splitlines()
    return {kind: line.split()[0] for line in found for kind in ("short", "bulk") if f"{host}.{kind}" in line}


@pytest.mark.parametrize("kind", ["short", "bulk"])
def test_a_shared_connection_that_hangs_is_ended_and_opened_anew(lab, kind):
    """Its ssh takes every channel and answers none (stopped; or its disk hangs): no time limit of ssh's own ends that."""
    with LabSite(lab, **SOON) as site:
        site.wait_ready()
        site.wait(lambda: len(masters_of(lab, "b01")) == 2 and list(site.state.glob(f"ssh/b01.{kind}")), 20, "both connections")
        hung = masters_of(lab, "b01")[kind]
        lab.on("v11", ["kill", "-STOP", hung])
        site.drop("ann/b01", files={"CPU_SERVER": "b01\n"})
        site.drop("eve/elgato", files={"CPU_SERVER": "elgato\n"})
        site.wait_state("eve/elgato", "DONE", 30)
        all_done(site, ["ann/b01", "eve/elgato"])
        site.wait(lambda: len(masters_of(lab, "b01")) == 2, 60, "both connections again")
        assert hung not in masters_of(lab, "b01").values()


def test_a_daemon_whose_connections_hang_ends_nevertheless(lab):
    with LabSite(lab, **SOON) as site:
        site.wait_ready()
        site.wait(lambda: len(masters_of(lab, "b01")) == 2, 20, "both connections")
        for pid in masters_of(lab, "b01").values():
            lab.on("v11", ["kill", "-STOP", pid])
        began = time.monotonic()
        assert site.stop() == 0
        print(f"ended in {time.monotonic() - began:.1f} s")
        assert not masters_of(lab, "b01")
