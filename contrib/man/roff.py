"""Text as man(7) wants it.

Knows: which characters mean something to roff, and the few macros that the pages need.
Must not know: what the pages say.
"""

import re
import textwrap

SPECIAL = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


def text(plain):
    """Return words as roff shows them as they are, also at the beginning of a line."""
    words = re.sub(r"[\\'`^~-]|[^\x00-\x7f]", lambda match: SPECIAL.get(match[0]) or f"\\[u{ord(match[0]):04X}]", plain)
    return "\n".join("\\&" + line if line.startswith(".") else line for line in words.split("\n"))


def bold(plain):
    return f"\\fB{text(plain)}\\fR"


def italic(plain):
    return f"\\fI{text(plain)}\\fR"


def page(name, section, version, what, parts):
    """Return a whole page: its heading, and parts of roff."""
    head = [f'.TH {name.upper()} {section} "" "watchties {version}" "watchties"', ".SH NAME", f"{text(name)} \\-\n{filled(what)}"]
    return re.sub(r"^(\.S[HS] .*)\n\.PP$", r"\1", "\n".join([*head, *parts]), flags=re.MULTILINE) + "\n"


def heading(title):
    return f".SH {title.upper()}"


def subheading(title):
    return f'.SS "{text(title)}"'


def item(tag, body):
    """Return a tagged paragraph; the tag is roff already."""
    return f".TP\n{tag}\n{filled(body)}"


def paragraph(words):
    return f".PP\n{filled(words)}"


def filled(words):
    """Return words in lines that a diff can show."""
    return text(textwrap.fill(words, 70, break_long_words=False, break_on_hyphens=False))


def as_it_stands(lines):
    """Return lines that are neither filled nor joined."""
    return ".PP\n.RS 4\n.nf\n" + "\n".join(text(line) for line in lines) + "\n.fi\n.RE"
