"""IBM Spectrum LSF, and what speaks its language (OpenLava).

Knows: bsub(1), bjobs(1), bhist(1), bkill(1) of LSF 10.1, and what they say.
Must not know: how a command reaches the host, or what becomes of a job.

| step | command | answer |
|---|---|---|
| submit | bsub -J NAME ... < script | Job <203> is submitted to queue <normal>. |
| find | bjobs -a -J NAME, a call for each name | ID^STATE^EXIT CODE^NAME; Job <NAME> is not found |
| query | bjobs -a ID..., then bhist -l for those that are EXIT | the same; TERM_...: why LSF ended it |
| cancel | bjobs -a -J NAME, then bkill ID... | Job <203> is being terminated |

Rests on recordings (tests/data/lsf: OpenLava 4.0): both forms of bsub's answer, also from a script on standard input; every
refusal is exit code 255, nothing on standard output and "Job not submitted." on standard error; bjobs -o with a delimiter and
-noheader; the states; exit code 255 with "Job <ID> is not found" for each id that is unknown or purged, with the other rows
on standard output; "No job found"; bkill's answers; that all of them hang while mbatchd is down.
Rests on the manual only (LSF 10.1 command reference): -M with a unit, -R span, -P, the words of a full queue (BUSY), the
TERM_ reasons ("Job termination reasons" in Administering LSF) in bhist -l and in the report that -o leaves.

LSF's own requeue and rerun need no option here: a wrapper that begins twice ends at once.
Without -o LSF mails the report. Output goes there no longer once the wrapper runs: it redirects by itself.
Exit code 255 is also ssh's: here it has come through the agent, so that it is LSF's.
"""

import re
import shlex

from watchties.schedulers import ASK, TELL, Entry, NotNow, QueryFailed, Refused, Submitted, Unknown
from watchties.schedulers import failure_text, options_text, parse_parts, parts

TAKEN = re.compile(r"^Job <([0-9]+)> is submitted to (?:default )?queue <[^<>\n]*>\.\s*$", re.MULTILINE)
NOT_TAKEN = "Job not submitted"
BUSY = re.compile(r"threshold|limit (?:has been )?reached|too many (?:pending )?jobs|queue (?:has been )?closed|try again later"
                  r"|temporarily|not responding|communication|timed? ?out|internal error", re.IGNORECASE)  # fmt: skip
NO_BSUB = re.compile(r"\bbsub\S?: (?:command )?not found|failed to run command .bsub.: No such file")
FIELDS = "jobid stat exit_code job_name delimiter='^'"
ROW = re.compile(r"([0-9]+)\^([A-Z_]+)\^([^^]*)\^(.*)")
UNKNOWN = re.compile(r"Job <([^<>]+)> is not found")
NOTHING = ("No job found", "No unfinished job found")
RUNNING = {  # bjobs(1): states in which a job is there, and may run yet
    "PEND": "waits", "PROV": "its host is being prepared", "PSUSP": "held while it waited", "RUN": "runs", "USUSP": "suspended by a user",
    "SSUSP": "suspended by LSF", "UNKWN": "LSF has lost contact with its host", "WAIT": "waits for members of its chunk",
    "ZOMBI": "killed, but its host does not answer",
}  # fmt: skip
ENDED = ("DONE", "EXIT")
TERM = re.compile(r"\b(TERM_[A-Z_]+): ([^.;\n]*)")
CAUSES = {  # Administering LSF: job termination reasons
    "TERM_REMOVE_HUNG_JOB": "node",  # its host is not heard any more (lsb.params: REMOVE_HUNG_JOBS_FOR)
    "TERM_MEMLIMIT": "memory", "TERM_SWAP": "memory",
    "TERM_RUNLIMIT": "time", "TERM_CPULIMIT": "time", "TERM_DEADLINE": "time", "TERM_WINDOW": "time",
    "TERM_OWNER": "cancelled", "TERM_FORCE_OWNER": "cancelled", "TERM_ADMIN": "cancelled", "TERM_FORCE_ADMIN": "cancelled",
}  # fmt: skip
COMMANDS = ("bsub", "bjobs", "bhist", "bkill")
LATE = 0  # bjobs -a tells of a job until CLEAN_PERIOD has passed (lsb.params: an hour)


