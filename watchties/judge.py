"""What a job must be to be carried, and what counts as success of one that has ended.

Knows: the files `command` and `CPU_SERVER`, a tree's `limits` and `success`, what the agent's exit file says.
Must not know: how anything travels, or what the daemon does with the verdict.

Verdicts are fields of an outcome; every reason is one line for the user.
"""

import fnmatch
import os

from watchties.manifest import LINK, totals
from watchties.model import DONE, FAILED, number, printable

COMMAND, CPU_SERVER = "command", "CPU_SERVER"
OUTPUT, ERRORS = "remote_ties_run.res", "remote_ties_run.err"
HEAD = 4096  # bytes that are read of a file for one word or line
HARMLESS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # nothing is followed, no pipe waited for


def inputs(job_dir, entries, tree):
    """Return the fields of a pulled job: bytes, files, cpu_server if it names one; cause and reason if it is rejected."""
    files, size = totals(entries)
    fields = {"bytes": size, "files": files}
    named = first_word(job_dir, entries)
    if named:
        fields["cpu_server"] = named
    reasons = [*over_limits(files, size, tree.get("limits") or {}), *no_command(entries), *unknown_host(named, tree["compute"])]
    return fields | ({"cause": "rejected", "reason": "; ".join(reasons)} if reasons else {})


def over_limits(files, size, limits):
    """Yield each limit that a job is over, and by how much."""
    if limits.get("size") is not None and size > limits["size"]:
        yield f"{size} bytes are {size - limits['size']} more than the limit of {limits['size']}"
    if limits.get("files") is not None and files > limits["files"]:
        yield f"{files} files are {files - limits['files']} more than the limit of {limits['files']}"


def no_command(entries):
    """Yield why a job cannot be run, if it cannot."""
    entry = entries.get(COMMAND)
    if entry is None:
        yield f"there is no file {COMMAND} in it: put there what is to be run"
    elif entry.s < 0 and entry.s != LINK:
        yield f"{COMMAND} is not a file"


def unknown_host(named, known):
    """Yield why a job cannot run where it wants to, if it cannot."""
    if named and named not in known:
        yield f"{CPU_SERVER} names {printable(named)}, which is no compute host of this tree: there are {', '.join(known)}"


def first_word(job_dir, entries):
    """Return the host that CPU_SERVER names, or ""."""
    entry = entries.get(CPU_SERVER)
    words = head(os.path.join(job_dir, CPU_SERVER)).split() if entry and entry.s > 0 else []
    return printable(words[0]) if words else ""


def head(path):
    """Return the beginning of a file as text; a link is not followed."""
    try:
        with os.fdopen(os.open(path, HARMLESS), "rb") as file:
            return file.read(HEAD).decode("utf-8", "replace")
    except OSError:
        return ""


# ---- results ----


def results(job_dir, made, left, success, why=None):
    """Return state, exit, cause, reason and times of an attempt that has ended.

    made: what it made, path -> Entry; only that is evidence, for an earlier attempt's files may still lie about.
    left: the fields of the agent's exit file, {} if the attempt was lost. success: the tree's table. why: the Entry in
    which the scheduler tells that it has ended the job, and why: then not the job's own exit code is the cause.
    """
    times = {key: left[key] for key in ("began", "ended", "seconds") if left.get(key)}
    code = left.get("code", "")
    if left.get("killed"):
        return {"state": FAILED, "exit": code, "cause": "cancelled", "reason": "it was stopped"} | times
    if code != "0" and why and why.cause:
        return {"state": FAILED, "exit": code, "cause": why.cause, "reason": f"the scheduler says {why.words}"} | times
    if code != "0":
        return {"state": FAILED, "exit": code, "cause": "exit", "reason": how_it_ended(job_dir, made, left)} | times
    reason = next(not_met(made, success), "")
    if reason:
        return {"state": FAILED, "exit": code, "cause": "success", "reason": reason} | times
    return {"state": DONE, "exit": code} | times


def how_it_ended(job_dir, made, left):
    """Return the reason for an exit code that is not 0, with the last line the job wrote to its standard error."""
    signal = left.get("signal")
    text = f"signal {signal}" if signal not in (None, "", "0") else f"exit code {left.get('code') or 'unknown'}"
    said = tail(os.path.join(job_dir, ERRORS)).strip().splitlines() if ERRORS in made else []
    return text + (f": {said[-1].strip()}" if said else "")


def not_met(made, success):
    """Yield what a job that exited with 0 lacks of the tree's `success`, each naming the file."""
    if success.get("stderr_empty") and made.get(ERRORS) and made[ERRORS].s > 0:
        yield f"{ERRORS} is not empty ({made[ERRORS].s} bytes)"
    for pattern in success.get("require") or ():
        if not matching(made, pattern):
            yield f"it made no {pattern}, which this tree requires"
    for pattern in success.get("forbid") or ():
        if found := matching(made, pattern):
            yield f"it made {printable(found[0])}, which means failure in this tree"


def matching(made, pattern):
    """Return the made paths that a pattern matches part by part, so that * stays within one directory."""
    parts = pattern.split("/")
    split = [(path, path.split("/")) for path in made]
    return [path for path, words in split if len(words) == len(parts) and all(map(fnmatch.fnmatchcase, words, parts))]


def tail(path):
    """Return the end of a file as text; a link is not followed."""
    try:
        with os.fdopen(os.open(path, HARMLESS), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - HEAD))
            return file.read(HEAD).decode("utf-8", "replace")
    except OSError:
        return ""


def arrived(entries, listed, left):
    """Return what is missing of the results that the wrapper counted, or "" (a network file system shows them late)."""
    files, size = totals({path: entries[path] for path in listed if path in entries})
    wanted = [number(left.get(key)) for key in ("files", "bytes")]  # the job itself may have written there
    if files >= wanted[0] and size >= wanted[1]:
        return ""
    return f"{files} files, {size} bytes of {wanted[0]} files, {wanted[1]} bytes are there"
