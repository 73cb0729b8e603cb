"""One rsync between the mirror and a host: what is passed to it.

Knows: the options of rsync(1) 3.1.3 and newer, and where a tree lies on a host.
Must not know: what rsync says (rsyncsays.py), jobs and batches of them (batches.py), why something travels, what the agent says.

Every option stands here once, with its reason. Nothing is ever deleted by a transfer.
"""

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass

from watchties import manifest, meter, roots, rsyncsays, shell, ssh
from watchties.errors import NotNow, Unreachable
from watchties.model import MARKERS, RECORD_DIR, depth
from watchties.rsyncsays import RsyncFailed

STALLED = 180  # seconds without a byte before rsync gives up (its --timeout)
OPTIONS = (
    "-lt",  # no -D: devices and sockets stay; no -o -g: files belong to whom the login is
    "-s",  # names never meet a shell on the far side
    "-O",  # directories' times mean nothing here
    "-S",  # a sparse file stays sparse: 5 GB of nothing would fill every disk on the way
    "--modify-window=-1",  # else a change within the same second, of the same size, is missed
    "--no-implied-dirs",  # else a USER directory there gets our mode, or is replaced if it is a link
    "--from0", "--files-from=-",  # any name; and each with ./ in front: a local rsync takes #x and ;x for comments even so
    "--partial-dir=" + manifest.PARTIAL,
    f"--timeout={STALLED}",
)  # fmt: skip
PROBE = 60  # seconds for a host to show that it is there
WORKROOM = RECORD_DIR + ".coming"  # below the mirror's root; hidden, so no user's
BY_HAND = "pid-"  # + pid: the room of a run by hand, of which there may be several at once
NO_SETUID = "Fug-s"
INTO_MIRROR = "Du+rwx,Fu+rw"  # what a user made read-only must not stop the next transfer


@dataclass(frozen=True)
class Route:
    """One tree between the mirror and a host. data: its directory below the host's root; pattern: of its jobs."""

    far: ssh.Far
    data: str
    mirror: str
    pattern: str = "*/*"
    chmod: str = ""
    bwlimit: str = ""
    kept: str = ""  # the file that remembers which tree the mirror is

    @property
    def name(self):
        return self.far.name

    @property
    def far_root(self):
        return f"{self.far.root}/{self.data}"

    @classmethod
    def of(cls, config, tree, host):
        """Return the route of a tree's name and a host's name in a plain configuration."""
        far, table, there = ssh.from_config(config, host), config["tree"][tree], config["host"][host]
        mirror = os.path.join(config["home"], table["root"])
        return cls(far, data_of(config, tree, host), mirror, table.get("jobs") or "*/*",
                   there.get("chmod") or "", there.get("bwlimit") or "", os.path.join(config.get("trees") or "", tree))  # fmt: skip

    def refuse_gone(self):
        """Raise NotNow if what lies at the mirror's root is not the tree that was there."""
        if why := roots.trouble(self.kept, self.mirror):
            raise NotNow(why)


def data_of(config, tree, host):
    """Return a tree's directory on a host, relative to the host's root."""
    return (config["tree"][tree].get("path") or {}).get(host) or "user_data"


# ---- one rsync ----


def rsync(route, names, *, inward, recursive=True, exclude=(), listing=False, dry=False, missing_ok=False, timeout=86400):
    """Run one rsync between the two tree roots; if `listing`, return {path: item} of all there is, changed or not, else {}.

    names: paths below the root. inward: from the host into the mirror. exclude: paths below the root that stay as
    they are. An item is rsync's (rsync(1), --itemize-changes): it begins with a dot if no content had to travel.
    Raises RsyncFailed, or Unreachable where ssh itself failed.
    """
    route.refuse_gone()
    there, here = endpoint(route) + "/.", route.mirror + "/."  # with the dot, a root that is not there is not made
    argv = ["rsync", *OPTIONS, "-r" if recursive else "-d", *modes(route, inward), *remote_shell(route.far)]
    argv += [f"--exclude={pattern}" for pattern in never_travel(route.pattern)]
    argv += [f"--bwlimit={route.bwlimit}"] if route.bwlimit else []
    argv += ["-8", "-ii", "--out-format=%i %n"] if listing else []
    argv += ["--dry-run"] if dry else []
    argv += ["--ignore-missing-args"] if missing_ok else []
    with _exclude_file(exclude) as excluded, _workroom(route, inward and not dry) as room, _watched(dry) as (told, look):
        argv += told + excluded + room + ["--", *((there, here) if inward else (here, there))]
        given = "\0".join(f"./{name}" for name in names)
        result = shell.run(argv, stdin=given, timeout=timeout, env=shell.outside_environment(LC_ALL="C"), look=look)
    result = result._replace(out=meter.without_progress(result.out))
    if result.code:
        raise failure(route, argv, result)
    return dict(rsyncsays.itemised(result.out))


@contextlib.contextmanager
def _watched(dry):
    """Give the options by which rsync says how far it is, and the function that takes it in; nothing where nobody would read it."""
    watching = None if dry else meter.Meter.of_this_run()
    if not watching:
        yield [], None
        return
    try:
        yield [meter.OPTION], watching.look
    finally:
        watching.close()