def submit_command(job, resources, options):
    """Return the text that hands the wrapper to bsub as a script; a site's own options come after ours, so that they count."""
    words = [word for key, words in _asked(resources).items() if resources.get(key) is not None for word in words]
    ours = " ".join(map(shlex.quote, words))
    bsub = f'capped {TELL} bsub {ours} {options_text(options)} -J "$WT_NAME" -o "$WT_SAID"'
    return f"printf '%s\\n' '#!/bin/sh' \"$WT_WRAPPER\" | {bsub}"


def _asked(resources):
    """Return key -> words. Memory has its unit with it: the unit of a bare number is the site's own (LSF_UNIT_FOR_LIMITS)."""
    return {
        "cores": ["-n", f"{resources.get('cores')}", "-R", "span[hosts=1]"],
        "memory": ["-M", f"{-(-int(resources.get('memory') or 0) // 1024)}KB"],
        "walltime": ["-W", f"{-(-int(resources.get('walltime') or 0) // 60)}"],  # minutes
        "queue": ["-q", f"{resources.get('queue')}"],
        "account": ["-P", f"{resources.get('account')}"],
    }


def parse_submit(code, out, err):
    """Return Submitted for the one id that a whole sentence names, wherever it stands: site wrappers print before and after.

    Not taken for certain only if bsub says so itself. A lone number is what was found by name (agent adopt).
    """
    ids = set(TAKEN.findall(out))
    if code == 0 and re.fullmatch(r"[0-9]+", out.strip()) and not err.strip():
        ids = {out.strip()}
    said = failure_text(out, err)
    if len(ids) == 1:
        return Submitted(ids.pop())
    if code == 127 and NO_BSUB.search(err):
        return NotNow(f"{said}: has the host's `setup` to be told where it is?")
    if ids or code == 0 or NOT_TAKEN not in err:
        return Unknown(f"bsub ended with {code}: {said}")
    return NotNow(said) if BUSY.search(err) else Refused(said)


def find_command(names):
    """Return the text that looks for each name, also among ended jobs; it stops at the first call that hangs.

    One list of all jobs would be quicker, and say nothing of what a partial list leaves out: a name has to be denied.
    """
    asks = {f"n{i}": f"capped {ASK} bjobs -a -noheader -o {shlex.quote(FIELDS)} -J {shlex.quote(name)}" for i, name in enumerate(names)}
    return ' && [ "$wt_code" -ne 137 ] && '.join(f"{{ {parts({label: ask})}; }}" for label, ask in asks.items())


def parse_find(code, out, err, names):
    """Return {name: id} of those there are; raise QueryFailed unless each is there or said not to be."""
    found = {}
    for label, answer in parse_parts(out, err, [f"n{i}" for i in range(len(names))]).items():
        name = names[int(label[1:])]
        none, rows, missing = _rows(*answer)
        ids = [number for number, _, _, its in rows if its == name]
        if ids:
            found[name] = ids[0]
        elif rows or not (none or name in missing):
            raise QueryFailed(f"bjobs said nothing of {name}: {failure_text(*answer[1:])}")
    return found


def query_command(ids):
    """Return the text that asks for these ids, and for the history of those that LSF has seen fail."""
    ids = [word for word in ids if word.isdigit()]
    if not ids:
        return ""
    jobs = f"wt_rows=$(capped {ASK} bjobs -a -noheader -o {shlex.quote(FIELDS)} {' '.join(ids)}); wt_code=$?"
    failed = "wt_ids=$(printf '%s\\n' \"$wt_rows\" | sed -n 's/^\\([0-9][0-9]*\\)^EXIT^.*/\\1/p')"
    history = f"{failed}; [ -z \"$wt_ids\" ] || capped {ASK} bhist -l $wt_ids"
    return parts({"jobs": f"{jobs}; printf '%s\\n' \"$wt_rows\"; (exit \"$wt_code\")", "history": history})


