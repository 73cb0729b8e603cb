"""Where the time goes, step by step, from the end lines of the hooks' logs.

Knows: the form of those lines.
Must not know: what a hook does.
"""

import re
import time
from collections import defaultdict
from dataclasses import dataclass

import figures

END = re.compile(r"(\S+ \S+) \S+ end host=\S+ (.*?) ?exit=(\S+) seconds=([0-9.]+)")
ORDER = ("pull", "submit", "report", "poll", "fetch", "push", "mail")


@dataclass
class Step:
    """All runs of one rule. first, last: seconds after the clock started, of the first start and the last end."""

    seconds: float = 0.0
    runs: int = 0
    jobs: int = 0
    first: float = 1e9
    last: float = 0.0


def read(folder, since):
    """Return {rule: Step} of the runs that ended after `since` (seconds since 1970)."""
    found = defaultdict(Step)
    for path in folder.glob("*.log"):
        for line in path.read_text(errors="replace").splitlines():
            if match := END.match(line):
                add(found[path.stem], match, since)
    return {rule: step for rule, step in found.items() if step.runs}


def add(step, match, since):
    stamp, counts, _, seconds = match.groups()
    day, _, milli = stamp.rpartition(".")
    ended = time.mktime(time.strptime(day, "%Y-%m-%d %H:%M:%S")) + int(milli) / 1000 - since
    if ended >= 0:
        step.seconds += float(seconds)
        step.runs += 1
        step.jobs += sum(map(int, re.findall(r"=(\d+)", counts)))
        step.first, step.last = min(step.first, ended - float(seconds)), max(step.last, ended)


def table(folder, count, since, wall, daemon):
    """Return lines: for each rule its runs, jobs, seconds, ms a job, and when it was at work; then the daemon's processor time."""
    steps = read(folder, since)
    rows = [("rule", "runs", "jobs", "seconds", "ms a job", "from", "to")]
    for rule in (*ORDER, *sorted(steps.keys() - set(ORDER))):
        if step := steps.get(rule):
            cells = f"{step.seconds:.2f}", f"{1000 * step.seconds / count:.2f}", f"{max(0.0, step.first):.2f}", f"{step.last:.2f}"
            rows.append((rule, str(step.runs), str(step.jobs), *cells))
    note = f"of {wall:.2f} s; runs overlap, so the seconds add up to more. The daemon itself used {daemon:.2f} s of a processor,"
    return [*figures.columns(rows), f"{note} {1000 * daemon / count:.2f} ms a job."]
