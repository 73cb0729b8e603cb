"""Durations and sizes as people write them: "90s", "2h"; "500MB", "2GiB".

Knows: the units, and how a wrong value is told.
Must not know: which key a value belongs to. No pydantic here: hooks read job.toml.
"""

import re

from watchties.configfiles import show

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 3650 * 86400  # ten years; beyond, event loops and time functions overflow
LARGEST = 1 << 60  # bytes; no machine has that much memory
_STEPS = "kmgtp"
BYTES = {"b": 1} | {f"{letter}b": 1000**n for n, letter in enumerate(_STEPS, 1)}
BYTES |= {f"{letter}{ending}": 1024**n for n, letter in enumerate(_STEPS, 1) for ending in ("ib", "")}  # as the configuration has them


def duration(value):
    """Return the seconds of "90s", "5m", "2h" or "1d"; raise ValueError that says how to write it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f'{value} is a plain number; add a unit, such as "{value}s" or "{value}m"')
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?) ?([smhd])", value) if isinstance(value, str) else None
    if not match:
        raise ValueError(f'{show(value)} is no duration; write a number and s, m, h or d, such as "90s", "5m", "2h"')
    seconds = float(match[1]) * SECONDS[match[2]]
    if seconds > LONGEST:
        raise ValueError(f'{show(value)} is longer than ten years; write at most "3650d"')
    return seconds


def size(value):
    """Return the bytes of "500MB" or "2GiB"; raise ValueError that says how to write it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f'{show(value)} is a plain number; add a unit, such as "4GiB"')
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?) ?([A-Za-z]{1,3})", value) if isinstance(value, str) else None
    if not match or match[2].lower() not in BYTES:
        raise ValueError(f'{show(value)} is no size; write a number and a unit, such as "500MB" or "2GiB"')
    found = int(float(match[1]) * BYTES[match[2].lower()])
    if found > LARGEST:
        raise ValueError(f"{show(value)} is more than any machine has")
    return found


def shown_duration(seconds):
    """Return seconds as they would be written in job.toml: 7200 is "2h"."""
    unit = next(u for u in "dhms" if seconds % SECONDS[u] == 0 or u == "s")
    return f"{seconds / SECONDS[unit]:g}{unit}"


def shown_size(count):
    """Return bytes as they would be written in job.toml: 2147483648 is "2GiB"."""
    for step in reversed(_STEPS):
        for unit in f"{step}ib", f"{step}b":
            if count and count % BYTES[unit] == 0:
                return f"{count // BYTES[unit]}{unit.upper().replace('I', 'i').replace('KB', 'kB')}"
    return f"{count}B"
