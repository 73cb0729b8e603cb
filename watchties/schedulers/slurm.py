"""Slurm 19.05 or newer, with or without accounting.

Knows: sbatch(1), squeue(1), sacct(1), sinfo(1), scancel(1), what they answer, and what slurmstepd writes beside a job's own output.
Must not know: how a command reaches the host.

| step | command | answer |
|---|---|---|
| submit | sbatch --parsable --job-name=NAME --wrap=WRAPPER | ID or ID;CLUSTER on a line of its own |
| find | squeue --name=..., then sacct --name=... | ID|STATE|NAME|REASON |
| query | squeue --jobs=..., then sacct --jobs=... for those that squeue has forgotten (MinJobAge) | the same |
| nodes | sinfo --nodes=... | NODE|STATE |
| cancel | scancel --name=NAME | by name: an id may be another job's by now |

Jobs of another cluster (`sbatch -M`): put `export SLURM_CLUSTERS=NAME` into the host's `setup`, so that all four commands agree.
"""

import re
import shlex

from watchties.schedulers import (ASK, TELL, Entry, NotNow, QueryFailed, Refused, Submitted, Unknown, failure_text, options_text,
                                  parse_parts, parts)  # fmt: skip

ENDED = {  # squeue(1), JOB STATE CODES -> cause; every other state (PENDING, RUNNING, COMPLETING, ...) has not ended
    "BOOT_FAIL": "node", "CANCELLED": "cancelled", "COMPLETED": "", "DEADLINE": "time", "FAILED": "", "NODE_FAIL": "node",
    "OUT_OF_MEMORY": "memory", "PREEMPTED": "", "REVOKED": "", "TIMEOUT": "time",
}  # fmt: skip
SAID = (  # slurmstepd, on the job's standard error -> cause; with OverMemoryKill the state is FAILED, and this line alone tells why
    (re.compile(r"slurmstepd\S*: error: .*(exceeded .*memory limit|oom.kill)", re.IGNORECASE), "memory"),
    (re.compile(r"slurmstepd\S*: error: .*CANCELLED AT .* DUE TO TIME LIMIT"), "time"),
    (re.compile(r"slurmstepd\S*: error: .*CANCELLED AT .* DUE TO NODE FAILURE"), "node"),
    (re.compile(r"slurmstepd\S*: error: .*CANCELLED AT "), "cancelled"),
)
# The texts of slurm_strerror, as in src/common/slurm_errno.c. A submission that timed out may have been taken nevertheless.
LATER = re.compile(
    "unable to contact slurm controller|temporarily unable|resource temporarily unavailable|violates accounting/QOS policy|QOS.*limit"
    "|required partition not available|not available now|protocol authentication error|munge|in standby mode|not found",
    re.IGNORECASE,
)
PERHAPS = re.compile("timed out|zero bytes|communication|connection|unexpected message", re.IGNORECASE)
ID = re.compile(r"^(\d+)(?:;\S+)?$", re.MULTILINE)
ROW = re.compile(r"(\d+)\|([A-Z_]+)[^|]*\|([^|]*)\|(.*)")
DISABLED = "accounting storage is disabled"  # sacct(1): exit code 1
UNKNOWN_ID = "Invalid job id specified"  # squeue, asked for a single one: exit code 1
QUEUE = f"capped {ASK} squeue --noheader --states=all --format='%i|%T|%j|%r'"
HISTORY = f"capped {ASK} sacct --allocations --noheader --parsable2 --format=JobIDRaw,State,JobName,ExitCode"
MISSING = """wt_gone=; for wt_id in {ids}; do case $wt_said in *"wt:$wt_id|"*) ;; *) wt_gone=$wt_gone,$wt_id ;; esac; done"""
FLAGS = "~+-"  # behind a state: off, or seen only where no star stands. Others ($, @, #, ...) may stand in the place of a star
UP = ("planned", "maint", "fail", "failing", "idle", "mixed", "allocated", "completing", "draining", "drained", "reserved")
COMMANDS = ("sbatch", "squeue", "scancel", "sinfo")
LATE = 0  # squeue tells of a job until MinJobAge has passed (slurm.conf: 300 s)


def submit_command(job, resources, options):
    """Return the text that submits the wrapper; what slurmstepd writes about it goes to its own file in the attempt's directory."""
    asked = " ".join(_resources(resources))
    ours = f'--parsable --no-requeue --open-mode=append --job-name="$WT_NAME" --output="$WT_SAID" {asked} {options_text(options)}'
    return f'capped {TELL} sbatch {ours} --wrap="$WT_WRAPPER"'


