#!/usr/bin/env python3
"""Record what the lab's Slurm and Grid Engine really answer, one answer a file, into tests/data/{slurm,sge}. As root:

    .venv/bin/python tests/lab/record.py
"""

import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
from lab_kit import Lab  # noqa: E402
from watchties.schedulers import sge, slurm  # noqa: E402

USER = "runcompties"
AGENT = 'capped() {{ shift; "$@"; }}; export WT_NAME={name} WT_SAID=said WT_WRAPPER={wrapper}; '
SGE = "export SGE_ROOT=/var/lib/gridengine; "


class Recorder:
    """One host; answers go to a folder, numbered in the order of their questions."""

    def __init__(self, lab, host, folder, before):
        self.lab, self.host, self.folder, self.before, self.count = lab, host, folder, before, 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def ask(self, title, text, name="wt.none", wrapper="true"):
        """Run shell text as the user of a compute host, and keep the answer."""
        whole = self.before + AGENT.format(name=name, wrapper=shlex.quote(wrapper)) + text
        done = self.lab.on(self.host, ["bash", "-c", whole], user=USER, check=False, timeout=90)
        self.count += 1
        lines = [f"command: {text}", f"user: {USER}", f"exit code: {done.returncode}"]
        lines += [f"stdout: {line}" for line in done.stdout.splitlines()] + [f"stderr: {line}" for line in done.stderr.splitlines()]
        (self.folder / f"{self.count:02}-{title}.txt").write_text("\n".join(lines) + "\n")

    def submit(self, scheduler, title, name, wrapper="true", resources={}, options=()):
        self.ask(title, scheduler.submit_command(None, resources, list(options)), name, wrapper)


def record_slurm(lab, folder):
    ask = Recorder(lab, "elgato", folder, "")
    ask.submit(slurm, "submit", "wt.done")
    ask.submit(slurm, "submit-long", "wt.long", "exec sleep 200")
    ask.submit(slurm, "submit-fails", "wt.fails", "exit 3")
    ask.submit(slurm, "submit-memory", "wt.memory", "exec python3 -c 'x=b\"x\" * 200_000_000; import time; time.sleep(9)'", {"memory": 20_000_000})
    ask.submit(slurm, "submit-bad-partition", "wt.bad1", options=["-p", "nowhere"])
    ask.submit(slurm, "submit-bad-constraints", "wt.bad2", resources={"memory": 2**40})
    ask.submit(slurm, "submit-bad-option", "wt.bad3", options=["--frobnicate"])
    time.sleep(4)
    ask.ask("query", slurm.query_command(["1", "2", "3", "4", "5"]))
    ask.ask("query-one-unknown", slurm.query_command(["99"]))
    ask.ask("query-with-unknown", slurm.query_command(["1", "98", "99"]))
    ask.ask("find", slurm.find_command(["wt.long", "wt.never", "wt.bad2"]))
    ask.ask("cancel", slurm.cancel_command("2", "wt.long"))
    ask.ask("cancel-unknown", slurm.cancel_command("99", "wt.never"))
    time.sleep(3)
    ask.ask("query-cancelled", slurm.query_command(["2"]))
    lab.inside("elgato", "slurm.sh", "stop")
    ask.submit(slurm, "submit-no-controller", "wt.down")
    ask.ask("query-no-controller", slurm.query_command(["1"]))
    ask.ask("find-no-controller", slurm.find_command(["wt.done"]))


def record_sge(lab, folder):
    ask = Recorder(lab, "sge", folder, SGE)
    ask.ask("find-nothing-yet", sge.find_command(["wt.never"]))
    ask.submit(sge, "submit", "wt.done")
    ask.submit(sge, "submit-long", "wt.long", "exec sleep 200")
    ask.submit(sge, "submit-fails", "wt.fails", "exit 3")
    ask.submit(sge, "submit-over-time", "wt.time", "exec sleep 100", {"walltime": 2})
    ask.submit(sge, "submit-bad-queue", "wt.bad1", resources={"queue": "nowhere"})
    ask.submit(sge, "submit-bad-resource", "wt.bad2", options=["-l", "foo=3"])
    ask.submit(sge, "submit-bad-option", "wt.bad3", options=["-frobnicate"])
    ask.submit(sge, "submit-waits", "wt.waits", options=["-h"])
    while lab.on("sge", ["bash", "-c", f"{SGE}qacct -j 4"], check=False).returncode:  # up to a minute late
        time.sleep(1)
    ask.ask("query", sge.query_command(["1", "2", "3", "4", "5", "99"]))
    ask.ask("find", sge.find_command(["wt.long", "wt.done", "wt.never", "wt.waits"]))
    ask.ask("cancel", sge.cancel_command("2", "wt.long"))
    ask.ask("cancel-unknown", sge.cancel_command("99", "wt.never"))
    time.sleep(5)
    ask.ask("query-cancelled", sge.query_command(["2"]))
    lab.on("sge", ["pkill", "-KILL", "-x", "sge_qmaster"])
    ask.submit(sge, "submit-no-master", "wt.down")
    ask.ask("query-no-master", sge.query_command(["2"]))


def main():
    data = TESTS / "data"
    for accounting in "1", "":
        with tempfile.TemporaryDirectory() as folder, Lab(folder, ("vision", "v11", "elgato", "node2", "sge"), {"node2": "elgato"}) as lab:
            for host in "elgato", "node2":
                lab.inside(host, "slurm.sh", "up", "elgato", "node2", ACCOUNTING=accounting)
            record_slurm(lab, data / ("slurm-accounting" if accounting else "slurm"))
            if not accounting:
                lab.inside("sge", "sge.sh")
                record_sge(lab, data / "sge")


main()
