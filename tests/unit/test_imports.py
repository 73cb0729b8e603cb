"""The two halves never import each other (the daemon's and the hooks'), and pydantic stays out of hooks."""

import subprocess
import sys
from pathlib import Path

import pytest

DAEMON = ["daemon", "engine", "dispatch", "watch", "relays", "lanes", "runner", "runs", "journal", "record", "recordfile", "markers", "decide", "teller",
          "onepass", "follow", "statelock", "systemd", "serve", "unit", "masters", "children", "calls"]  # fmt: skip
HOOKS = ["hookkit", "transfer", "rsyncsays", "meter", "agent", "submission", "manifest", "judge", "resources", "standing", "mail", "letter", "retry",
         "shell", "schedulers.shell", "schedulers.lsf", "schedulers.pbs"]  # fmt: skip
PURE = ["model", "errors", "decide", "outcomes"]


def loaded_by(modules):
    code = f"import sys; [__import__(m) for m in {[f'watchties.{m}' for m in modules]!r}]; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_daemons_half_imports_neither_sh_nor_tenacity_nor_hooks():
    loaded = loaded_by(DAEMON)
    assert not loaded & {"sh", "tenacity", *(f"watchties.{m}" for m in HOOKS)}


def test_what_both_halves_read_imports_neither():
    loaded = loaded_by(["progress"])
    assert not loaded & {"sh", "tenacity", "sqlite3", "asyncio", *(f"watchties.{m}" for m in [*DAEMON, *HOOKS])}


def test_the_hooks_half_imports_nothing_of_the_daemons():
    loaded = loaded_by(HOOKS)
    assert {"sh", "tenacity"} <= loaded
    assert not loaded & {"pydantic", "sqlite3", *(f"watchties.{m}" for m in [*DAEMON, "config"])}


@pytest.mark.parametrize("module", PURE)
def test_decisions_and_words_do_no_input_or_output(module):
    loaded = loaded_by([module])
    assert not loaded & {"asyncio", "subprocess", "socket", "sqlite3", "pydantic", "watchties.config"}


def test_no_name_is_used_that_is_not_there():
    """pyflakes, of which only what would be a NameError counts: a path that is walked once a year is not seen by running it."""
    root = Path(__file__).resolve().parents[2]
    files = [path for part in ("watchties", "hooks", "contrib", "tests") for path in (root / part).rglob("*") if is_python(path)]
    assert len(files) > 150
    said = subprocess.run([sys.executable, "-m", "pyflakes", *map(str, files)], capture_output=True, text=True).stdout
    assert [line for line in said.splitlines() if "undefined name" in line or "invalid syntax" in line] == []


def is_python(path):
    if not path.is_file() or "egg-info" in str(path) or "__pycache__" in str(path):
        return False
    with open(path, "rb") as file:
        return path.suffix == ".py" or file.readline().startswith(b"#!/usr/bin/env python3")
