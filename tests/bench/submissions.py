"""Submissions to real schedulers in the lab: claim and submit by the agent, beside a loop of bare sbatch and qsub, by turns.

Knows: the lab, the agent's lines, how each scheduler is asked by hand.
Must not know: hooks, or what becomes of the jobs: they are held, so that nothing of them runs meanwhile.
"""

import statistics
import time
from pathlib import Path

from figures import Figure, spread
from lab_kit import Lab, why_not
from watchties.schedulers import sge, slurm

AGENT = Path(__file__).resolve().parents[2] / "watchties/far/agent.sh"
BATCH = 100
USER = "runcompties"
BARE = {
    "slurm": "for n in $(seq {n}); do sbatch --parsable --hold --output=/dev/null --wrap='exec sleep 1' || exit; done",
    "sge": "for n in $(seq {n}); do echo 'exec sleep 1' | qsub -terse -h -o /dev/null -j y || exit; done",
}
OURS = {"slurm": (slurm, ["--hold"], "elgato", "true"), "sge": (sge, ["-h"], "sge", "export SGE_ROOT=/var/lib/gridengine")}


def measure(base, size):
    """Return a figure for each scheduler: seconds for a batch of submissions, beside the bare loop."""
    if reason := why_not():
        print(f"not measured: {reason}")
        return []
    with Lab(base / "lab", ("vision", "v11", "elgato", "sge")) as lab:
        lab.inside("elgato", "slurm.sh", "up", "elgato")
        lab.inside("sge", "sge.sh")
        return [one(lab, name, 2 * size.rounds + 1) for name in BARE]


def one(lab, name, rounds):
    """Return the figure of one scheduler: the median of the rounds, in each of which both ways have their turn."""
    _, _, host, setup = OURS[name]
    seconds = {"bare": [], "ours": []}
    for number in range(rounds):
        for way in ("bare", "ours")[:: 1 if number % 2 else -1]:
            text = BARE[name].format(n=BATCH) if way == "bare" else by_agent(lab, name, number)
            began = time.monotonic()
            done = lab.on(host, ["sh", "-c", f"{setup}; {text}"], user=USER)
            seconds[way].append(time.monotonic() - began)
            ids = [line for line in done.stdout.splitlines() if line.removeprefix("\to\t").isdigit()]
            assert len(set(ids)) == BATCH, done.stdout + done.stderr
    for way, values in seconds.items():
        print(f"{name}, {way}, {BATCH} submissions, seconds: {spread(values)}; {BATCH / statistics.median(values):.0f} a second")
    ours, bare = (statistics.median(seconds[way]) for way in ("ours", "bare"))
    return Figure(f"{BATCH} submissions, {name}", ours, "s", bare, 1.3, "ratio")


def by_agent(lab, name, number):
    """Return shell text that claims and submits a batch; its lines lie ready in files."""
    scheduler, options, host, _ = OURS[name]
    home = lab.home(host, USER)
    (home / "scripts").mkdir(exist_ok=True)
    (home / "scripts/agent.sh").write_bytes(AGENT.read_bytes())
    (home / "data").mkdir(exist_ok=True)
    lab.on(host, ["chown", USER, f"/home/{USER}/data"])
    names = [f"u/e{number}.{n}\t1\tt{number}.{n}" for n in range(BATCH)]
    (home / "claims").write_text("".join(f"{line}\n" for line in names))
    command = scheduler.submit_command(None, {}, options)
    (home / "submits").write_text("".join(f"{line}\t{command}\n" for line in names))
    lab.on(host, ["sh", "-c", "cd data && " + " && ".join(f"mkdir -p u/e{number}.{n}" for n in range(BATCH))], user=USER)
    return "sh scripts/agent.sh claim data R <claims >/dev/null && sh scripts/agent.sh submit data R <submits"
