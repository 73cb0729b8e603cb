"""Grid Engine: SGE 6.2, Son of Grid Engine 8, and what descends from them.

Knows: qsub(1), qstat(1), qacct(1), qdel(1), what they answer.
Must not know: how a command reaches the host.

| step | command | answer |
|---|---|---|
| submit | qsub -terse -N NAME, a script on standard input | ID on a line of its own |
| find | qstat -xml, then qacct -j NAME for those that are not there | job_list; jobname, jobnumber |
| query | qstat -xml, then qacct -j ID for those that are not there | job_list; failed, exit_status |
| cancel | qdel NAME | |

It kills with SIGKILL at a limit or by qdel, so that such a job leaves no exit file: qacct tells why, up to a minute late. A job that
was deleted while it waited is in no account. `cores` needs a parallel environment: name it in `submit_options`, ["-pe", "smp", "4"].
"""

import re
import xml.etree.ElementTree as xml

from watchties.schedulers import (ASK, TELL, Entry, NotNow, QueryFailed, Refused, Submitted, Unknown, failure_text, options_text,
                                  parse_parts, parts, parts_of_each)  # fmt: skip

LATER = re.compile(
    "unable to contact|can't connect|cannot connect|unable to send message|per user limit|too many|only \\d+ jobs|exceeds? .*limit"
    "|job limit|resource temporarily|got no response|timeout|timed out|not found", re.IGNORECASE,
)  # fmt: skip
PERHAPS = re.compile("got no response|timeout|timed out|got (read|write) error|connection", re.IGNORECASE)
REFUSED = re.compile(r"^(Unable to run job: |qsub: |error: )", re.MULTILINE)
ABSENT = re.compile(r"error: job (id|name) \S+ not found")
NO_ACCOUNT = "accounting: No such file"  # nothing has ever ended there
QSTAT = f'capped {ASK} qstat -xml -u "$(id -un)"'
STATES = {"E": "error", "d": "in deletion", "h": "held", "q": "waits", "r": "running", "s": "suspended", "t": "in transfer", "w": "waits"}  # qstat(1)
UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4, "": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
COMMANDS = ("qsub", "qstat", "qacct", "qdel")
LATE = 60  # qacct: what has ended is written into the account file some seconds later, on a busy master a minute


def submit_command(job, resources, options):
    """Return the text that submits a script which starts the wrapper; -cwd and a relative -o know no special characters."""
    asked = " ".join(_resources(resources))
    ours = f'-terse -cwd -S /bin/sh -r n -j y -o "$WT_SAID" -N "$WT_NAME" {asked} {options_text(options)}'
    return f"printf '%s\\n' \"$WT_WRAPPER\" | capped {TELL} qsub {ours}"


def _resources(resources):
    """Yield qsub's options, complex(5): memory in bytes, time in seconds."""
    if resources.get("memory"):
        yield f"-l h_vmem={resources['memory']}"
    if resources.get("walltime"):
        yield f"-l h_rt={int(-(-resources['walltime'] // 1))}"
    for key, option in ("queue", "-q"), ("account", "-P"):
        if resources.get(key):
            yield f"{option} {options_text([resources[key]])}"


def parse_submit(code, out, err):
    """Return what qsub's answer means; one that names neither an id nor a refusal is Unknown."""
    said, ids = failure_text(out, err), re.findall(r"^(\d+)$", out, re.MULTILINE)
    if code == 0 and ids:
        return Submitted(ids[-1])
    if PERHAPS.search(err) and not re.search("unable to contact|connection refused", err, re.IGNORECASE):
        return Unknown(said)
    if code and LATER.search(err):
        return NotNow(said)
    if code and REFUSED.search(err):
        return Refused(said)
    return Unknown(f"exit code {code}: {said}")


def find_command(names):
    """Return the text that asks qstat, and qacct for each name (it takes one, and fails if that is not there)."""
    return parts({"qstat": QSTAT} | {f"qacct{n}": f"capped {ASK} qacct -j {name}" for n, name in enumerate(names)})