def _resources(resources):
    """Yield sbatch's options: memory per node in KiB, time in whole minutes (its resolution)."""
    if resources.get("cores"):
        yield f"--nodes=1 --ntasks=1 --cpus-per-task={resources['cores']}"
    if resources.get("memory"):
        yield f"--mem={-(-resources['memory'] // 1024)}K"
    if resources.get("walltime"):
        yield f"--time={int(-(-resources['walltime'] // 60))}"
    for key, option in ("queue", "--partition"), ("account", "--account"):
        if resources.get(key):
            yield options_text([f"{option}={resources[key]}"])


def parse_submit(code, out, err):
    """Return what sbatch's answer means; one that names neither an id nor a refusal is Unknown."""
    said, ids = failure_text(out, err), ID.findall(out)
    if code == 0 and ids:
        return Submitted(ids[-1])
    if PERHAPS.search(err) and not re.search("unable to contact", err, re.IGNORECASE):
        return Unknown(said)
    if code and LATER.search(err):
        return NotNow(said)
    if code in (1, 255) and re.search(r"^sbatch: (error: (Batch job submission failed|invalid)|unrecognized)", err, re.MULTILINE | re.IGNORECASE):
        return Refused(said)
    return Unknown(f"exit code {code}: {said}")


def find_command(names):
    """Return the text that asks for names, among waiting, running and ended jobs. They are ours alone: a month covers them."""
    return parts({"squeue": f"{QUEUE} --name={','.join(names)}", "sacct": f"{HISTORY} --starttime=now-30days --name={','.join(names)}"})


def parse_find(code, out, err, names):
    """Return {name: id}; raise QueryFailed if squeue failed, or sacct where it alone could know a name."""
    said = parse_parts(out, err, ["squeue", "sacct"])
    found = {row.name: id for id, row in _rows("squeue", *said["squeue"]).items()}
    if set(names) - set(found):
        found = {row.name: id for id, row in _rows("sacct", *said["sacct"]).items()} | found
    return {name: id for name, id in found.items() if name in names}


def query_command(ids):
    """Return the text that asks squeue for ids, and sacct for those that squeue did not tell of."""
    ids = [id for id in ids if id.isdigit()]
    if not ids:
        return ""
    queue = f"wt_said=$({QUEUE} --jobs={','.join(ids)}); wt_code=$?; printf '%s\\n' \"$wt_said\"; (exit $wt_code)"
    note = "wt_said=$(printf '%s\\n' \"$wt_said\" | sed 's/^/wt:/')"
    history = f"{note}; {MISSING.format(ids=' '.join(ids))}; [ -z \"$wt_gone\" ] || {HISTORY} --jobs=\"${{wt_gone#,}}\""
    return parts({"squeue": queue, "sacct": history})


def parse_query(code, out, err, ids):
    """Return {id: Entry}; raise QueryFailed if squeue failed, or sacct where it alone could know an id."""
    said = parse_parts(out, err, ["squeue", "sacct"])
    found = _rows("squeue", *said["squeue"])
    if set(ids) - set(found):
        found = _rows("sacct", *said["sacct"]) | found
    return {id: row for id, row in found.items() if id in ids}


def _rows(command, code, out, err):
    """Return {id: Entry} of an answer; without accounting sacct knows nothing, and says so."""
    if code == 1 and (UNKNOWN_ID if command == "squeue" else DISABLED) in err:
        return {}
    if code:
        raise QueryFailed(f"{command} ended with {code}: {failure_text(out, err)}")
    found = {}
    for line in filter(None, out.split("\n")):
        match = ROW.fullmatch(line)
        if not match and re.match(r"\d+[_+|]", line):
            raise QueryFailed(f"{command} answered a line that is none of its own: {line}")
        if match:  # a login may print lines of its own before
            id, state, name, more = match.groups()
            found[id] = Entry(_words(state, more), state in ENDED, ENDED.get(state, ""), name)
    return found


def _words(state, more):
    return state if more in ("None", "0:0", "") else f"{state} ({more})"


def nodes_command(nodes):
    """Return the text that asks how nodes are. One that Slurm had given up ends, when it is back, what Slurm does not know of."""
    return f"capped {ASK} sinfo --all --noheader --Node --format='%N|%T' --nodes={shlex.quote(','.join(nodes))}"


def parse_nodes(code, out, err):
    """Return {node: whether it is at work}: a star behind the state is one that does not answer (sinfo(1), NODE STATE CODES)."""
    if code:
        raise QueryFailed(f"sinfo ended with {code}: {failure_text(out, err)}")
    rows = [line.strip().split("|") for line in out.split("\n") if line.count("|") == 1]
    return {node: state.rstrip(FLAGS) in UP for node, state in rows}


def cancel_command(id, name):
    """Return the text that cancels by name; exit code 0 also if there is no such job (any more)."""
    return f"capped {TELL} scancel --name={name}"


def parse_said(text):
    """Return the Entry that slurmstepd's own lines on the job's standard error make, or None."""
    for pattern, cause in SAID:
        if match := pattern.search(text):
            return Entry(match[0].strip(), True, cause)
    return None
