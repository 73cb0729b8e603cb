"""OpenPBS and PBS Professional.

Knows: qsub(1B), qselect(1B), qstat(1B), qdel(1B), and what they say.
Must not know: how a command reaches the host, or what becomes of a job.

| step | command | answer |
|---|---|---|
| submit | qsub -N NAME ... < script | 123.server |
| find | qselect -x -N NAME -u LOGIN, a call for each name | ids, one a line; nothing if there is none |
| query | qstat -x -f ID... | Job Id: 123.server, then "attribute = value" lines |
| cancel | qselect -N NAME, then qdel ID... | nothing |

Nothing here rests on recordings: all of it is from the manuals (PBS Professional 2022.1 Reference Guide: chapter 2 for commands,
chapter 8 "States", section 10.9 of the Administrator's Guide for Exit_status; openpbs/src/include/job.h for its negative values),
and from the words that users of such systems report. Text is read, not -F json: that breaks on some jobs (openpbs #1255, #2541).

State F is "finished", well or not: Exit_status decides. History has to be kept (qmgr: set server job_history_enable=True), or
jobs that end without a word cannot be told from others: then the query fails, and nothing is changed.
Names have 15 characters at most on older servers; ours have. The script is run by /bin/sh, whatever the login's shell is.
TORQUE knows no `select`: set no resources there, and write them as submit_options = ["-l", "nodes=1:ppn=4"].
"""

import re
import shlex

from watchties.schedulers import ASK, TELL, Entry, NotNow, QueryFailed, Refused, Submitted, Unknown
from watchties.schedulers import failure_text, options_text, parse_parts, parts

ID = r"[0-9]+(?:\.[A-Za-z0-9][A-Za-z0-9.:_-]*)?"
BEGIN, END = "wt-qsub", re.compile(r"wt-code ([0-9]+)")
BUSY = re.compile(r"would exceed|maximum number of jobs|queue is not enabled|not started|cannot connect to|connection refused"
                  r"|server shutting down|server is busy|try again", re.IGNORECASE)  # fmt: skip
NEVER = re.compile(r"unknown queue|illegal attribute|unknown resource|unauthorized|bad uid|access to queue is denied|exceeds? .*limits?"
                   r"|invalid account|invalid credential|illegal -|usage:|invalid option|cannot be used", re.IGNORECASE)  # fmt: skip
NO_QSUB = re.compile(r"\bqsub\S?: (?:command )?not found|failed to run command .qsub.: No such file")
UNKNOWN = re.compile(r"qstat: Unknown Job Id:? ([0-9]+)\S*")
NO_JOB = 153  # PBSE_UNKJOBID (15001) as an exit code
STATES = {
    "B": "its array has begun", "E": "is ending", "F": "finished", "H": "held", "M": "moved to another server", "Q": "waits", "R": "runs",
    "S": "suspended", "T": "in transit", "U": "suspended, as its host is in use", "W": "waits for its time", "X": "finished",
}  # fmt: skip
ENDED = "FX"
# job.h: JOB_EXEC_KILL_VMEM, _MEM, _CPUT, _WALLTIME; _RERUN_MS_FAIL: its node was not heard any more
BY_STATUS = {-26: "memory", -27: "memory", -28: "time", -29: "time", -20: "node"}
TERMINATED = 256 + 15  # ended by SIGTERM, as qdel does; a limit says so in words
KILLED = re.compile(r"^=>> PBS: job killed: (\w+)(.*)$", re.MULTILINE)
LIMITS = {"node": "node"} | dict.fromkeys(("walltime", "cput", "pcput"), "time") | dict.fromkeys(("mem", "vmem", "pmem", "pvmem"), "memory")
COMMANDS = ("qsub", "qselect", "qstat", "qdel")
LATE = 0  # qstat -x, with job_history_enable


def submit_command(job, resources, options):
    """Return the text that hands the wrapper to qsub as a script, between two lines that show whether its answer is whole."""
    ours = " ".join(shlex.quote(word) for word in _asked(resources))
    qsub = f"capped {TELL} qsub {ours} -r n {options_text(options)} -S /bin/sh -N \"$WT_NAME\" -j oe -o \"$WT_SAID\""
    return f"echo {BEGIN}; printf '%s\\n' '#!/bin/sh' \"$WT_WRAPPER\" | {qsub}; wt_code=$?; echo \"wt-code $wt_code\"; (exit \"$wt_code\")"


def _asked(resources):
    asked = {key: value for key, value in resources.items() if value is not None}
    chunk = [f"ncpus={asked['cores']}"] if "cores" in asked else []
    chunk += [f"mem={-(-int(asked['memory']) // 1024)}kb"] if "memory" in asked else []
    words = ["-l", ":".join(["select=1", *chunk])] if chunk else []
    words += ["-l", f"walltime={_clock(asked['walltime'])}"] if "walltime" in asked else []
    return words + (["-q", asked["queue"]] if "queue" in asked else []) + (["-A", asked["account"]] if "account" in asked else [])


