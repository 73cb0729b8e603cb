"""Real Slurm and Grid Engine: 250 jobs while links are cut and the controller is gone, each once; every end with its right cause."""

import re
import shlex
import threading
import time

import pytest
from helpers import put, wait_for
from lab_kit import LabSite, Lab, why_not

pytestmark = pytest.mark.slow

NODES = ["elgato", "node2"]
SGE_ROOT = "export SGE_ROOT=/var/lib/gridengine"
SLURM_JOBS = [f"user{n % 4}/slurm job {n}" for n in range(200)]
SGE_JOBS = [f"user{n % 4}/sge's job {n}" for n in range(50)]
CUTS = {"elgato": 14, "sge": 8}
COMMAND = "echo run >>runs.log\nhostname >>node\ncat in.txt >out.txt\n"
OVER_MEMORY = """echo run >>runs.log
exec python3 -c 'import time; x = b"x" * 300_000_000; time.sleep(60)'
"""
SLEEP = "echo run >>runs.log\nexec sleep 300\n"
LATE_ACCOUNT = """#!/bin/sh
[ ! -e "$HOME/late" ] || { echo "error: job id $2 not found" >&2; exit 1; }
exec /usr/bin/qacct "$@"
"""
# The scheduler has accepted and nobody hears of it: its answer is kept, and agent and ssh session end without a word.
CUTTER = """#!/bin/sh
if [ -e "$HOME/cut" ] && mv "$HOME/cut" "$HOME/cut.$$" 2>/dev/null; then
    said=$({real} "$@") || {{ code=$?; mv "$HOME/cut.$$" "$HOME/cut"; exit $code; }}
    echo "$said $WT_NAME" >>"$HOME/taken"
    p=$PPID all=
    while [ "$p" -gt 1 ]; do
        case $(tr '\\0' ' ' <"/proc/$p/cmdline") in
        *agent.sh*submit*) all="$p $all" ;;
        sshd:*) all="$all $p"; break ;;
        esac
        p=$(sed 's/.*) //' "/proc/$p/stat" | cut -d' ' -f2)
    done
    kill -KILL $all # the agent before its subshells, which would tell it
    exit 1
fi
exec {real} "$@"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Slurm with accounting on elgato and node2, which share a home; Grid Engine on sge."""
    if reason := why_not():
        pytest.skip(reason)
    hosts = ("vision", "v11", "elgato", "node2", "sge")
    with Lab(tmp_path_factory.mktemp("cluster"), hosts, {"node2": "elgato"}) as lab:
        for host in NODES:
            lab.inside(host, "slurm.sh", "up", *NODES, ACCOUNTING="1")
        lab.inside("sge", "sge.sh")
        yield lab


def as_schedulers(text):
    """Return the configuration with the schedulers of the hosts; walltime is what Slurm takes for the shortest."""
    for host, scheduler, setup in ("elgato", "slurm", "true"), ("sge", "sge", SGE_ROOT):
        head = f'[host.{host}]\nrole = "compute"\nscheduler = "shell"'
        assert head in text
        more = f'[host.{host}]\nrole = "compute"\nscheduler = "{scheduler}"\npoll = "3s"\nsetup = "PATH=$HOME/shims:$PATH; {setup}"'
        text = text.replace(head, more)
    return text


def small_batches(text):
    """Return the rules with submit taking at most five jobs at a time."""
    return re.sub(r'(name = "submit".*?\nbatch = )\d+', r"\g<1>5", text, flags=re.S)


def shim(lab, host, command):
    path = lab.home(host, "runcompties") / "shims" / command
    path.parent.mkdir(exist_ok=True)
    path.write_text(CUTTER.format(real=f"/usr/bin/{command}"))
    path.chmod(0o755)


def taken(lab, host):
    path = lab.home(host, "runcompties") / "taken"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def cut(lab, host, times):
    """Have so many submissions cut off, one at a time."""
    for n in range(times):
        (lab.home(host, "runcompties") / "cut").write_text("")
        wait_for(lambda: len(taken(lab, host)) > n or None, 120)