def parse_query(code, out, err, ids):
    """Return {id: Entry}; raise QueryFailed unless each id has a row or is said to be unknown. Without bhist no cause is known."""
    heard = parse_parts(out, err, ["jobs", "history"])
    _, rows, missing = _rows(*heard["jobs"])
    why = _reasons(heard["history"][1])
    found = {number: _entry(state, exit_code, name, why.get(number)) for number, state, exit_code, name in rows}
    if left := [number for number in ids if number not in found and number not in missing]:
        raise QueryFailed(f"bjobs said nothing of {left[0]} ({len(left)} of {len(ids)} jobs): {failure_text(out, err)}")
    return {number: entry for number, entry in found.items() if number in ids}


def _rows(code, out, err):
    """Return (whether it said that there is no job at all, rows, ids said to be unknown) of one bjobs; raise QueryFailed.

    Lines before the first row may be a site's own. What is neither in a row nor said not to be there is not known: bjobs has a
    sentence for "none", and says it with exit code 255.
    """
    rows, said = [], [line.strip() for line in err.splitlines() if line.strip()]
    for line in out.splitlines():
        if match := ROW.fullmatch(line):
            rows.append(match.groups())
        elif rows and line.strip() or "^" in line:
            raise QueryFailed(f"bjobs gave a row that is none: {line.strip()}")
    none, unknown = any(line in NOTHING for line in said), [match[1] for line in said if (match := UNKNOWN.fullmatch(line))]
    whole = code == 0 or code == 255 and said and all(line in NOTHING or UNKNOWN.fullmatch(line) for line in said)
    if not whole:
        raise QueryFailed(f"bjobs ended with {code}: {failure_text(out, err)}")
    return none, rows, unknown


def _entry(state, exit_code, name, why):
    words = f"{state} ({RUNNING[state]})" if state in RUNNING else state
    if state == "EXIT":
        words += (f", exit code {exit_code}" if exit_code.strip(" -") else "") + (f"; {why[0]}: {why[1]}" if why else "")
    return Entry(words, state in ENDED, CAUSES.get(why[0], "") if why and state == "EXIT" else "", name)


def _reasons(text):
    """Return id -> (TERM_..., words) of what bhist -l has printed: lines are folded at column 80, in the middle of words."""
    flat = re.sub(r"\n {21}", "", text)
    blocks = re.split(r"^Job (?:Id )?<([0-9]+)>", flat, flags=re.MULTILINE)
    found = {number: TERM.findall(block) for number, block in zip(blocks[1::2], blocks[2::2])}
    return {number: reasons[-1] for number, reasons in found.items() if reasons}


def cancel_command(id, name):
    """Return the text that kills what is there under the name, if anything is: an id may be another job's by now."""
    look = f"wt_rows=$(capped {ASK} bjobs -a -noheader -o {shlex.quote(FIELDS)} -J {shlex.quote(name)}); wt_code=$?"
    ids = "wt_ids=$(printf '%s\\n' \"$wt_rows\" | sed -n 's/^\\([0-9][0-9]*\\)^.*/\\1/p')"
    return f'{look}; {ids}; if [ -n "$wt_ids" ]; then capped {TELL} bkill $wt_ids; else (exit "$wt_code"); fi'


def parse_said(text):
    """Return the Entry in the report that LSF appends to -o when a job has ended, or None: its reason, if LSF had one."""
    reason = TERM.search(text)
    return Entry(f"{reason[1]}: {reason[2].strip()}", True, CAUSES.get(reason[1], "")) if reason else None
