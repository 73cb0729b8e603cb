"""Many jobs in as few rsyncs as one bad job allows.

Knows: that exit codes 11, 23 and 24, and a full disk, may be one job's doing; how a batch is halved to find it.
Must not know: rsync's options (transfer.py), why something travels, what becomes of a job.
"""

import os
import re
import shlex
import stat

from watchties import durable, manifest, retry, shell
from watchties.errors import NotNow, Unreachable
from watchties.model import depth
from watchties.rsyncsays import AGAIN, PARTIAL, RESOURCES, RsyncFailed
from watchties.transfer import rsync

VANISHED = 24
# rsync makes a file that it receives with no permission for group and others (its receiver.c, INITACCESSPERMS); ours, of course.
FOR_OTHERS = 0o77
FIND_CUT = (  # GNU's find, stat and busybox's
    "LC_ALL=C find {} -type f -name '.?*.??????' -user \"$(id -u)\" ! -path '*[[:cntrl:]]*' -exec stat -c '%a %s %Y %n' {{}} +"
)
STATUS = re.compile("([0-7]+) ([0-9]+) ([0-9]+) (.+)")
TEMPORARY = re.compile(r"\.(.+)\.[A-Za-z0-9]{6}")  # rsync's name for a file that is being received


def carry(route, names, *, spared=None, cut=(), **how):
    """Carry many jobs in as few rsyncs as one bad job allows; return job -> {path in the job: item}, or the RsyncFailed it met.

    names: job -> paths below the tree's root. spared: job -> paths in the job that are left as they are; such jobs
    travel alone, as rsync tries every pattern on every file. cut: jobs of which an earlier run to the host was cut off.
    how: as for `rsync`.
    """
    spared = {job: paths for job, paths in (spared or {}).items() if paths and job in names}

    def step(jobs):
        excluded = [f"{job.job}/{path}" for job in jobs for path in spared.get(job, ())]
        broken = [job for job in jobs if job in cut]
        try:
            listed = retry.network(_once, route, jobs, [n for job in jobs for n in names[job]], broken, exclude=excluded, **how)
        except RsyncFailed as error:
            if error.no_space:
                error.full = "the mirror" if how["inward"] else f"host {route.name}"
                make_room(route, jobs, how["inward"])
            raise
        if broken:
            make_room(route, jobs, how["inward"])  # what was kept of a file that another leftover has completed
        return _by_job(jobs, listed, depth(route.pattern))

    results = each([job for job in names if job not in spared and names[job]], step)
    for job in spared:
        results |= each([job], step)
    return {job: results.get(job, {}) for job in names}


def _once(route, jobs, names, broken, **how):
    """Run one rsync to or from a host; one that was cut on its way there goes on from what that has left. broken: such jobs."""
    if broken:
        take_up_cut(route, broken)
    try:
        return rsync(route, names, **how)
    except (RsyncFailed, Unreachable) as error:
        broken[:] = jobs if getattr(error, "kind", AGAIN) in (AGAIN, RESOURCES) and not how["inward"] else broken
        raise


def make_room(route, jobs, inward):
    """Remove what rsync has kept of unfinished files: on a full disk it would stop every other job too."""
    root = route.mirror if inward else route.data
    for some in shell.chunks([f"{root}/{job.job}" for job in jobs]):
        text = f"find {shlex.join(some)} -type d -name {manifest.PARTIAL} -prune -exec rm -rf {{}} +"
        if inward:
            shell.run(["sh", "-c", text], timeout=600)
        else:
            shell.far(route.far, text, timeout=600)


def take_up_cut(route, jobs):
    """Have what a host that went down in mid-transfer has left under rsync's temporary names taken for unfinished files.

    Else the next rsync to that host would begin anew, and fetch would bring them home as results. A name counts only if
    the mirror has that file. A path with a line feed in it could name another job's file: left alone.
    """
    here = {f"{route.data}/{job.job}": job.dir for job in jobs}
    for some in shell.chunks(list(here)):
        found = shell.far(route.far, FIND_CUT.format(shlex.join(some)), timeout=600).out.split("\n")
        told = [match.groups() for line in found if (match := STATUS.fullmatch(line))]
        moves = [move for *status, path in told for root in some
                 if path.startswith(root + "/") and (move := _as_partial(root, path, status, here[root]))]  # fmt: skip
        for few in shell.chunks(moves):
            shell.far(route.far, "; ".join(few))


def _as_partial(root, path, status, here):
    """Return shell text that keeps rsync's temporary file `.NAME.XXXXXX` as what it has of NAME, or "" for any other file.

    A name that is no UTF-8 cannot stand in a command (shell.run), nor one that is too long: it is left, and carried anew."""
    folder, name = os.path.split(path.removeprefix(root + "/"))
    match = None if re.search("[\udc80-\udcff]", path) else TEMPORARY.fullmatch(name)
    if not match or os.path.lexists(os.path.join(here, folder, name)) or not _is_of(os.path.join(here, folder, match[1]), *status):
        return ""
    keep = os.path.join(root, folder, manifest.PARTIAL)
    move = f"mkdir -p {shlex.quote(keep)} && mv -f {shlex.quote(path)} {shlex.quote(os.path.join(keep, match[1]))}"
    return move if shell.fits(move) else ""


def _is_of(path, mode, size, mtime):
    """Return whether a temporary file can be one of the file `path`: still nobody else's, or, by its time, about to be renamed (then
    it was whole; a host that lost its power has less of it)."""
    try:
        there = os.lstat(path)
    except OSError:
        return False
    was_whole = int(size) <= there.st_size and int(mtime) == there.st_mtime_ns // 10**9
    return stat.S_ISREG(there.st_mode) and (was_whole or not int(mode, 8) & FOR_OTHERS)


def _by_job(jobs, listed, levels):
    found = {job.job: {} for job in jobs}
    for path, item in listed.items():
        *parts, inside = path.split("/", levels)
        if len(parts) == levels:
            found["/".join(parts)][inside] = item
    return {job: found[job.job] for job in jobs}


def each(jobs, step):
    """Return job -> what step(jobs) says of it; where files are to blame, halve the batch until the jobs are alone.

    What concerns the host as a whole is raised. Vanished files are looked at once more.
    """
    if not jobs:
        return {}
    try:
        return step(jobs)
    except RsyncFailed as error:
        if error.kind != PARTIAL and not error.no_space:
            raise
        print(error)
        if len(jobs) > 1:
            middle = len(jobs) // 2
            return each(jobs[:middle], step) | each(jobs[middle:], step)
        return _once_more(jobs, step) if error.code == VANISHED else {jobs[0]: error}


def _once_more(jobs, step):
    try:
        return step(jobs)
    except RsyncFailed as error:
        return {jobs[0]: error}


def settle_on_disk(route, jobs):
    """Make durable what has come into the mirror for jobs: one syncfs for each disk they lie on, not a sync for each file.

    Raises NotNow where it is not the mirror, or its disk takes nothing."""
    route.refuse_gone()
    try:
        durable.sync_filesystems(route.mirror, [job.dir for job in jobs])
    except OSError as error:
        raise NotNow(f"the mirror's disk ({route.mirror}): {error.strerror}") from None
