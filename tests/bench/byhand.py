"""The five bare steps between real hosts, as a person does them on v11: `byhand.py CONTROL DATA [JOB]` prints the seconds they took.

Run as webapp on v11. CONTROL: where the shared connections to the hosts are; DATA: the jobs' directory below each login's home;
JOB: one job, USER/EXP; without it all there are in DATA, with one command a step. `byhand.py CONTROL --master HOST` holds such a
connection.

It is what a job through watchties is measured against: the same logins, the same ssh options, the same files.
"""

import os
import shlex
import subprocess
import sys
import time

from watchties import ssh

LOGINS = {"vision": "www-data@vision", "b01": "runcompties@b01"}
RUN = "sh ./command >remote_ties_run.res 2>remote_ties_run.err && echo state=DONE >DONE"
ONE = """set -e
rsync -aR {web}:{data}/./{job}/ {data}/
rsync -aR {data}/./{job}/ {compute}:{data}/
{at_compute} 'cd {data}/{job} && {run}'
rsync -aR {compute}:{data}/./{job}/ {data}/
rsync -aR {data}/./{job}/ {web}:{data}/
"""
ALL = """set -e
rsync -a {web}:{data}/ {data}/
rsync -a {data}/ {compute}:{data}/
{at_compute} 'cd {data} && for job in */*/; do (cd "$job" && {run}) || exit 1; done'
rsync -a {compute}:{data}/ {data}/
rsync -a {data}/ {web}:{data}/
"""


def far(control, host):
    """Return how a host is reached, over the shared connection of ours to it."""
    return ssh.Far(host, LOGINS.get(host, host), control=os.path.join(control, host))


def main(control, data, job=""):
    """Do the five steps and print how long they took."""
    words = {host: ssh.login(far(control, host), "bulk") for host in LOGINS}
    names = {"data": data, "job": job, "web": LOGINS["vision"], "compute": LOGINS["b01"]}
    names |= {"at_compute": shlex.join(words["b01"]), "run": RUN}
    script = (ONE if job else ALL).format(**names)
    shell = " ".join(ssh.login(far(control, "HOST"), "bulk")[:-2]).replace("HOST", "%n")  # rsync adds the login; %n is its host
    env = os.environ | {"RSYNC_RSH": shell}
    os.makedirs(data, exist_ok=True)
    for host in LOGINS:  # ssh would quietly do without it, and take longer
        subprocess.run(["ssh", "-O", "check", "-o", f"ControlPath={ssh.control_path(far(control, host), 'bulk')}", host], check=True,
                       capture_output=True)  # fmt: skip
    began = time.perf_counter()
    subprocess.run(["sh", "-c", script], check=True, env=env)
    print(time.perf_counter() - began)


def hold(control, host):
    """Become the shared connection to a host."""
    os.makedirs(control, mode=0o700, exist_ok=True)
    argv = ssh.master(far(control, host), "bulk")
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    hold(sys.argv[1], sys.argv[3]) if sys.argv[2] == "--master" else main(*sys.argv[1:])
