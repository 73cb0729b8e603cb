"""A job as an onlooker sees it, from the disk alone: record, markers, runs at work, what would be decided.

Knows: where all of that lies, and what an onlooker cannot see.
Must not know: the command line. It writes nothing and takes no lock: a daemon may be at work meanwhile.
"""

import fcntl
import json
import os
import time
from dataclasses import dataclass

from watchties import disks, fire, markers, recordfile
from watchties.jobs import refuse_links
from watchties.model import MARKERS, TAKEN
from watchties.seen import Seen, World


@dataclass(frozen=True)
class AtWork:
    """A run of a hook that is going on for a job."""

    run: str
    rule: str
    host: str
    started: float


def runs_at_work(state, job_id):
    """Return the runs AtWork for a job: their directory stands, and their slot's lock is held."""
    folder, found = os.path.join(state, "runs"), []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        try:
            with open(os.path.join(folder, name, "run.json"), encoding="utf-8") as file:
                run = json.load(file)
            with open(os.path.join(folder, name, "jobs"), encoding="utf-8", errors="surrogateescape") as file:
                jobs = [json.loads(line) for line in file]
        except (OSError, ValueError):
            continue  # it has just ended, or is just being prepared
        if any((job["tree"], job["job"]) == (job_id.tree, job_id.job) for job in jobs) and _is_held(run["lock"]):
            found.append(AtWork(run["id"], run["rule"], run["host"], run["started"]))
    return found


def _is_held(lock):
    """Return whether somebody holds a lock, without taking it for longer than a look."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def see(config, job_id, at_work=()):
    """Return the job as Seen. Raises Unsafe for a damaged record, or a link where a directory should be."""
    root, rules = config.tree[job_id.tree].root, {rule.name: rule for rule in config.rule}
    refuse_links(root, job_id.job)
    where = os.path.join(root, job_id.job)
    busy = frozenset(place for run in at_work if run.rule in rules for place in fire.touches(rules[run.rule]))
    return Seen(job_id, recordfile.load(where), markers.look(where), busy=busy)


def world(config, tree, now=None):
    """Return the World for a tree's jobs: every host counts as up, the disk is looked at."""
    rules = {rule.name: rule for rule in config.rule}
    polls = {name: host.poll for name, host in config.host.items()}
    return World(config.tree[tree], rules, time.time() if now is None else now, {}, blocked(config, tree), polls)


def blocked(config, tree):
    """Return why nothing may be brought into a mirror, or ""."""
    return disks.trouble(config.tree[tree].root, config.daemon.disk_floor)[0]


def standing(job_dir):
    """Return (what, since in seconds, fields) for each marker in a job's directory, hidden requests and junk among them."""
    look = markers.look(job_dir)
    rows = [(name, look.markers[name].ns / 1e9, look.markers[name].fields) for name in MARKERS if name in look.markers]
    rows += [(TAKEN + name, ns / 1e9, {}) for name, ns in look.taken.items()]
    return rows + [(f"{name} (no file: junk)", 0.0, {}) for name in look.junk]