def failure(route, argv, result):
    """Return the error for an rsync that ended badly. A host, or a tree's root, that is not there is no job's fault.

    Where ssh cannot connect rsync ends with 255, 12 or 10, as it happens to notice: so the host is asked.
    """
    if route.far.ssh and rsyncsays.kind_of(result.code) == rsyncsays.AGAIN:
        shell.far(route.far, "true", timeout=PROBE)  # raises Unreachable
    missing = rsyncsays.NO_ROOT.findall(result.err)
    if any(path.endswith(route.far_root.rstrip("/")) for path in missing):
        return Unreachable(f"host {route.name}: its directory {route.far_root} cannot be entered; is its disk mounted?")
    if any(path.endswith(route.mirror.rstrip("/")) for path in missing):
        return NotNow(f"the mirror {route.mirror} cannot be entered; is its disk mounted?")
    return RsyncFailed(argv, result, route)


def endpoint(route):
    """Return a tree's root on the host as rsync wants it: a plain path where nothing has to be reached."""
    return f"{route.name}:{route.far_root}" if route.far.ssh or route.far.become else route.far_root


def remote_shell(far):
    """Return the options by which rsync starts its other half.

    The host's name in the endpoint is for messages only: what reaches it stands in -e, so that anything ssh takes
    will do, and `become` works without ssh too. The other half starts in the home of the user it works as.
    """
    if not far.ssh and not far.become:
        return []
    reach = f'shift; exec {shlex.join(ssh.login(far, connection()))} "$@"' if far.ssh else 'shift; eval "$*"'
    there = shlex.join([*ssh.become(far), "sh", "-c", 'cd 2>/dev/null; exec rsync "$@"', "rsync"])
    return ["-e", f"sh -c {_quoted(reach)} rsh", f"--rsync-path={there}"]


def connection():
    """Return which connection a transfer takes: a job that travels alone has one of its own, so that it is alone there too."""
    return ssh.OWN if slot().endswith(".alone") else "bulk"


def slot():
    """Return the name of the slot that this run has, which no other run has meanwhile; "" where a hook is run by hand."""
    lock = os.environ.get("WATCHTIES_LOCK_FD", "")
    name = os.path.basename(os.readlink(f"/proc/self/fd/{lock}")) if lock.isdigit() else ""
    return "" if name.endswith(".by-hand") else name


def _quoted(word):
    """Return a word as rsync's own parser of -e wants it: a quote inside quotes is doubled (rsync(1), --rsh)."""
    return "'" + word.replace("'", "''") + "'"


def modes(route, inward):
    """Return the options for permissions: set-uid is never carried; only a host's `chmod` decides for existing files."""
    if inward:
        return ["-E", f"--chmod={INTO_MIRROR},{NO_SETUID}"]
    return ["-p", f"--chmod={route.chmod},{NO_SETUID}"] if route.chmod else ["-E", f"--chmod={NO_SETUID}"]


def never_travel(pattern):
    """Return the exclude patterns for markers and hidden names of ours, only directly in a job's directory; and, at any depth, for
    rsync's own directory of unfinished files: by itself it excludes only directories of that name, and through a link of that name,
    made by a job, it would read and remove files of the next place outside the tree.

    A bare DONE would drop the result plots/DONE too; `/DONE` would match nothing in a batch.
    """
    jobs = "/*" * depth(pattern)
    return [manifest.PARTIAL, *(f"{jobs}/{name}" for name in (RECORD_DIR + "*", *MARKERS))]


@contextlib.contextmanager
def _exclude_file(paths):
    """Give the options that exclude just these paths, whatever characters they have."""
    if not paths:
        yield []
        return
    with tempfile.NamedTemporaryFile(prefix="watchties-") as file:
        file.write("\0".join("/" + exactly(path) for path in paths).encode("utf-8", "surrogateescape"))
        file.flush()
        yield [f"--exclude-from={file.name}"]


@contextlib.contextmanager
def _workroom(route, wanted):
    """Give the options that have files received in a directory of this slot's, not among the job's: there, what a reboot in
    mid-transfer leaves would be taken for an input. No other run is in this slot, so all that lies there is cut off."""
    if not wanted or not os.path.isdir(route.mirror):
        yield []
        return
    rooms = os.path.join(route.mirror, WORKROOM)
    room = os.path.join(rooms, slot() or f"{BY_HAND}{os.getpid()}")
    if os.path.islink(rooms):
        raise NotNow(f"the mirror {route.mirror}: {rooms} is a symbolic link: remove it")
    _sweep(rooms)
    shutil.rmtree(room, ignore_errors=True)
    try:
        os.makedirs(room, mode=0o700)
    except OSError as error:  # no job's fault
        raise NotNow(f"the mirror {route.mirror}: {room} cannot be made: {error.strerror}") from None
    try:
        yield [f"--temp-dir={room}"]
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _sweep(rooms):
    """Remove what runs by hand that were killed have left: nobody else will be in their room."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(rooms):
            pid = name.removeprefix(BY_HAND)
            if pid != name and not os.path.exists(f"/proc/{pid}"):
                shutil.rmtree(os.path.join(rooms, name), ignore_errors=True)


def exactly(path):
    """Return the rsync pattern that matches one path only: a backslash escapes, but only where there is a wildcard."""
    return re.sub(r"([][*?\\])", r"\\\1", path) if re.search(r"[*?[]", path) else path
