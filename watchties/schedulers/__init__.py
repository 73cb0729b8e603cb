"""What every scheduler module has, and how one is found by its name.

Knows: the protocol below, and that a scheduler is a module of this package with the name it has in the configuration.
Must not know: any scheduler, any host, how a command is run.

A scheduler module has, command and parser side by side, all pure, text in and text out:

    submit_command(job, resources, options) -> shell text, run in the job's directory with WT_AGENT, WT_JOB, WT_ATTEMPT,
                                               WT_TOKEN and WT_NAME (the unique name) set
    parse_submit(code, out, err)            -> Submitted, Refused, NotNow or Unknown
    find_command(names)                     -> shell text that looks for unique names; exit code 0 only if it could look
    parse_find(code, out, err)              -> {name: id} of those found; raises QueryFailed
    query_command(ids)                      -> shell text that asks for the states of ids, or "" if there is nothing to ask
    parse_query(code, out, err)             -> {id: state in the scheduler's words}; raises QueryFailed
    cancel_command(id, name)                -> shell text that asks it to end a job, or "" if the agent alone can do it

A query that failed, hung or was partial raises: an empty answer is never taken for "finished" (aiida #4326).
"""

import importlib
import pkgutil
from dataclasses import dataclass

from watchties.errors import Transient, UserError

NAME = "wt."  # + token: the name an attempt has in its scheduler


class QueryFailed(Transient):
    """The scheduler was asked and gave no whole answer: nothing is known, so nothing changes."""


@dataclass(frozen=True)
class Submitted:
    """The scheduler took the job under this id."""

    id: str


@dataclass(frozen=True)
class Refused:
    """The scheduler will never take it as it is; the reason in its own words."""

    reason: str


@dataclass(frozen=True)
class NotNow:
    """The scheduler did not take it, and may later: quota, no process to be had, controller away."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """It cannot be told from the answer whether the job was taken: it has to be asked by name."""

    reason: str


def names():
    """Return the names of the schedulers there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name):
    """Return the scheduler module of that name; raise UserError that names those there are."""
    if name not in names():
        raise UserError(f"{name} is no scheduler; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def unique_name(token):
    """Return the name that an attempt has in its scheduler."""
    return NAME + token
