"""A batch system in files, for tests: what bsub, bjobs, bhist, bkill, qsub, qstat, qselect and qdel of this directory do.

Knows: the options that watchties uses; the words that the real commands answer with; how to fail when told to.
Must not know: watchties.

FAKE_BATCH names the directory of its state: jobs/ID.json (one a job), log (one line an accepted job), refusals, faults/COMMAND (a line a
call, the first is taken off by each call; COMMAND.rest, if it stands, holds the fault of every call once faults/COMMAND is empty).

Each job is really run, at once, in a session of its own, and its end is written down. Words are the recorded ones (recorded: see
tests/data/lsf) or the manual's, as marked.

    drop     accept the job, then die before the answer        255     fail once with exit code 255 and nothing said
    empty    accept the job, exit code 0, nothing said         banner  a line of the site before the answer
    quota    refuse for now (manual)                           queue   refuse for good: no such queue (LSF recorded, PBS manual)
    hang     say that the daemon does not answer, and wait (LSF recorded)
    partial  leave out every second row                        none    exit code 0 and nothing said, whatever there is
    forget   know the job no longer: it was taken, and is lost
    memory   kill the job once it has begun, and report so (LSF; manual)
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_BATCH"])
SERVER = "fake01"
DOWN = "batch system daemon not responding ... still trying"  # recorded
QUOTA = {"bsub": "User <tester>: Pending job threshold reached. Job not submitted.",
         "qsub": "qsub: would exceed complex's per-user limit"}  # fmt: skip  # both: manual
NO_QUEUE = {"bsub": "nosuch: No such queue. Job not submitted.", "qsub": "qsub: Unknown queue"}  # recorded; manual
REFUSED = {"bsub": 255, "qsub": 170}


class Locked:
    """The state, for one process at a time."""

    def __enter__(self):
        STATE.mkdir(parents=True, exist_ok=True)
        self.file = open(STATE / "lock", "a")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self.file.close()


def fault(command):
    """Return the fault that this call is to have, "" for none."""
    path, rest = STATE / "faults" / command, STATE / "faults" / f"{command}.rest"
    with Locked():
        lines = path.read_text().splitlines() if path.exists() else []
        if lines:
            path.write_text("".join(line + "\n" for line in lines[1:]))
            return lines[0]
        return rest.read_text().strip() if rest.exists() else ""


def jobs():
    """Return all jobs, oldest first."""
    found = [json.loads(path.read_text()) for path in (STATE / "jobs").glob("*.json")]
    return sorted(found, key=lambda job: int(job["id"]))


def write(job):
    path = STATE / "jobs" / f"{job['id']}.json"
    path.with_suffix(".new").write_text(json.dumps(job))
    path.with_suffix(".new").rename(path)


def end(code, out="", err=""):
    sys.stdout.write(out)
    sys.stdout.flush()
    sys.stderr.write(err)
    sys.stderr.flush()
    os._exit(code)


def trouble(command, kind):
    """Fail, if that fault lets nothing happen."""
    if kind == "255":
        end(255)
    if kind == "hang":
        sys.stderr.write(f"{DOWN}\n")
        sys.stderr.flush()
        time.sleep(3600)
    if kind == "banner":
        sys.stdout.write("*** elgato: maintenance on Friday ***\n")
    if kind == "none":
        end(0)
    if kind in ("quota", "queue"):
        with open(STATE / "refusals", "a") as file:
            file.write(kind + "\n")
        end(REFUSED[command], err={"quota": QUOTA, "queue": NO_QUEUE}[kind][command] + "\n")


# ---- submit ----


def submit(command, argv):
    """Take a job, start it, and answer; return only by leaving."""
    kind, script = fault(command), sys.stdin.read()
    trouble(command, kind)
    given = dict(zip(argv, argv[1:]))
    with Locked():
        (STATE / "jobs").mkdir(exist_ok=True)
        number = str(101 + len(list((STATE / "jobs").glob("*.json"))))
        job = {"id": number, "name": given[{"bsub": "-J", "qsub": "-N"}[command]], "argv": argv, "state": "RUN", "code": None, "pid": 0,
               "output": given.get("-o", "/dev/null"), "kind": kind, "lost": kind == "forget"}  # fmt: skip
        with open(STATE / "log", "a") as log:
            log.write(f"{command} {number} {job['name']} {kind}\n")
        write(job)
    if kind != "forget":
        start(command, job, script)
    if kind == "drop":
        os.kill(os.getpid(), signal.SIGKILL)
    answers = {"bsub": f"Job <{number}> is submitted to default queue <normal>.\n", "qsub": f"{number}.{SERVER}\n"}  # recorded; manual
    end(0, "" if kind == "empty" else answers[command])


def start(command, job, script):
    """Run the script in the background and write down how it ended; nothing of ours is held open by it."""
    if os.fork():
        return
    os.setsid()
    os.closerange(3, 256)
    variable = {"bsub": ("LSB_JOBID", job["id"]), "qsub": ("PBS_JOBID", f"{job['id']}.{SERVER}")}[command]
    path = STATE / "jobs" / f"{job['id']}.sh"
    path.write_text(script)
    with open(os.devnull, "rb") as nothing, open(os.devnull, "ab") as out:
        for fd in 0, 1, 2:
            os.dup2((nothing if fd == 0 else out).fileno(), fd)
        child = subprocess.Popen(["sh", path], env=os.environ | dict([variable]), start_new_session=True)
        note(job["id"], pid=child.pid)
        if job["kind"] == "memory":
            over_memory(child, Path(job["output"]))
        code = child.wait()
    note(job["id"], state="DONE" if code == 0 else "EXIT", code=code if code >= 0 else 128 - code)
    os._exit(0)


def over_memory(child, output):
    """Kill a job as soon as it has begun, so that it leaves no word, and write what LSF reports of such a job."""
    while not (output.parent / "begun").exists():
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    with open(output, "a") as report:
        report.write("\nTERM_MEMLIMIT: job killed after reaching LSF memory usage limit.\nExited with exit code 137.\n")


def note(number, **change):
    with Locked():
        write(json.loads((STATE / "jobs" / f"{number}.json").read_text()) | change)


# ---- ask ----


def rows(command):
    """Return the jobs that are told of, and whether some are left out."""
    kind = fault(command)
    trouble(command, kind)
    found = [job for job in jobs() if not job["lost"]]
    return found[::2] if kind == "partial" else found


def bjobs(argv):
    found, ids = rows("bjobs"), [word for word in argv if word.isdigit()]
    known = {job["id"]: job for job in found}
    told = [known[one] for one in ids if one in known] if ids else found
    there = {job[key] for job in jobs() if not job["lost"] for key in ("id", "name")}
    if "-J" in argv:
        ids = [argv[argv.index("-J") + 1]]
        told = [job for job in found if job["name"] == ids[0]]
    missing = [one for one in ids if one not in there]
    out = "".join(f"{job['id']}^{job['state']}^{'' if job['code'] is None else job['code']}^{job['name']}\n" for job in told)  # recorded
    if not ids and not told:
        end(255, err="No job found\n")  # recorded
    end(255 if missing else 0, out, "".join(f"Job <{one}> is not found\n" for one in missing))  # recorded


def bhist(argv):
    trouble("bhist", fault("bhist"))
    ids = [word for word in argv if word.isdigit()]
    end(0, "".join(f"\nJob <{one}>, User <tester>\nExited with exit code 1\n" for one in ids))  # manual


def qselect(argv):
    name = argv[argv.index("-N") + 1]
    found = [job for job in rows("qselect") if job["name"] == name and (job["state"] == "RUN" or "-x" in argv)]
    end(0, "".join(f"{job['id']}.{SERVER}\n" for job in found))  # manual


def qstat(argv):
    known, ids = {job["id"]: job for job in rows("qstat")}, [word for word in argv if word[0].isdigit()]
    there, out, err = {job["id"] for job in jobs() if not job["lost"]}, "", ""
    for one in ids:
        number = one.partition(".")[0]
        if number in known:
            job = known[number]
            state = "R" if job["state"] == "RUN" else "F"
            out += f"Job Id: {number}.{SERVER}\n    Job_Name = {job['name']}\n    job_state = {state}\n"  # manual
            out += f"    Exit_status = {job['code']}\n\n" if job["code"] is not None else "\n"
        elif number not in there:
            err += f"qstat: Unknown Job Id {number}.{SERVER}\n"  # manual
    end(153 if err else 0, out, err)


def kill(command, argv):
    trouble(command, fault(command))
    wanted = argv[argv.index("-J") + 1] if "-J" in argv else ""
    ids = [word.partition(".")[0] for word in argv if word[0].isdigit()]
    found = [job for job in jobs() if (job["name"] == wanted if wanted else job["id"] in ids)]
    for job in found:
        if job["state"] == "RUN" and job["pid"]:
            os.killpg(job["pid"], signal.SIGTERM)
    if not found:
        end(255 if command == "bkill" else 153, err="Job <99999>: No matching job found\n")  # recorded for bkill
    end(0, f"Job <{found[0]['id']}> is being terminated\n" if command == "bkill" else "")  # recorded


def main():
    command, argv = Path(sys.argv[0]).name, sys.argv[1:]
    if command in ("bsub", "qsub"):
        submit(command, argv)
    elif command in ("bkill", "qdel"):
        kill(command, argv)
    else:
        {"bjobs": bjobs, "bhist": bhist, "qselect": qselect, "qstat": qstat}[command](argv)


if __name__ == "__main__":
    main()
