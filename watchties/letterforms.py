"""The forms that letters are written on: found, looked over, filled. A form has a text and, mostly, an HTML part.

Knows: which files a site may put in the place of ours, what a $placeholder (string.Template) may be called, how HTML is escaped.
Must not know: what the values are, how a letter is sent. Both halves use it: `watchties check` looks over a site's forms.

The first line of a text is the subject, after "Subject:". A line whose $placeholders are all empty is left out, and so is such a
paragraph. A site that replaces the text alone has letters of that text alone: our HTML would say something else.
"""

import html
import re
import string
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from watchties import model
from watchties.errors import UserError

FILES = {model.DONE: ("done.txt", "done.html"), model.FAILED: ("failed.txt", "failed.html")}
PLACEHOLDERS = frozenset(
    "advice again attempt began cause cause_words ended error_lines exit experiment facts files host id link on_host ran reason"
    " state submitted tree unfinished user".split()
)


class Form(NamedTuple):
    """subject: a Template; text, html: paragraphs, each lines of (Template, its placeholders); html may be ()."""

    subject: string.Template
    text: tuple
    html: tuple


def load(directory, state):
    """Return (Form, problems): the site's own in `directory` as far as it is there and sound, else ours. A letter is never lost for it."""
    own = {name: path for name in FILES[state] if directory and (path := Path(directory).expanduser() / name).exists()}
    try:
        return _form(state, own), ()
    except UserError as problem:
        return _form(state, {}), (str(problem),)


def problems(directory):
    """Return what is wrong with a site's own forms, one line each, if only that there are none."""
    own = Path(directory).expanduser()
    if not any((own / name).exists() for names in FILES.values() for name in names):
        return [f"{own}: holds none of {', '.join(name for names in FILES.values() for name in names)}, so that ours are used"]
    return [problem for state in FILES for problem in load(directory, state)[1]]


def _form(state, own):
    text, page = FILES[state]
    subject, paragraphs = _compiled(own.get(text) or text)
    only_text = text in own and page not in own
    return Form(subject, paragraphs, () if only_text else _compiled(own.get(page) or page)[1])


def _compiled(file):
    """Return (subject, paragraphs) of a form: a Path of the site's, or the name of ours; raise UserError."""
    source = file if isinstance(file, Path) else resources.files("watchties") / "templates" / file
    try:
        return _parsed(source.read_text(encoding="utf-8"), not source.name.endswith(".html"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a template that a mail can use: {error}; until it is put right, ours is used") from error


@cache
def _parsed(text, has_subject):
    subject, _, rest = text.partition("\n") if has_subject else ("", "", text)
    paragraphs = tuple(
        tuple(_line(line) for line in part.split("\n")) for part in re.split(r"\n[ \t]*\n", rest.strip("\n"))
    )  # fmt: skip
    return _line(subject.removeprefix("Subject:").strip())[0], paragraphs


def _line(text):
    template = string.Template(text)
    if not template.is_valid():
        raise ValueError(f"a $ that begins no placeholder (write $$ for a dollar) in: {model.printable(text)}")
    names = template.get_identifiers()
    if unknown := sorted(set(names) - PLACEHOLDERS):
        raise ValueError(f"no such placeholder: ${unknown[0]}")
    return template, tuple(names)


def fill(form, values):
    """Return (subject, text, HTML or ""); values: placeholder -> text."""
    page = _filled(form.html, {key: html.escape(value) for key, value in values.items()}) if form.html else ""
    return form.subject.substitute(values), _filled(form.text, values), page


def _filled(paragraphs, values):
    kept = (_paragraph(lines, values) for lines in paragraphs)
    return "\n\n".join(text for text in kept if text) + "\n"


def _paragraph(lines, values):
    names = [name for _, used in lines for name in used]
    if names and not any(values[name] for name in names):
        return ""
    return "\n".join(
        template.substitute(values) for template, used in lines if not used or any(values[name] for name in used)
    ).strip("\n")  # fmt: skip
