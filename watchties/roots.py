"""Whether what lies at a mirror's root is the tree that was there before: by a mark in it.

Knows: the mark, a hidden file in the root; what the state directory remembers of it.
Must not know: jobs, records; what is done while a tree is gone.

A mount point without its disk looks like a tree without jobs. Whoever believed that would let each job whose PENDING still stands
on the web host run again, so that nothing is believed or made where the mark is another, or none. A state directory that was
deleted takes over the mark that it finds; a tree without one is given it with its first job, or at once if jobs are in it (an upgrade).
"""

import contextlib
import os
import secrets

from watchties import durable

MARK = ".watchties.tree"
FOLDER = "trees"  # in the state directory: a file for each tree, its mark in the first line, its root in the second


class TreeGone(OSError):
    """The tree is not there, or another one is; the message says what to do."""


def trouble(kept, root):
    """Return why what lies at a root is not the tree that the file `kept` remembers, or ""."""
    mark, where = _remembered(kept)
    try:
        with _opened(root) as here:
            return _judged(mark if where == root else "", _mark_in(here), kept, root)
    except OSError as error:
        return _away(root, error)


class Roots:
    """The mirrors' roots. roots: tree -> its directory. gone: tree -> why it is not there, as last looked at."""

    def __init__(self, state, roots):
        self.folder, self.roots, self.gone = os.path.join(state, FOLDER), roots, {}
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self._marks = dict.fromkeys(roots, "")
        self._marks = {tree: self._expected(tree) for tree in roots}

    def begin(self):
        """Make the directory of each tree that was never there, and look at all."""
        for tree, root in self.roots.items():
            if not self._marks[tree]:
                with contextlib.suppress(OSError):  # look() says so
                    os.makedirs(root, exist_ok=True)
            self.look(tree)

    def look(self, tree):
        """Look whether a tree is there; return whether it is back. One that is gone stays so until then."""
        before, self._marks[tree] = self.gone.pop(tree, ""), self._expected(tree)
        with contextlib.suppress(TreeGone), self.held(tree):
            return bool(before)
        return False

    @contextlib.contextmanager
    def held(self, tree, make=False):
        """Give a path by which the tree's root is reached, whatever is mounted or renamed meanwhile; raise TreeGone. Nobody can unmount
        it within this context, but lazily. make: something is to be made there, so that it must have a mark from now on."""
        root, kept = self.roots[tree], self._kept(tree)
        if tree in self.gone:
            raise TreeGone(self.gone[tree])
        with contextlib.ExitStack() as stack:
            try:
                here = stack.enter_context(_opened(root))
                found = _mark_in(here)
                why = _judged(self._marks[tree], found, kept, root)
            except OSError as error:
                why = _away(root, error)
            if why:
                self.gone[tree] = why
                raise TreeGone(why)
            if not self._marks[tree] or not os.path.exists(kept):
                self._remember(tree, here, found, make)
            yield here

    def has(self, job, path):
        """Return whether a path stands in a job's directory, of a tree that is certainly there; raise TreeGone."""
        with self.held(job.tree) as here:
            return os.path.lexists(os.path.join(here, job.job, path))

    def carry_out(self, plans):
        """Carry out the plans of jobs, JobId -> plan, as durable.carry_out does, where their trees are there, before and after."""
        trees = {job.tree for job in plans}
        with contextlib.ExitStack() as stack:
            held = {}
            for tree in trees:
                with contextlib.suppress(TreeGone):
                    held[tree] = stack.enter_context(self.held(tree, make=True))
            results = durable.carry_out({job: plan for job, plan in plans.items() if job.tree in held})
            lost = [tree for tree in trees if tree not in held or not _same(held[tree], self.roots[tree])]
        for tree in lost:
            self.gone.setdefault(tree, f"the tree {self.roots[tree]} has just gone; its jobs wait")
        return results | {job: TreeGone(self.gone[job.tree]) for job in plans if job.tree in lost}

    def _kept(self, tree):
        return os.path.join(self.folder, tree)

    def _expected(self, tree):
        """Return the mark that a tree must have, "" if any will do: it was never seen, lies elsewhere now, or the administrator has
        removed what was remembered. If the whole state directory was deleted, memory serves."""
        try:
            mark, where = _read(self._kept(tree))
        except OSError as error:
            removed = isinstance(error, FileNotFoundError) and os.path.isdir(self.folder)
            return "" if removed else self._marks[tree]
        return mark if where == self.roots[tree] else ""

    def _remember(self, tree, here, found, make):
        """Remember the mark of a tree; one that has none is given one, if something is or will be in it."""
        if not found and (make or _has_jobs(here)):
            found = secrets.token_hex(8)
            if _put(os.path.join(here, MARK), found) is not None:
                return  # a disk that cannot be written; whoever wants to write there will hear of it
        if found:
            with contextlib.suppress(OSError):
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if _put(self._kept(tree), f"{found}\n{self.roots[tree]}") is None:
                self._marks[tree] = found


def _judged(mark, found, kept, root):
    """Return why a tree in which this mark was found is not the one that is remembered, or ""."""
    if not mark or found == mark:
        return ""
    what = f"another tree lies at {root}" if found else f"what lies at {root} is not the tree that was there"
    return f"{what}: mount its disk, and its jobs go on; if it is the right one (an old backup, say), remove {kept}"


def _away(root, error):
    return f"the tree {root} is not there ({error.strerror}): mount it, or put it back; its jobs wait"


def _same(here, root):
    """Return whether a path still leads to the directory that is held."""
    try:
        return os.path.samestat(os.stat(here), os.stat(root))
    except OSError:
        return False


@contextlib.contextmanager
def _opened(root):
    """Give a path to a directory that stays the same directory, whatever becomes of its name."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _mark_in(here):
    try:
        with open(os.path.join(here, MARK), encoding="utf-8", errors="replace") as file:
            return file.read(100).strip()
    except FileNotFoundError:
        return ""


def _remembered(kept):
    """Return (mark, root) as the state directory has them, ("", "") if it has none."""
    try:
        return _read(kept)
    except OSError:
        return "", ""


def _read(kept):
    with open(kept, encoding="utf-8", errors="surrogateescape") as file:
        mark, root, *_ = [*file.read().split("\n"), "", ""]
    return mark, root


def _has_jobs(here):
    with os.scandir(here) as entries:
        return any(not entry.name.startswith(".") for entry in entries)


def _put(path, text):
    """Write a small file durably; return the OSError that it met, or None."""
    return durable.carry_out({0: durable.replace(path, f"{text}\n".encode("utf-8", "surrogateescape"))})[0]
