"""The fragments of a configuration as they lie on disk: read, named, told apart, and safe to trust.

Knows: TOML, which tables there are and how they are named, who may write to such a directory.
Must not know: what the keys of a table mean (config.py), or how tables fit together (configcheck.py). No pydantic here.
"""

import difflib
import json
import os
import pwd
import re
import shlex
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

from watchties.model import printable

NAMED, LISTED, SINGLE = ("host", "tree"), ("rule",), ("mail", "daemon")
HEADINGS = {**{key: f"[{key}.NAME]" for key in NAMED}, **{key: f"[[{key}]]" for key in LISTED}, **{key: f"[{key}]" for key in SINGLE}}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
NAME_RULE = "is no name; use letters, digits, - and _, and begin with a letter or digit"


@dataclass(frozen=True)
class Table:
    """One table as it stands in a file; `kind` is host, tree, rule, mail or daemon; a rule may lack a name ("")."""

    file: str
    kind: str
    name: str
    label: str
    data: dict

    def problem(self, key, text):
        """Return (file, line) for something wrong with a key of this table; with key "" for the table as a whole."""
        return self.file, f"{self.file}: {printable(self.label)}{' ' + printable(key) if key else ''}: {text}"


def show(value):
    """Return a value from a file as it is quoted in a line for people."""
    return printable(json.dumps(value, ensure_ascii=False, default=str), 60)


def nearest(word, known):
    """Return the known word that comes nearest to `word`, or ""."""
    return next(iter(difflib.get_close_matches(str(word), sorted(known), 1)), "")


def suggestion(word, known, otherwise):
    """Return `did you mean "..."?` if a known word is near, else the text `otherwise`."""
    near = nearest(word, known)
    return f"did you mean {show(near)}?" if near else otherwise


def read(directory):
    """Return (tables, problems) of all *.toml of a directory, in name order; a problem is (file, line)."""
    directory = Path(directory)
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))
    except OSError as error:
        return [], [("", f"{directory}: cannot be read ({error.strerror}); `watchties init` makes a configuration")]
    if not files:
        return [], [("", f"{directory}: holds no *.toml; `watchties init` makes a configuration")]
    tables, problems = [], []
    for path in files:
        try:
            data = _parse(path)
        except FileNotFoundError:  # a link that leads nowhere: check_permissions tells of it
            continue
        except (OSError, ValueError) as error:
            problems.append((str(path), str(error) if isinstance(error, ValueError) else f"{path}: cannot be read ({error.strerror})"))
            continue
        _split(str(path), data, tables, problems)
    return tables, problems + _repeated(tables)


def _parse(path):
    """Return a file's content as a dict; raise ValueError with a line that names file and line."""
    if not stat.S_ISREG(path.stat().st_mode):  # a FIFO of that name would hang us
        raise ValueError(f"{path}: is not a file; remove it")
    raw = path.read_bytes()
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{raw[: error.start].count(10) + 1}: is not valid UTF-8; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = (at and at[1]) or raw.rstrip(b"\n").count(10) + 1
        said = printable(str(error)[: at.start()] if at else error)
        raise ValueError(f"{path}:{line}: not TOML: {said}; put it right") from None
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply; make it flat") from None


def _split(file, data, tables, problems):
    """Add the tables of one file, and a problem for each thing that is none of the tables there are."""
    for key, value in data.items():
        whole = Table(file, key, "", f"[{key}]", {})
        if key not in HEADINGS and isinstance(value, (dict, list)):
            known = ", ".join(HEADINGS.values())
            near = HEADINGS.get(nearest(key, HEADINGS))
            problems.append(whole.problem("", f"unknown table; did you mean {near}?" if near else f"unknown table; there are {known}"))
        elif key not in HEADINGS:
            problems.append((file, f"{file}: {printable(key)}: stands outside of any table; move it below a heading such as [daemon]"))
        elif key in NAMED and isinstance(value, dict):
            for name, table in value.items():
                _add(Table(file, key, name, f"[{key}.{name}]", table), tables, problems)
        elif key in LISTED and isinstance(value, list):
            for number, table in enumerate(value, 1):
                name = table.get("name") if isinstance(table, dict) else None
                label = name if isinstance(name, str) else f"number {number}"
                _add(Table(file, key, name if isinstance(name, str) else "", f"[[{key}]] {label}", table), tables, problems)
        elif key in SINGLE and isinstance(value, dict):
            tables.append(Table(file, key, key, f"[{key}]", value))
        else:
            problems.append(whole.problem("", f"is not written so; write {HEADINGS[key]}"))


def _add(table, tables, problems):
    if not isinstance(table.data, dict):
        problems.append(Table(table.file, "", "", f"[{table.kind}]", {}).problem(table.name, f"is no table; write {HEADINGS[table.kind]}"))
        return
    if (table.kind in NAMED or isinstance(table.data.get("name"), str)) and not NAME.fullmatch(table.name):
        problems.append(table.problem("name" if table.kind in LISTED else "", f"{show(table.name)} {NAME_RULE}"))
    tables.append(table)


def _repeated(tables):
    """Return a problem for each table whose name stands somewhere else before it."""
    first, problems = {}, []
    for table in tables:
        earlier = first.setdefault((table.kind, table.name), table)
        if earlier is not table and table.name:
            where = "earlier in this file" if earlier.file == table.file else f"in {earlier.file}"
            problems.append(table.problem("", f"stands {where} too; keep one of the two"))
    return problems


def check_permissions(directory, uid=None):
    """Return problem lines, each with the command to run, if others may write to a directory or what lies in it.

    `uid` is who we are (None: this process). Links are judged by what they lead to; hidden files count for nothing,
    as nothing reads them. What others may write to they could run as us: hooks directly, and a configuration names hooks.
    """
    uid = os.geteuid() if uid is None else uid
    directory = os.path.abspath(directory)
    if not os.path.isdir(directory):
        return [f"{directory}: is not a directory"]
    problems = _permissions(directory, uid)
    for folder, subfolders, files in os.walk(directory):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(subfolders + files):
            problems += _permissions(os.path.join(folder, name), uid) if not name.startswith(".") else []
    return problems


def _permissions(path, uid):
    try:
        status = os.stat(path)
    except OSError as error:
        return [f"{path}: cannot be looked at ({error.strerror}); remove it or put it right"]
    problems = []
    if status.st_uid not in (0, uid):
        owner, us = _user(status.st_uid), _user(uid)
        problems.append(f"{path}: belongs to {owner}, not to {us} or root; run: chown {shlex.quote(us)} {shlex.quote(path)}")
    if who := {0o020: "its group", 0o002: "others", 0o022: "its group and others"}.get(status.st_mode & 0o022):
        problems.append(f"{path}: {who} may write to it; run: chmod go-w {shlex.quote(path)}")
    return problems


def _user(uid):
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