def _clock(seconds):
    whole = -(-int(seconds * 1000) // 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def parse_submit(code, out, err):
    """Return Submitted with the id on the last line of a whole answer. A lone id is what was found by name (agent adopt)."""
    lines, said = [line.strip() for line in out.splitlines() if line.strip()], failure_text("", err or out.replace(BEGIN, ""))
    if code == 0 and len(lines) == 1 and re.fullmatch(ID, lines[0]) and not err.strip():
        return Submitted(lines[0])
    if len(lines) < 2 or BEGIN not in lines or not END.fullmatch(lines[-1]):
        return Unknown(f"the answer of qsub is not whole: {said}")
    answer = lines[lines.index(BEGIN) + 1 : -1]
    if END.fullmatch(lines[-1])[1] == "0":
        return Submitted(answer[-1]) if answer and re.fullmatch(ID, answer[-1]) else Unknown(f"no id in what qsub said: {said}")
    if code == 127 and NO_QSUB.search(err):
        return NotNow(f"{said}: has the host's `setup` to be told where it is?")
    own = [line for line in err.splitlines() if line.startswith(("qsub:", "usage:"))]
    if any(re.fullmatch(ID, line) for line in answer) or not own:
        return Unknown(f"qsub ended with {code}: {said}")
    if BUSY.search(own[-1]):
        return NotNow(said)
    return Refused(said) if NEVER.search(own[-1]) else Unknown(f"qsub ended with {code}: {said}")


def find_command(names):
    """Return the text that looks for each name, also among ended jobs where they are kept; it stops at the first that fails."""
    login = '-u "$(id -un)"'
    asks = {f"n{i}": f"capped {ASK} qselect -x -N {shlex.quote(n)} {login} || capped {ASK} qselect -N {shlex.quote(n)} {login}"
            for i, n in enumerate(names)}  # fmt: skip
    return ' && [ "$wt_code" -eq 0 ] && '.join(f"{{ {parts({label: ask})}; }}" for label, ask in asks.items())


def parse_find(code, out, err, names):
    """Return {name: id} of those there are; raise QueryFailed. No line and exit code 0 is how qselect says none."""
    found = {}
    for label, (ended, said, why) in parse_parts(out, err, [f"n{i}" for i in range(len(names))]).items():
        ids = [line.strip() for line in said.splitlines() if re.fullmatch(ID, line.strip())]
        odd = [line for line in said.splitlines() if line.strip() and line.strip() not in ids]
        if ended or odd and not ids:
            raise QueryFailed(f"qselect ended with {ended}: {failure_text(said, why)}")
        if ids:
            found[names[int(label[1:])]] = ids[0]
    return found


def query_command(ids):
    """Return the text that asks for these ids, ended ones too."""
    ids = [word for word in ids if re.fullmatch(ID, word)]
    return parts({"jobs": f"capped {ASK} qstat -x -f {' '.join(ids)}"}) if ids else ""


def parse_query(code, out, err, ids):
    """Return {id: Entry}; raise QueryFailed unless each id has a whole entry or is said to be unknown."""
    ended, out, err = parse_parts(out, err, ["jobs"])["jobs"]
    blocks = re.split(rf"^Job Id: ({ID})[ \t]*$", re.sub(r"\n\t", "", out), flags=re.MULTILINE)
    jobs = {_number(job): dict(re.findall(r"^ {4}(\S+) = (.*)$", text, re.MULTILINE)) for job, text in zip(blocks[1::2], blocks[2::2])}
    said = [line.strip() for line in err.splitlines() if line.strip()]
    unknown = {match[1] for line in said if (match := UNKNOWN.fullmatch(line))}
    if ended not in (0, NO_JOB) or ended == NO_JOB and not (unknown and all(UNKNOWN.fullmatch(line) for line in said)):
        raise QueryFailed(f"qstat ended with {ended}: {failure_text(out, err)}")
    whole = {number for number, job in jobs.items() if job.get("job_state", "") in STATES and job.get("Job_Name")}
    if left := [one for one in ids if _number(one) not in whole | unknown]:
        raise QueryFailed(f"qstat said nothing of {left[0]} ({len(left)} of {len(ids)} jobs): {failure_text(out, err)}")
    return {one: _entry(jobs[_number(one)]) for one in ids if _number(one) in whole}


def _number(job):
    return job.partition(".")[0]


def _entry(job):
    state, status = job["job_state"], job.get("Exit_status", "")
    words = f"{state} ({STATES[state]})" + (f", Exit_status {status}" if status else "")
    words += f"; {job['comment']}" if "comment" in job else ""
    return Entry(words, state in ENDED, _cause(job, status) if state in ENDED else "", job["Job_Name"])


def _cause(job, status):
    if not re.fullmatch(r"-?[0-9]{1,9}", status) or int(status) == 0:
        return ""
    if int(status) in BY_STATUS:
        return BY_STATUS[int(status)]
    used, limit = (_seconds(job.get(f"{table}.walltime", "")) for table in ("resources_used", "Resource_List"))
    if limit and used >= limit:
        return "time"
    return "cancelled" if int(status) == TERMINATED else ""


def _seconds(clock):
    match = re.fullmatch(r"([0-9]+):([0-9]{2}):([0-9]{2})", clock)
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3]) if match else 0


def cancel_command(id, name):
    """Return the text that deletes a job, if there is one of the name: an id may be another job's by now."""
    look = f"wt_ids=$(capped {ASK} qselect -N {shlex.quote(name)} -u \"$(id -un)\")"
    return f"{look} && {{ [ -z \"$wt_ids\" ] || capped {TELL} qdel $wt_ids; }}"


def parse_said(text):
    """Return the Entry in what PBS writes behind a job's own standard error when it ends it for a limit, or None."""
    found = KILLED.search(text)
    return Entry(f"job killed: {found[1]}{found[2]}", True, LIMITS.get(found[1], "")) if found else None
