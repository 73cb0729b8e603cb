"""What must hold of a job when something was killed on its way: how often it ran, its results, its mail, and that nothing is left.

Knows: the names that a whole job leaves in the three trees, the state directory's files and locks, the processes of a site at rest.
Must not know: what was killed, or when.
"""

import fcntl
import os
import re
import time
from collections import defaultdict
from pathlib import Path

from roles import parents, role_of

RESULTS = ["command", "data.bin", "in.txt", "out.txt", "remote_ties_run.err", "remote_ties_run.res", "runs.log"]


def expected(site, job, state, runs=(1,), letters=(1,)):
    """Return what is wrong with a job that has ended, in words: how often it ran, its results in all trees, its letters."""
    wrong = []
    if site.runs(job) not in runs or (site.compute / job / "twice.log").exists():
        wrong.append(f"ran {site.runs(job)} times, not {runs}; two at once: {(site.compute / job / 'twice.log').exists()}")
    if state == "DONE":
        for tree in site.web, site.mirror:
            found = {p.name: p.read_bytes() for p in (tree / job).iterdir() if p.is_file() and not p.name.startswith(".")}
            if sorted(found) != sorted([*RESULTS, "DONE"]):
                wrong.append(f"{tree}: {sorted(found)}")
            elif found["out.txt"] != found["in.txt"] + found["data.bin"] or found["runs.log"] != b"run\n" * site.runs(job):
                wrong.append(f"{tree}: results are not whole: { {name: text[:60] for name, text in found.items()} }")
            elif (found["in.txt"], found["data.bin"]) != (f"input of {job}\n".encode(), site.data):
                wrong.append(f"{tree}: inputs are not whole: { {name: text[:60] for name, text in found.items()} }")
    about = f"Experiment:  {job.partition('/')[2]}\n"
    sent = [text for text in site.letters() if about in text.replace("\r\n", "\n")]
    identities = {line for text in sent for line in text.splitlines() if line.lower().startswith("message-id:")}
    if len(sent) not in letters or len(identities) != 1:
        wrong.append(f"{len(sent)} letters, {identities}")
    return wrong


# ---- nothing is left ----

HIDDEN = {"web": set(), "mirror": {".watchties"}, "compute": {".watchties"}}
RECORD = re.compile(r"record\.json|(manifest|made|spared)\.[0-9]+")
ATTEMPT = re.compile(r"begun|begun\..+|exit|reply|intent\..+|killed")
ROOTS = {".watchties.lock", ".watchties.coming", ".watchties.tree"}


def left_over(site, job):
    """Return what should not be there any more: names, locks, processes."""
    return [*_names_left(site, job), *_state_left(site), *_processes_left(site)]


def _names_left(site, job):
    wrong = []
    for place in "web", "mirror", "compute":
        tree = getattr(site, place)
        hidden = {p.name for p in (tree / job).iterdir() if p.name.startswith(".")}
        wrong += [f"{place}: {job}/{name}" for name in hidden - HIDDEN[place]]
        wrong += [f"{place}: {p.name}" for p in tree.iterdir() if p.name.startswith(".") and p.name not in ROOTS]
    wrong += [f"mirror: {p}" for p in (site.mirror / job / ".watchties").iterdir() if not RECORD.fullmatch(p.name)]
    for attempt in (site.compute / job / ".watchties").glob("[0-9]*"):
        wrong += [f"compute: {p}" for p in attempt.iterdir() if not ATTEMPT.fullmatch(p.name)]
    coming = site.mirror / ".watchties.coming"
    return wrong + [f"mirror: {p}" for p in (coming.iterdir() if coming.exists() else ())]


def _state_left(site):
    wrong = [f"{p}" for p in site.state.iterdir() if p.name.endswith((".new", ".tmp"))]
    wrong += [f"{p}" for p in site.mail.iterdir() if p.name.startswith(".")] if site.mail.exists() else []
    wrong += [f"{p}" for p in (site.state / "fork").iterdir()][1:]
    for lock in [*(site.state / "locks").iterdir(), *site.base.glob("*/compties/user_data/.watchties.lock")]:
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wrong.append(f"{lock} is held")
    return wrong


def _processes_left(site):
    """Return zombies of ours and processes that have to do with the site, but the daemon, its forkserver and one relay a host."""
    found, zombies = defaultdict(list), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        line = list(parents(int(entry.name)))
        if line and any(pid == site.process.pid for pid, *_ in line):
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                zombies.append(f"zombie {entry.name}")
            found[role_of(int(entry.name))[0]].append(f"{entry.name} {' '.join(line[0][1])[:200]}")
        elif line and (str(site.base) in " ".join(line[0][1]) or line[0][2].startswith(str(site.base))):
            found["orphan"].append(f"{entry.name} {' '.join(line[0][1])[:200]}")
    usual = {"daemon": 2, "forkserver": 1, "relay vision": 1, "relay b01": 1}  # daemon: and multiprocessing's resource tracker
    return zombies + [f"{role}: {pids}" for role, pids in found.items() if len(pids) > usual.get(role, 0)]


def wait_clean(site, job, seconds=10):
    """Return what is still left over after so many seconds: something may just be ending."""
    end = time.monotonic() + seconds
    while True:
        try:
            wrong = left_over(site, job)
        except OSError as error:  # it went while we looked
            wrong = [str(error)]
        if not wrong or time.monotonic() > end:
            return wrong
        time.sleep(0.1)
