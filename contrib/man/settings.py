"""The man page of the configuration, from the models that check it and the commented fragments that `watchties init` writes.

Knows: pydantic's fields as configmodels.py has them, the form of the comments in conf.d.
Must not know: what a key does; the fragments say that, and whoever adds a key says it there.
"""

import re
import typing

import roff

FRAGMENTS = {"host": "10-hosts", "tree": "20-trees", "rule": "30-rules", "mail": "40-mail", "daemon": "50-daemon"}
LABELS = {"host": "[host.NAME]", "tree": "[tree.NAME]", "rule": "[[rule]]", "mail": "[mail]", "daemon": "[daemon]"}
KEY = re.compile(r"\s*#?([a-z_]+) = ([^#]*?)\s*(?:#\s*(.*))?")  # a setting, in use or to uncomment
LISTED = re.compile(r"#   ([a-z_]+) {2,}(\S.*)")  # a line of the table of keys at the top of 30-rules.toml
TABLE = re.compile(r"\s*#?\[+([a-z]+)(?:\.\w+)?(?:\.([a-z]+))?\]+\s*(?:#.*)?")
UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 1000))


def page(version, models, folder, about):
    """Return the page. models: table -> model; folder: Path of conf.d."""
    texts = {kind: (folder / f"{file}.toml").read_text() for kind, file in FRAGMENTS.items()}
    parts = [roff.heading("description"), roff.paragraph(
        "watchties reads all files *.toml in ~/.config/watchties/conf.d together; a table may stand in any of them, once. "
        "`watchties init` writes them with comments, `watchties check --here` tells every mistake at once, with file, table and key. "
        "Durations are written 90s, 5m, 2h or 1d, in quotes; sizes 500MB (a million bytes each) or 2GiB. Words are TOML v1.0."
    )]  # fmt: skip
    for kind, model in models.items():
        comments = described(kind, texts[kind])
        parts += [f".SH {LABELS[kind]}", roff.paragraph(opening(texts[kind]))]
        for name, field in model.model_fields.items():
            parts += keys(name, field, comments, "")
    parts += [roff.heading("examples"), roff.paragraph("The files as `watchties init` writes them:")]
    for kind, text in texts.items():
        parts += [roff.subheading(f"{FRAGMENTS[kind]}.toml"), roff.as_it_stands(text.rstrip("\n").split("\n"))]
    return roff.page("watchties.toml", 5, version, "configuration of watchties", [*parts, *about])


def keys(name, field, comments, prefix):
    """Return the paragraphs of a key, and of the keys below it if it is a table of its own."""
    name = f"{prefix}{field.alias or name}"
    below = next((one for one in (field.annotation, *typing.get_args(field.annotation)) if hasattr(one, "model_fields")), None)
    head = f"{roff.bold(name)} ({roff.text('a table' if below else kind_of(field))}{roff.text('' if below else default_of(field))})"
    found = [roff.item(head, comments.get(name, ""))]
    for inner, more in below.model_fields.items() if below else ():
        found += keys(inner, more, comments, f"{name}.")
    return found


def kind_of(field):
    """Return what may stand there, in words."""
    checks = {getattr(getattr(part, "func", None), "__name__", "") for part in [*field.metadata, *_inner_metadata(field.annotation)]}
    if "duration" in checks:
        return "duration"
    shown = str(field.annotation)
    if typing.get_origin(field.annotation) is typing.Literal:
        return " or ".join(f'"{word}"' for word in typing.get_args(field.annotation))
    if "dict" in shown:
        return "text, or a table" if "str |" in shown else "a table"
    for part, word in ("list", "list of texts"), ("ByteSize", "size"), ("bool", "true or false"), ("int", "whole number"):
        if part in shown:
            return word
    return "text"


def _inner_metadata(annotation):
    """Return the metadata of the parts of a union such as `Duration | None`."""
    return [data for part in typing.get_args(annotation) for data in getattr(part, "__metadata__", ())]


def default_of(field):
    """Return `; default X`, or that the key must be there."""
    value = field.default
    if field.is_required():
        return "; required"
    if value is None or value == "" or value == [] or value == {}:
        return ""
    kind = kind_of(field)
    units = UNITS if kind == "duration" else SIZES if kind == "size" else ()
    if units:
        name, unit = next(((name, unit) for name, unit in units if value >= unit and value % unit == 0), ("s", 1))
        return f'; default "{value / unit:g}{name}"'
    told = str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else f'"{value}"'
    return f"; default {told}"


# ---- comments ----


def opening(text):
    """Return the comment at the top of a fragment, up to the first blank line or list of keys."""
    lines = []
    for line in text.split("\n"):
        if not line.startswith("#") or line == "#" or line.startswith("# Keys"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def described(kind, text):
    """Return key -> what the comments of a fragment say of it: what stands beside it, else the block above."""
    found, block, inner, last = {}, [], "", ""
    for line in text.split("\n"):
        if listed := LISTED.fullmatch(line):
            last = listed[1]
            found[last] = listed[2]
        elif last and kind == "rule" and re.match(r"# {15,}\S", line):
            found[last] += " " + line.lstrip("# ")
        elif table := TABLE.fullmatch(line):
            inner, last = (f"{table[2]}." if table[2] else ""), ""
            if inner:
                found.setdefault(inner[:-1], " ".join(block))
            block = [] if not inner else block
        elif setting := KEY.fullmatch(line):
            last = inner + setting[1]
            said = setting[3] or ("" if inner else " ".join(block))
            if said and not found.get(last):
                found[last] = said
        elif last and re.match(r"\s{20,}#", line):
            found[last] = (found.get(last, "") + " " + line.strip().lstrip("# ")).strip()
        elif line.startswith("# "):
            block, last = ([*block, line.lstrip("# ")] if not last else [line.lstrip("# ")]), ""
        elif not line.strip():
            block, inner, last = [], "", ""
    return found
