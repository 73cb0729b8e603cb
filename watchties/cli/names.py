"""Which job is meant: from USER/EXP, TREE:USER/EXP, EXP alone or a path to (tree, job); and words for the shell to complete.

Knows: mirrors as directories, the journal's names.
Must not know: what is to be done with a job.
"""

import os
from dataclasses import dataclass

import click

from watchties.cli.common import places_of
from watchties.errors import BadJobName, UserError, WatchtiesError
from watchties.model import JobId, check_job_name, depth, printable

FEW = 5  # names that an error tells
COMPLETED = 200  # names that a shell is offered


@dataclass
class Names:
    """Finds jobs. trees: tree -> (root, pattern); reader: the journal, or None."""

    trees: dict
    reader: object = None

    @classmethod
    def at(cls, places):
        """Return Names for these places; a journal that is not there only means fewer names to suggest."""
        try:
            reader = places.reader()
        except UserError:
            reader = None
        return cls(places.trees(), reader)

    def find(self, text):
        """Return the JobId that is meant; raise UserError with the candidates, or with the nearest names."""
        found = self._by_name(text) or self._by_path(text) or self._by_ending(text)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(map(str, found[:FEW])) + (f" and {len(found) - FEW} more" if len(found) > FEW else "")
            raise UserError(f"{printable(text)} may be any of these, say which: {names}")
        near = self._nearest(text)
        hint = f"did you mean {' or '.join(near)}?" if near else "JOB is USER/EXPERIMENT, TREE:USER/EXPERIMENT, or a path in a mirror"
        raise UserError(f"no job is called {printable(text)}; {hint}")

    def find_on_disk(self, text):
        """Return (JobId, its directory); raise UserError if the mirror does not hold it, Unsafe for a link."""
        from watchties.jobs import refuse_links

        job = self.find(text)
        root = self.trees[job.tree][0] if job.tree in self.trees else ""
        where = os.path.join(root, job.job)
        if not root or not os.path.isdir(where):
            raise UserError(f"{job} is not in the mirror ({where if root else 'the tree is not in the configuration'})")
        refuse_links(root, job.job)
        return job, where

    def _by_name(self, text):
        """Return the jobs of this very name, on disk or in the journal."""
        head, colon, rest = text.partition(":")
        wanted = [(tree, text) for tree in self.trees] + ([(head, rest)] if colon and head in self.trees else [])
        on_disk = [JobId(tree, job) for tree, job in wanted if self._is_job(tree, job)]
        known = [JobId(*row) for row in self.reader.find(text)] if self.reader and "/" in text else []
        exact = [job for job in known if text in (job.job, str(job))]
        return list(dict.fromkeys(on_disk + exact))

    def _is_job(self, tree, job):
        root, pattern = self.trees[tree]
        try:
            return os.path.isdir(os.path.join(root, check_job_name(job, pattern)))
        except BadJobName:
            return False

    def _by_path(self, text):
        """Return the job whose directory a path is, or lies in."""
        path = os.path.abspath(os.path.expanduser(text))
        if not os.path.lexists(path):
            return []
        for here in dict.fromkeys((path, os.path.realpath(path))):
            for tree, (root, pattern) in self.trees.items():
                job = "/".join(_below(here, root)[: depth(pattern)])
                if self._is_job(tree, job):
                    return [JobId(tree, job)]
        return []

    def _by_ending(self, text):
        return [JobId(*row) for row in self.reader.find(text)] if self.reader else []

    def _nearest(self, text):
        import difflib

        names = {}
        for job in self.known():
            names |= {str(job): str(job), job.job: str(job), job.job.rpartition("/")[2]: str(job)}
        return list(dict.fromkeys(names[near] for near in difflib.get_close_matches(text, names, FEW, 0.5)))

    def known(self, limit=10_000):
        """Return the JobIds of the journal, and of the disk where there is no journal."""
        if self.reader:
            return [JobId(row.tree, row.job) for row in self.reader.jobs(limit=limit)]
        from watchties.jobdirs import JobDirs

        found = []
        for tree, (root, pattern) in self.trees.items():
            level, dirs = [""], JobDirs(root, pattern)
            for down in range(dirs.depth):
                level = [child for path in level[:limit] for child in _children(dirs, path, down)]
            found += [JobId(tree, job) for job in level]
        return found[:limit]


def _below(path, root):
    """Return the parts of a path below a mirror's root, as that is written or with its links followed; [] if it lies elsewhere."""
    return next((path[len(r) + 1 :].split("/") for r in (root, os.path.realpath(root)) if path.startswith(r + "/")), [])


def _children(dirs, path, down):
    try:
        return dirs.children(path, down)
    except OSError:
        return []


class JobType(click.ParamType):
    """A JOB argument: kept as text, completed from the journal."""

    name = "job"

    def shell_complete(self, ctx, param, incomplete):
        from click.shell_completion import CompletionItem

        try:
            places = places_of(ctx, ctx.params.get("config_dir"), ctx.params.get("state_dir"))
            rows = places.reader().jobs(limit=10_000)
        except (WatchtiesError, OSError):
            return []
        names = [name for row in rows for name in (row.job, f"{row.tree}:{row.job}") if name.startswith(incomplete)]
        plain = [name for name in names if ":" not in name] or names
        return [CompletionItem(name) for name in sorted(set(plain))[:COMPLETED]]


JOB = JobType()
