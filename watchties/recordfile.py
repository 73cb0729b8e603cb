"""The record of a job on disk: JOB/.watchties/record.json in the mirror.

Knows: its form, how it is read and replaced. Its only writer is the daemon.
Must not know: what a record means, and how it changes (record.py).
"""

import json
import os
from dataclasses import asdict, fields

from watchties import durable, wellformed
from watchties.errors import Unsafe
from watchties.model import RECORD_DIR
from watchties.record import Attempt, Record

FILE = "record.json"
PATH = f"{RECORD_DIR}/{FILE}"  # in a job's directory
VERSION = 1
NAMES = tuple(f.name for f in fields(Record))



def directory(job_dir):
    """Return the directory of a job's record."""
    return os.path.join(job_dir, RECORD_DIR)


def dumps(record):
    """Return a record as the bytes of its file."""
    plain = {name: getattr(record, name) for name in NAMES} | {"old": record.old and asdict(record.old)}  # asdict of all copies deeply
    return json.dumps({"version": VERSION, **plain.pop("extra"), **plain}, separators=(",", ":")).encode()


def loads(data):
    """Return the record in the bytes of a file; keys of a newer version are kept; raise ValueError on junk."""
    plain = json.loads(data)
    if not isinstance(plain["version"], int):
        raise ValueError("it has no version")
    known = {f.name for f in fields(Record)} - {"extra"}
    values = {k: v for k, v in plain.items() if k in known}
    values |= {k: tuple(values[k]) for k in ("accepted", "served") if isinstance(values.get(k), list)}
    if values.get("old"):
        values["old"] = Attempt(**{k: values["old"][k] for k in ("attempt", "token", "host")})
    extra = {k: v for k, v in plain.items() if k not in known and k != "version"}
    return wellformed.checked(Record(**values, extra=extra), Record())


def load(job_dir):
    """Return the record of a job, an empty one if it has none.

    Raises Unsafe if it cannot be read: a record is never taken for absent because it is damaged, as the job
    would run again.
    """
    path = os.path.join(directory(job_dir), FILE)
    try:
        return loads(durable.read_plain(path))
    except (FileNotFoundError, NotADirectoryError):
        return Record()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unsafe(f"{path} is damaged ({wellformed.why(error)}); look at it, and move it away to begin this job anew") from None


def save(job_dir, record, before=()):
    """Plan: make the record durable; `before`: paths that must be so no later. Its directory is made where it is missing."""
    where = directory(job_dir)
    before = list(before)
    if not os.path.isdir(where):
        os.mkdir(where)
        before.append(job_dir)
    yield from durable.replace(os.path.join(where, FILE), dumps(record), before)