def parse_find(code, out, err, names):
    """Return {name: id}; raise QueryFailed unless qstat, and qacct for every other name, gave a whole answer."""
    said = parse_parts(out, err, ["qstat", *(f"qacct{n}" for n in range(len(names)))])
    found = {entry.name: id for id, entry in _queued(*said["qstat"]).items()}
    for n, name in enumerate(names):
        if name not in found:
            found |= {entry.name: id for id, entry in _accounted(*said[f"qacct{n}"]).items()}
    return {name: id for name, id in found.items() if name in names}


def query_command(ids):
    """Return the text that asks qstat, and qacct for each id that it did not tell of."""
    ids = [id for id in ids if id.isdigit()]
    if not ids:
        return ""
    queue = f"wt_said=$({QSTAT}); wt_code=$?; printf '%s\\n' \"$wt_said\"; (exit $wt_code)"
    ask = f'case $wt_said in *"<JB_job_number>$wt_id<"*) ;; *) capped {ASK} qacct -j "$wt_id" ;; esac'
    return parts({"qstat": queue}) + "; " + parts_of_each("qacct", ids, ask)


def parse_query(code, out, err, ids):
    """Return {id: Entry}; raise QueryFailed unless qstat, and qacct for every other id, gave a whole answer."""
    ids = [id for id in ids if id.isdigit()]
    said = parse_parts(out, err, ["qstat", *(f"qacct{id}" for id in ids)])
    found = _queued(*said["qstat"])
    for id in ids:
        if id not in found:
            found |= _accounted(*said[f"qacct{id}"])
    return {id: entry for id, entry in found.items() if id in ids}


def _queued(code, out, err):
    start = out.find("<?xml")
    try:
        if code or start < 0:
            raise QueryFailed(f"qstat ended with {code}: {failure_text(out, err)}")
        jobs = xml.fromstring(out[start:]).iter("job_list")
        rows = [[job.findtext(key) or "" for key in ("JB_job_number", "state", "JB_name")] for job in jobs]
    except xml.ParseError as error:
        raise QueryFailed(f"qstat's answer is no XML ({error}): {failure_text(out, err)[:200]}") from None
    return {id: Entry(_state(state), name=name) for id, state, name in rows if id}


def _state(letters):
    """Return a state as qstat(1) prints it, its letters in words."""
    known = dict.fromkeys(STATES[letter] for letter in letters if letter in STATES)
    return f"{letters} ({', '.join(known)})" if known else letters or "in the queue"


def _accounted(code, out, err):
    if code == 1 and (ABSENT.search(err) or NO_ACCOUNT in err):
        return {}
    if code:
        raise QueryFailed(f"qacct ended with {code}: {failure_text(out, err)}")
    found = {}
    for block in re.split(r"^=+$", out, flags=re.MULTILINE)[1:]:
        rows = dict(re.findall(r"^(\w+) +(.*?) *$", block, re.MULTILINE))
        if not {"jobnumber", "jobname", "failed", "exit_status"} <= set(rows):
            raise QueryFailed("qacct's answer was cut off")
        words = f"failed {rows['failed']}, exit_status {rows['exit_status']}"
        found[rows["jobnumber"]] = Entry(words, True, _cause(rows), rows["jobname"])
    return found


def _cause(rows):
    """Return why a job was killed, from what it had asked for and what it used; a kill that no limit explains is qdel's."""
    failed = rows["failed"].split(" ")[0]
    if failed not in ("37", "100"):  # sge_status(5): over a limit, killed while it ran
        return ""
    asked = dict(re.findall(r"(h_\w+)=([^, ]+)", rows.get("category", "")))
    if "h_rt" in asked and _number(rows.get("ru_wallclock", "")) >= _number(asked["h_rt"]):
        return "time"
    if "h_vmem" in asked and _number(rows.get("maxvmem", "")) >= 0.9 * _number(asked["h_vmem"]):
        return "memory"
    return "" if failed == "37" else "cancelled"


def _number(text):
    """Return 3.5MB, 4s or 12 as a number of bytes or seconds."""
    match = re.match(r"([0-9.]+)([KMGTB]*)", text)
    return float(match[1]) * UNITS.get(match[2], 1) if match and match[1].count(".") < 2 and match[1] != "." else 0.0


def cancel_command(id, name):
    """Return the text that deletes by name; that there is none (any more) is no failure."""
    return f"capped {TELL} qdel {name}"


def parse_said(text):
    """Return None: it writes nothing beside the job's own output."""
    return None
