"""A node of a cluster goes down under a running job, and comes back: real Slurm, of which only that node's slurmd is killed."""

import pytest
from helpers import put
from lab_kit import Lab, LabSite, why_not
from trouble_kit import quick, waits_for

pytestmark = pytest.mark.slow

NODES = ["elgato", "node2"]
COMMAND = """exec 8>>lock
flock -n 8 || echo two at once >>overlap
echo run >>runs.log
hostname >node
until [ -e go ]; do sleep 0.2; done
cat in.txt >out.txt
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Slurm on elgato, which has the controller, and node2; a node that says nothing for six seconds is down."""
    if reason := why_not():
        pytest.skip(reason)
    with Lab(tmp_path_factory.mktemp("nodes"), ("vision", "v11", *NODES), {"node2": "elgato"}) as lab:
        for host in NODES:
            lab.inside(host, "slurm.sh", "up", *NODES, SLURMD_TIMEOUT="6")
        yield lab


def on_node2(text):
    """Return the configuration with Slurm on elgato, all of it on node2."""
    head = '[host.elgato]\nrole = "compute"\nscheduler = "shell"'
    assert head in text
    return text.replace(head, '[host.elgato]\nrole = "compute"\nscheduler = "slurm"\npoll = "1s"\nsubmit_options = ["--nodelist=node2"]')


def states(lab, job_name):
    """Return the states of what Slurm knows under a name."""
    return lab.on("elgato", ["squeue", "-h", "--states=all", f"--name={job_name}", "-o", "%T"], user="runcompties").stdout.split()


@pytest.mark.parametrize("cause, state, then", [("node", "NODE_FAIL", "the job ends by itself"), ("cancelled", "CANCELLED", "the node comes back")])
def test_a_job_whose_node_is_down_runs_no_second_time_before_it_has_ended(lab, cause, state, then):
    """Slurm would put it back into its queue by itself, or says that it is cancelled; and on the node that it cannot hear the job runs on."""
    job = f"ann/{then}"
    with LabSite(lab, compute=("elgato",), daemon='grace = "2s"', tree="resubmit_lost = 2", change=on_node2, edit=quick("cancel")) as site:
        site.drop(job, COMMAND)
        site.wait(lambda: site.runs(job) == 1, 60, "it runs")
        first = site.wait_state(job, "SUBMITTED", 60)["token"]
        lab.on("node2", ["sh", "-c", "kill -KILL $(cat /var/tmp/slurm/slurmd.pid)"])
        if cause == "cancelled":
            lab.on("elgato", ["scancel", f"--name=wt.{first}"], user="runcompties")
        told = site.wait_state(job, "FAILED", 120)
        assert (told["cause"], told["attempt"]) == (cause, "1") and state in told["reason"], told
        assert states(lab, f"wt.{first}") == [state]  # not PENDING: Slurm does not begin it anew
        site.touch(job)  # the user wants it again
        waits_for(site, job, "attempt 1 on elgato must first be proven ended", "node2 has failed", f"{job}/.watchties/1.{first}/begun", seconds=60)
        tries = site.record(job).tries["cancel"]["count"]
        site.wait(lambda: site.record(job).tries.get("cancel", {}).get("count", 0) > tries, 60, "it is asked again")
        assert site.runs(job) == 1 and site.marker(job)[0] == "PENDING"
        if then == "the job ends by itself":
            put(site.compute / job / "go")
            second = site.wait_state(job, "SUBMITTED", 60)["token"]
            assert second != first and site.runs(job) == 1
            lab.inside("node2", "slurm.sh", "node")
        else:
            lab.inside("node2", "slurm.sh", "node")
            site.wait(lambda: site.runs(job) == 2, 120, "it runs again")
            put(site.compute / job / "go")
        assert site.wait_state(job, "DONE", 120)["attempt"] == "2"
        assert site.runs(job) == 2 and not (site.compute / job / "overlap").exists()
