"""What a job asks its host for, in its file job.toml: read, checked, put over the host's own values, held to the host's caps.

Knows: the keys of job.toml, what each may hold, how a mistake is told to its user.
Must not know: any scheduler, or what becomes of the job.

    cores = 4
    memory = "8GiB"
    walltime = "2h"
    queue = "short"
    account = "physics"

The file is a stranger's: no link is followed, no pipe waited for, no more read than LIMIT; a word goes to a scheduler's
command line only if it is plain.
"""

import errno
import os
import re
import stat
import tomllib

from watchties import units
from watchties.configfiles import show, suggestion
from watchties.errors import Rejected

FILE = "job.toml"
LIMIT = 16384  # bytes; a page of comments fits
ITS_OWN = {errno.EACCES, errno.ELOOP, errno.ENXIO, errno.ENOTDIR}  # the file's own fault; others pass: no descriptors, a stale mount
MOST_CORES = 1_000_000
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,99}")
CAPPED = {"cores": str, "memory": units.shown_size, "walltime": units.shown_duration}  # key -> how a value is shown


def of_job(job_dir, host, name):
    """Return the resources of a job on a host (its table in the plain configuration): key -> value, without what nobody asks for.

    Cores are a number, memory bytes, walltime seconds. Raises Rejected with one line for the user, which names every mistake.
    """
    asked = parse(read(job_dir))
    caps = {key: cap for key, cap in (host.get("caps") or {}).items() if cap is not None}
    over = [f"{key} = {CAPPED[key](asked[key])} is more than {name} allows, {CAPPED[key](caps[key])}" for key in caps
            if key in asked and asked[key] > caps[key]]  # fmt: skip
    if over:
        raise Rejected(f"{FILE}: {'; '.join(over)}")
    usual = {key: value for key, value in (host.get("resources") or {}).items() if value is not None}
    return usual | asked


def read(job_dir):
    """Return the text of a job's job.toml, "" if it has none; raise Rejected if it is no plain file, or not to be read."""
    try:
        fd = os.open(os.path.join(job_dir, FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno not in ITS_OWN:
            raise
        why = "it is a symbolic link" if os.path.islink(os.path.join(job_dir, FILE)) else error.strerror
        raise Rejected(f"{FILE} cannot be read ({why}); make it a plain file, or remove it") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Rejected(f"{FILE} is not a file; remove it")
    with os.fdopen(fd, "rb") as file:
        raw = file.read(LIMIT + 1)
    if len(raw) > LIMIT:
        raise Rejected(f"{FILE} is longer than {LIMIT} bytes; keep to cores, memory, walltime, queue and account")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected(f"{FILE}, line {raw[: error.start].count(10) + 1}: not valid UTF-8; save the file as UTF-8") from None


def parse(text):
    """Return key -> value of a job.toml's text; raise Rejected that names every mistake in it."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of 5,000 digits
        said = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "nested too deeply, or a number too long"
        raise Rejected(f"{FILE} is not TOML: {said}; put it right") from None
    found, wrong = {}, []
    for key, value in table.items():
        if key not in READ:
            wrong.append(f"unknown key {show(key)}; {suggestion(key, READ, 'there are ' + ', '.join(READ))}")
            continue
        try:
            found[key] = READ[key](value)
        except ValueError as error:
            wrong.append(f"{key}: {error}")
    if wrong:
        raise Rejected(f"{FILE}: {'; '.join(wrong)}")
    return found


def _cores(value):
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CORES:
        raise ValueError(f"{show(value)} is no number of cores; write a whole number without quotes, such as 4")
    return value


def _more_than_nothing(read_value):
    def check(value):
        if (found := read_value(value)) <= 0:
            raise ValueError(f"{show(value)} is nothing; ask for more, or leave the key out")
        return found

    return check


def _word(value):
    if not isinstance(value, str) or not WORD.fullmatch(value):
        raise ValueError(f"{show(value)} is no plain name; write letters, digits, _ . : @ + or -, in quotes")
    return value


READ = {
    "cores": _cores,
    "memory": _more_than_nothing(units.size),
    "walltime": _more_than_nothing(units.duration),
    "queue": _word,
    "account": _word,
}
