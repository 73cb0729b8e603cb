"""What every scheduler module has, and how one is found by its name.

Knows: the protocol below, and that a scheduler is a module of this package with the name it has in the configuration.
Must not know: any scheduler, any host, how a command is run.

A scheduler module has, command and parser side by side, all pure, text in and text out:

    submit_command(job, resources, options)  -> shell text, run in the job's directory
    parse_submit(code, out, err)             -> Submitted, Refused, NotNow or Unknown
    find_command(names)                      -> shell text that looks for unique names, also among jobs that have ended
    parse_find(code, out, err, names)        -> {name: id} of those found; raises QueryFailed
    query_command(ids)                       -> shell text that asks how jobs stand, also ended ones; "" if there is nothing to ask
    parse_query(code, out, err, ids)         -> {id: Entry}; an id that is not in it is not known there; raises QueryFailed
    cancel_command(id, name)                 -> shell text that ends a job, found by its name; "" if the agent alone can do it
    parse_said(text)                         -> Entry or None: what the scheduler wrote where the wrapper's own output goes ($WT_SAID)

    nodes_command(nodes)                     -> shell text that asks how nodes are; may be left out, see tells_of_nodes
    parse_nodes(code, out, err)              -> {node: whether it is at work, so that nothing runs there that is not the scheduler's} of
                                                those that it knows; raises QueryFailed

    COMMANDS                                 the programs without which it cannot work, found on the PATH or made known by the host's `setup`
    LATE                                     seconds by which its account of an ended job may be late, after its queue has forgotten it

resources: {"cores": number, "memory": bytes, "walltime": seconds, "queue": word, "account": word}, None or missing where
nothing is asked for. options: more words for the submit command, as the site gave them.

All texts run inside the agent, after the host's `setup`, where `capped SECONDS COMMAND [ARGS]` runs a command for so long at
most (then it is killed: exit code 137). Every call of a scheduler's command is capped: a dead controller may let it hang for ever.
submit_command has these variables: WT_NAME, the unique name; WT_WRAPPER, shell text that starts the wrapper, for a script;
WT_SAID, a path in the job's directory for what the scheduler has to say about the wrapper; WT_JOB, the job's directory.

A query that failed, hung or was partial raises: an empty answer is never taken for "finished" (aiida #4326).
"""

import importlib
import pkgutil
import re
import shlex
from dataclasses import dataclass

from watchties.errors import Transient, UserError

NAME = "wt."  # + token: the name an attempt has in its scheduler; 15 characters, the first a letter
ASK, TELL = 20, 60  # seconds that a question, and a submission or a cancellation, may take


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


@dataclass(frozen=True)
class Entry:
    """What a scheduler tells of one job.

    words: in its own words, for people. ended: it says that the job does not run any more and never will. cause: why it
    ended, if it says so: memory, time, node or cancelled (model.CAUSES), else "". name: the job's name there, "" where
    the answer does not tell: an id may be another job's by now (submitit #1660).
    """

    words: str
    ended: bool = False
    cause: str = ""
    name: str = ""


def names():
    """Return the names of the schedulers there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name):
    """Return the scheduler module of that name; raise UserError that names those there are."""
    if name not in names():
        raise UserError(f"{name} is no scheduler; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def tells_of_nodes(scheduler):
    """Return whether a scheduler can be asked for its nodes: else what it says of a job must do, unless it says that its node failed."""
    return hasattr(scheduler, "nodes_command")


def unique_name(token):
    """Return the name that an attempt has in its scheduler."""
    return NAME + token


# ---- several commands in one text: what each of them said, with its own exit code ----


MARK = "wt_code=$?; for wt_to in 1 2; do printf '\\nwt-part {}%s %d end\\n' \"{}\" \"$wt_code\" >&\"$wt_to\"; done"


def parts(commands):
    """Return shell text that runs {label: command} one after the other and marks what each has said, on both streams."""
    return "; ".join(f"{command}; {MARK.format(label, '')}" for label, command in commands.items())


def parts_of_each(label, words, command):
    """Return shell text that runs one command for each word, $wt_id in it, and marks what it has said with the label and the word.

    As a loop: thousands of ids must fit into one word of a command line, 128 kB (execve(2)).
    """
    return f"for wt_id in {' '.join(words)}; do {command}; {MARK.format(label, '$wt_id')}; done"


def parse_parts(out, err, labels):
    """Return {label: (code, out, err)}; raise QueryFailed if a part is missing on either stream: the answer was cut off."""
    heard = _split(out), _split(err)
    for label in labels:
        if any(label not in stream for stream in heard):
            raise QueryFailed(f"the answer was cut off before the end of {label}: {failure_text(out, err)}")
    return {label: (heard[0][label][0], heard[0][label][1], heard[1][label][1]) for label in labels}


_MARK = re.compile(r"wt-part (\w+) (\d+) end")


def _split(text):
    """Return {label: (code, text)} of one stream."""
    found, lines = {}, []
    for line in text.split("\n"):
        if match := _MARK.fullmatch(line):
            found[match[1]], lines = (int(match[2]), "\n".join(lines).strip("\n")), []
        else:
            lines.append(line)
    return found


def failure_text(out, err):
    """Return what a command said, standard error before standard output, in one line of its own words."""
    return " ".join((err.strip() or out.strip() or "nothing said").split())


def options_text(options):
    """Return a site's own words for the submit command as shell text."""
    return " ".join(shlex.quote(option) for option in options)