def test_each_job_runs_once_though_links_are_cut_and_the_controller_is_gone_for_half_a_minute(cluster):
    lab = cluster
    with LabSite(lab, compute=("elgato", "sge"), max_running=500, change=as_schedulers, edit=small_batches) as site:
        site.wait_ready()
        for host, command in ("elgato", "sbatch"), ("sge", "qsub"):
            shim(lab, host, command)
        cutters = [threading.Thread(target=cut, args=(lab, host, n), daemon=True) for host, n in CUTS.items()]
        for cutter in cutters:
            cutter.start()
        began = time.monotonic()
        for n, job in enumerate(SLURM_JOBS[:100]):
            site.drop(job, COMMAND, files={"CPU_SERVER": "elgato\n"})
            if n % 4 == 0:
                site.drop(SGE_JOBS[n // 4], COMMAND, files={"CPU_SERVER": "sge\n"})
        site.wait(lambda: sum(site.marker(job)[0] == "DONE" for job in SLURM_JOBS) > 20, 120, "some are done")
        lab.inside("elgato", "slurm.sh", "stop")
        gone = time.monotonic()
        site.wait(lambda: time.monotonic() - gone > 30, 40)
        lab.inside("elgato", "slurm.sh", "controller")
        for n, job in enumerate(SLURM_JOBS[100:]):  # in portions, so that there is something to cut until all cuts are made
            site.drop(job, COMMAND, files={"CPU_SERVER": "elgato\n"})
            if n % 4 == 0:
                site.drop(SGE_JOBS[25 + n // 4], COMMAND, files={"CPU_SERVER": "sge\n"})
            if n % 5 == 4 and any(cutter.is_alive() for cutter in cutters):
                site.wait(lambda: site.marker(job)[0] == "DONE", 240, job)  # each cut may cost a probe's pause
        jobs = [*SLURM_JOBS, *SGE_JOBS]
        site.wait(lambda: all(site.marker(job)[0] in ("DONE", "FAILED") for job in jobs), 900, "all ended")
        for cutter in cutters:
            cutter.join(1)
        took = time.monotonic() - began
        wrong = [f"{job}: {site.marker(job)}" for job in jobs if site.marker(job)[0] != "DONE"]
        assert not wrong, "\n".join(wrong[:5])
        assert {job: site.runs(job) for job in jobs} == dict.fromkeys(jobs, 1)
        cuts = {host: taken(lab, host) for host in ("elgato", "sge")}
        print(f"250 jobs in {took:.0f} s, of which 30 s without a controller; cut: { {host: len(ids) for host, ids in cuts.items()} }")
        assert sum(map(len, cuts.values())) >= 20
        assert_no_reply_came(site, cuts)
        nodes = {(site.computes["elgato"] / job / "node").read_text() for job in SLURM_JOBS}
        assert nodes == {"elgato\n", "node2\n"}


def assert_no_reply_came(site, cuts):
    """Each cut is proved: the scheduler gave an id, and in the place of its reply stands what was found by name."""
    for host, ids in cuts.items():
        for id, name in ids:
            [place] = site.computes[host].glob(f"*/*/.watchties/1.{name.removeprefix('wt.')}")
            reply = place / "reply"
            assert not reply.exists() or reply.read_text() == f"x\t0\no\t{id}\n", (host, id, reply.read_text())


def test_every_end_has_its_own_cause_in_the_schedulers_words(cluster):
    lab = cluster
    limits = '[host.elgato.resources]\nmemory = "150MB"\nwalltime = "60s"\n[host.sge.resources]\nwalltime = "12s"\n'
    late = lab.home("sge", "runcompties") / "late"  # qacct knows nothing yet
    put(late.parent / "shims/qacct", LATE_ACCOUNT).chmod(0o755)
    late.write_text("")
    with LabSite(lab, compute=("elgato", "sge"), daemon='grace = "15s"',
                 change=lambda text: as_schedulers(text) + limits) as site:  # fmt: skip
        wanted = {"time": SLEEP, "memory": OVER_MEMORY, "cancelled": SLEEP}
        jobs = {f"ann/slurm {cause}": (cause, "elgato") for cause in ("time", "memory", "cancelled")}
        jobs |= {"bob/sge time": ("time", "sge"), "bob/sge cancelled": ("cancelled", "sge")}
        for job, (cause, host) in jobs.items():
            site.drop(job, wanted[cause], files={"CPU_SERVER": host + "\n"})
        for job, scancel in ("ann/slurm cancelled", "scancel"), ("bob/sge cancelled", f"{SGE_ROOT}; qdel"):
            site.wait(lambda: site.runs(job), 60, f"{job} runs")
            id = site.wait_state(job, "SUBMITTED")["id"]
            lab.on(jobs[job][1], ["sh", "-c", f"{scancel} {shlex.quote(id)}"], user="runcompties")
        by_sge = [job for job in jobs if "sge" in job]
        site.wait(lambda: all("once more" in site.record(job).tries.get("poll", {}).get("reason", "") for job in by_sge), 90, "missed")
        missed = time.monotonic()
        site.wait(lambda: time.monotonic() - missed > 20, 30)  # longer than grace: a cause that may still come is waited for
        assert [site.marker(job)[0] for job in by_sge] == ["SUBMITTED"] * 2
        late.unlink()
        site.wait(lambda: all(site.marker(job)[0] == "FAILED" for job in jobs), 200, "all FAILED")
        told = {job: site.marker(job)[1] for job in jobs}
        print("\n".join(f"{job}: {fields['cause']}, {fields['reason']}" for job, fields in told.items()))
        assert {job: fields["cause"] for job, fields in told.items()} == {job: cause for job, (cause, _) in jobs.items()}
        assert all("the scheduler says" in fields["reason"] for fields in told.values())
        site.wait(lambda: all(site.letter(job) for job in jobs), 30, "letters")
        assert all(told[job]["reason"][:40] in site.letter(job).get_body(("plain",)).get_content() for job in jobs)
        assert {job: site.runs(job) for job in jobs} == dict.fromkeys(jobs, 1)


def test_jobs_beyond_a_users_limit_wait_and_say_why_while_another_host_goes_on(cluster):
    """MaxSubmitJobs of the account: "not now" holds back what goes to elgato. Last of this module: the limit stays."""
    lab = cluster
    lab.on("elgato", ["sh", "-c", "sacctmgr -i add account lab && sacctmgr -i add user runcompties account=lab MaxSubmitJobs=2"])
    lab.inside("elgato", "slurm.sh", "stop")
    lab.on("elgato", ["sh", "-c", "echo AccountingStorageEnforce=limits >>/etc/slurm/slurm.conf"])
    lab.inside("elgato", "slurm.sh", "controller")
    with LabSite(lab, compute=("elgato", "sge"), change=as_schedulers, daemon='grace = "1s"', edit=soon_again) as site:
        held, waits = ["ann/e1", "ann/e2"], ["ann/e3", "bob/e4"]
        for job in held:
            site.drop(job, "echo run >>runs.log\nuntil [ -e go ]; do sleep 0.2; done\n", files={"CPU_SERVER": "elgato\n"})
            site.wait_state(job, "SUBMITTED", 60)
        for job in waits:
            site.drop(job, COMMAND, files={"CPU_SERVER": "elgato\n"})
        said = "elgato takes no more for now: "
        site.wait(lambda: all(said in site.watchties("status", job, check=False).stdout for job in waits), 60, "they say why they wait")
        site.drop("bob/elsewhere", COMMAND, files={"CPU_SERVER": "sge\n"})
        site.wait_state("bob/elsewhere", "DONE", 60)
        assert [site.marker(job)[0] for job in waits] == ["PENDING"] * 2
        for job in held:
            (site.computes["elgato"] / job / "go").touch()
        for job in held + waits:
            site.wait_state(job, "DONE", 90)
            assert site.runs(job) == 1


def soon_again(text):
    """Return the rules with submit tried again soon."""
    return text.replace('name = "submit"\n', 'name = "submit"\nretry = { first = "1s", maximum = "3s", give_up_after = "3d" }\n')


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Slurm without accounting on one host."""
    if reason := why_not():
        pytest.skip(reason)
    with Lab(tmp_path_factory.mktemp("plain"), ("vision", "v11", "elgato")) as lab:
        lab.inside("elgato", "slurm.sh", "up", "elgato")
        yield lab


def with_slurm(text):
    """Return the configuration with Slurm on elgato, and what a job may ask for there."""
    more = 'poll = "1s"\nresources = { memory = "150MB", walltime = "10m" }\ncaps = { memory = "1GB" }\n'
    head = '[host.elgato]\nrole = "compute"\nscheduler = "shell"'
    assert head in text
    return text.replace(head, f'[host.elgato]\nrole = "compute"\nscheduler = "slurm"\n{more}')


def test_without_accounting_causes_refusals_and_caps_are_told_apart_too(plain):
    """A node that failed is a cause of its own: such a job is not run again, though the tree tries lost ones twice more."""
    with LabSite(plain, compute=("elgato",), daemon='grace = "3s"', tree="resubmit_lost = 2", change=with_slurm) as site:
        for job, toml in ("nosuch", 'queue = "nosuch"\n'), ("big", 'memory = "2GB"\n'):
            site.drop(f"ann/{job}", COMMAND, files={"job.toml": toml})
        rejected = {job: site.wait_state(f"ann/{job}", "FAILED", 60) for job in ("nosuch", "big")}
        assert {fields["cause"] for fields in rejected.values()} == {"rejected"}
        assert "invalid partition specified" in rejected["nosuch"]["reason"]
        assert rejected["big"]["reason"] == "job.toml: memory = 2GB is more than elgato allows, 1GB"
        site.drop("ann/memory", OVER_MEMORY)
        site.drop("ann/cancelled", SLEEP)
        site.wait(lambda: site.runs("ann/cancelled"), 60, "it runs")
        id = site.wait_state("ann/cancelled", "SUBMITTED", 60)["id"]
        plain.on("elgato", ["scancel", id], user="runcompties")
        for job in "memory", "cancelled":
            assert site.wait_state(f"ann/{job}", "FAILED", 90)["cause"] == job
        site.drop("ann/node", SLEEP)
        site.wait(lambda: site.runs("ann/node"), 60, "it runs")
        site.wait_state("ann/node", "SUBMITTED", 60)
        plain.on("elgato", ["scontrol", "update", "nodename=elgato", "state=down", "reason=test"])
        told = site.wait_state("ann/node", "FAILED", 90)
        assert (told["cause"], told["attempt"]) == ("node", "1") and "NODE" in told["reason"], told
        assert site.runs("ann/node") == 1
