"""Over real hosts: many jobs of one user beside one of another, a far relay and an agent that lie, a rate that is kept."""

import os
import time

import pytest
from helpers import put
from lab_kit import LabSite, give
from trouble_kit import quick, waits_for

pytestmark = pytest.mark.slow

MANY = 200
QUICK = quick("pull", "submit", "report", "fetch", "push")
LINES = [
    "../../etc", "ann/..", "/etc/cron.d", "ann//e", "ann/e1/sub", "-rf/x", "ann/-rf", ".ssh/x", "ann/.watchties", "ann/a\x1b[2J",
    "$(touch pwned)/`touch pwned`", "ann/" + "x" * 300,
]  # fmt: skip
LYING_RELAY = f"""#!/usr/bin/env python3
import sys
nonce = sys.argv[sys.argv.index("--nonce") + 1]
print("main\\tPENDING\\tann/banner\\t1")
print("#relay", nonce, 2)
for marker in "PENDING", "DONE", "FAILED", "EVIL":
    for job in {LINES!r}:
        print("main", marker, job, 17, "token", sep="\\t")
print("main\\tDONE\\tann/held\\t17\\tno-such-token")
sys.stdout.flush()
sys.stdout.buffer.write(b"main\\tPENDING\\tann/\\xff\\t1\\n" + b"x" * 100_000 + b"\\n#bad\\n#error \\x1b[2J\\n#listed\\n")
sys.stdout.flush()
for line in sys.stdin:
    pass
"""
LYING_AGENT = """#!/bin/sh
[ "$1" != version ] || exec sh "$0.true" "$@"
while IFS='\t' read -r job rest; do
    printf '%s\\n' '../../etc\tdone' '$(touch pwned)\tbegun\tid=1' "ann/other\treplied" '\tx\tmany' '\tquery\tx' '\to\t17' "$job/../x\tok"
done
"""
HOLD = "echo run >>runs.log; for _ in $(seq 600); do [ -e go ] && break; sleep 0.1; done; cat in.txt >out.txt\n"


def test_one_job_of_one_user_waits_for_no_two_hundred_of_another(lab):
    many = [f"greedy/{n:03}" for n in range(MANY)]
    with LabSite(lab, compute=("b01",), max_running=4) as site:
        site.wait_ready()
        for job in many:
            site.drop(job, "echo run >>runs.log; sleep 0.3; cat in.txt >out.txt\n")
        site.wait(lambda: sum(site.runs(job) for job in many) >= 4, 60, "some run")
        site.drop("modest/one", "echo run >>runs.log; cat in.txt >out.txt\n")
        site.wait_state("modest/one", "DONE", 60)
        before = sum(site.runs(job) for job in many)
        print(f"{before} of {MANY} had begun when the other user's only job was DONE")
        assert before < MANY // 2 and site.runs("modest/one") == 1


def test_a_far_relay_and_an_agent_that_lie_lead_nowhere(lab):
    with LabSite(lab, compute=("b01",), edit=QUICK, daemon='grace = "2s"\nheartbeat = "2s"') as site:
        site.drop("ann/held", HOLD)
        site.wait_state("ann/held", "SUBMITTED")
        scripts = site.compute.parent / "scripts", site.web.parent / "scripts"
        site.stop()
        for where, user in zip(scripts, ("runcompties", "www-data"), strict=True):
            (where / "relay.py").rename(where / "relay.true")
            give(put(where / "relay.py", LYING_RELAY), user)
        agent = scripts[0] / "agent.sh"
        agent.rename(scripts[0] / "agent.sh.true")
        give(put(agent, LYING_AGENT), "runcompties")
        site.start()
        site.drop("bob/waits")
        refused = lambda: (site.base / "daemon.out").read_text(errors="replace")  # noqa: E731
        site.wait(lambda: all(word in refused() for word in ("ann/..", "ann/-rf", "EVIL", "not valid UTF-8")), 30, "refused")
        site.touch("bob/waits")
        put(site.compute / "ann/held/go")
        waits_for(site, "ann/held", "said nothing of", seconds=40)
        assert site.process.poll() is None and "Traceback" not in refused() and "\x1b" not in refused()
        assert site.marker("ann/held")[0] == "SUBMITTED" and site.marker("bob/waits")[0] == "PENDING"
        site.stop()
        for where in scripts:
            (where / "relay.true").rename(where / "relay.py")
        (scripts[0] / "agent.sh.true").rename(agent)
        site.start()
        for job in "ann/held", "bob/waits":
            assert site.wait_state(job, "DONE", 60)["attempt"] == "1" and site.runs(job) == 1
        assert not [found for host in ("vision", "v11", "b01") for found in (lab.folder / host).rglob("pwned")]
        assert {path.name for path in site.mirror.iterdir()} <= {"ann", "bob", "$(touch pwned)", ".watchties.lock", ".watchties.coming", ".watchties.tree"}


def test_bwlimit_is_kept_in_both_directions(lab):
    size, rate = 6_000_000, 2_000_000
    with LabSite(lab, compute=("b01",), web='bwlimit = "2M"') as site:
        site.wait_ready()
        began = time.monotonic()
        site.drop("ann/rate", "echo run >>runs.log; cp in.bin out.bin\n", files={"in.bin": os.urandom(size)})
        site.wait_state("ann/rate", "DONE", 120)
        took = time.monotonic() - began
        print(f"{size} bytes there and back at {rate} a second: {took:.1f} s")
        assert took > 0.7 * 2 * size / 2_097_152  # and not the quarter of a second that it takes without
        assert (site.web / "ann/rate/out.bin").read_bytes() == (site.web / "ann/rate/in.bin").read_bytes()
