"""What a user is told of a job that ended: addresses, words, headers. Pure.

Knows: what a user wants to know of a job that ended, what a valid address is.
Must not know: how a letter is sent, and whether it arrives; how a template is filled (letterforms.py).

A letter's Message-ID comes from the attempt's token: a repeat after a crash is the same mail to every mail program (RFC 5322, 3.6.4).
"""

import binascii
import email.policy
import hashlib
import re
import shlex
import unicodedata
import urllib.parse
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

from watchties import letterforms, model
from watchties.errors import Rejected

DEFAULT_FROM = "watchties@localhost"
MAX_SUBJECT = 200  # characters
FINISHED = ("done", "skipped", "")  # how a rule may have ended without anybody missing anything

CAUSE_WORDS = {  # cause -> (what happened, what to do about it)
    "exit": ("Its command ended with an exit code for failure.", "Read the last lines of its error output and put right what they name."),
    "rejected": ("It was not accepted as it is, and was not run.", "Put right what the reason names."),
    "lost": (
        "It vanished: the compute host no longer knows it, and it left no exit code. It was killed, or its host was restarted.",
        "Nothing has to be changed.",
    ),
    "cancelled": ("It was cancelled, as somebody asked.", "Nothing has to be changed."),
    "infrastructure": (
        "A step of the transport kept failing. Your program is not to blame, and all data are kept.",
        "The administrator has been told; try again when the reason named below is gone.",
    ),
    "success": (
        "Its command ended by itself, but without success: something required is missing, or something forbidden is there.",
        "Look for the file or the output that the reason names.",
    ),
    "memory": ("It needed more memory than it was given.", "Ask for more memory in job.toml, or make the problem smaller."),
    "time": ("It ran longer than it was allowed to.", "Ask for more time in job.toml, or make the problem smaller."),
    "node": ("The machine that it ran on failed.", "Nothing has to be changed."),
}
OTHER_CAUSE = ("It did not succeed.", "Read the reason, and the last lines of its error output.")


@dataclass(frozen=True)
class Letter:
    """A message, the bare addresses it goes to, and the file name it has in a folder."""

    message: EmailMessage
    sender: str
    to: tuple
    cc: tuple
    name: str

    def data(self):
        """Return the message as it is sent (bytes, CRLF)."""
        return self.message.as_bytes()

    @property
    def international(self):
        """Whether an address is not ASCII, so that the server must speak SMTPUTF8 (RFC 6531)."""
        return not all(address.isascii() for address in (self.sender, *self.to, *self.cc))


# Addresses. A user's name and a job's own address file are a stranger's input.

_ATOMS = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(\.[\w!#$%&'*+/=?^`{|}~-]+)*")
_DOMAIN = re.compile(r"(?!-)[a-z0-9-]+(?<!-)(\.(?!-)[a-z0-9-]+(?<!-))*", re.IGNORECASE)


def address(local, domain, name="", quote=False):
    """Return an Address; with `quote` any printable local part will do (RFC 5321, 4.1.2); raise Rejected if it cannot be one."""
    local, shown = unicodedata.normalize("NFC", local), model.printable(f"{local}@{domain}")
    try:
        domain = domain.encode("idna").decode()
    except UnicodeError as e:
        raise Rejected(f"{shown} is not a mail address: its domain is no name") from e
    plain = bool(_ATOMS.fullmatch(local))
    quotable = quote and local.isprintable() and local.strip(".") == local != "" and ".." not in local
    if not (plain or quotable) or local.startswith("-") or len(local.encode()) > 64 or not _DOMAIN.fullmatch(domain):
        raise Rejected(f"{shown} is not a mail address")
    return Address(model.one_line(name), local, domain)


def parse_address(text):
    """Return the Address that is the whole of `text` (`a@b`, nothing around it); raise Rejected."""
    local, _, domain = text.rpartition("@")
    return address(local, domain)


def named_addresses(value):
    """Return the Addresses of a key of the configuration: None, `a@b`, `Name <a@b>`, or a list of these."""
    texts = [value] if isinstance(value, str) else value or []
    parsed = [parseaddr(text) for text in texts]
    return tuple(address(*bare.rpartition("@")[::2], name=name) for name, bare in parsed)


def configured_address(to, user):
    """Return the Address of a user after `[mail] to` (a pattern over {user}, or a table), None if it has none; raise Rejected."""
    if not to:
        return None
    if not isinstance(to, str):
        return parse_address(to[user]) if user in to else None
    local, _, domain = to.rpartition("@")
    if "{user}" in local and "{user}" not in domain:  # a user called "eve@evil.org" stays a local part, in quotes
        return address(local.replace("{user}", user), domain, quote=True)
    return parse_address(to.replace("{user}", user))


def choose_address(mail, user, own):
    """Return (Address or None, lines for the log): the job's own address `own` (text or None) if it is one, else `[mail] to`."""
    if own is None:
        return configured_address(mail["to"], user), ()
    try:
        return parse_address(own.strip(" \t\r\n")), ()
    except Rejected as e:
        return configured_address(mail["to"], user), (f"{mail['email_file']} is passed over: {e}",)


# Letters


def fill(pattern, **values):
    """Return the pattern with each {name} replaced by its value; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), pattern)


def duration(seconds):
    """Return seconds in words, two units at most; "" if it is no number."""
    try:
        left = float(seconds)
    except (TypeError, ValueError):
        return ""
    if not 0 <= left < 1e10:
        return ""
    if left < 60:
        return f"{left:.3g} s"
    parts = [(int(left // 86400), "d"), (int(left // 3600 % 24), "h"), (int(left // 60 % 60), "min"), (int(left % 60), "s")]
    first = next(i for i, (n, _) in enumerate(parts) if n)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2] if n)


def facts_of(config, job, err_tail=()):
    """Return what a template may use: placeholder -> text, "" where nothing is known."""
    keys = ("exit", "cause", "reason", "began", "ended", "id", "submitted")
    facts = {key: model.one_line("" if (value := job.fields.get(key)) is None else value) for key in keys}
    user, experiment = _user_and_rest(job.job)
    facts |= {"tree": job.tree, "user": model.one_line(user), "experiment": model.one_line(experiment), "state": job.marker}
    facts |= {"host": model.one_line(job.fields.get("host") or job.host or ""), "attempt": str(job.attempt)}
    facts["ran"] = duration(job.fields.get("seconds"))
    facts["on_host"] = facts["host"] and f" on {facts['host']}"
    told = (facts["cause"], facts["exit"] and f"exit code {facts['exit']}", facts["ran"] and f"ran {facts['ran']}", facts["reason"])
    facts["facts"] = (text := ", ".join(filter(None, dict.fromkeys(told)))) and f" ({text})"
    facts["cause_words"], facts["advice"] = CAUSE_WORDS.get(facts["cause"], OTHER_CAUSE)
    facts["error_lines"] = "\n".join("  " + model.printable(line, 200) for line in err_tail)
    quoted = {"tree": job.tree, "user": user, "experiment": experiment}
    facts["link"] = fill(config["mail"]["link"] or "", **{k: urllib.parse.quote(v, safe="") for k, v in quoted.items()})
    return facts | _places(config, job) | {"unfinished": _unfinished(job)}


def _places(config, job):
    """Return where the files are, and the command that runs the job again where its user can."""
    mirror = f"  in the mirror: {model.printable(job.dir, 2000)}"
    tree = config["tree"].get(job.tree) or {}
    host = tree.get("web") or ""
    if not host:
        return {"files": mirror, "again": f"  touch {shlex.quote(model.printable(f'{job.dir}/PENDING', 2000))}"}
    root = (config["host"].get(host) or {}).get("root") or "compties"
    web = model.printable(f"{root}/{(tree.get('path') or {}).get(host, 'user_data')}/{job.job}", 2000)
    return {"files": f"  on {host}: {web}\n{mirror}", "again": f"  touch {shlex.quote(web + '/PENDING')}   (on {host})"}


def _unfinished(job):
    """Return a warning if rules before this one gave up; job.ended: rule, or rule@state, -> how it ended."""
    how_ended = {tuple(key.partition("@")[::2]): how for key, how in (job.ended or {}).items()}
    here = {rule: how for (rule, state), how in how_ended.items() if state in ("", job.marker) and rule != "mail"}
    late = [model.one_line(rule) for rule, how in here.items() if how not in FINISHED]
    return late and f"Not everything could be finished yet ({', '.join(late)}): something may still be missing on the web host." or ""


def compose(config, job, form, now, err_tail=(), own=None):
    """Return (Letter or None, lines for the log): what the user of an ended job is told. Pure.

    `config` is the whole plain configuration; `form` is a letterforms.Form; `now` an aware datetime; `err_tail` the last
    lines of the job's error output; `own` the text of its address file. None: nobody is to be told. Raises Rejected.
    """
    mail, user = config["mail"], model.user_of(job.job)
    chosen, notes = choose_address(mail, user, own)
    if not chosen and not mail["cc"]:
        return None, (*notes, f"no mail for {model.printable(user)}: [mail] to has no address for this user")
    subject, text, page = letterforms.fill(form, facts_of(config, job, err_tail))
    name = ".".join([*(_safe(part, 60) for part in (*_user_and_rest(job.job), str(job.attempt), _id(job.token))), "eml"])
    return letter(mail, [chosen] if chosen else [], named_addresses(mail["cc"]), subject, (text, page), now, job.token, name), notes


def compose_notice(mail, subject, text, now, key):
    """Return the Letter to `[mail] admin`, None if there is no admin; the same `key` (text) gives the same Message-ID. Pure."""
    if not (admins := named_addresses(mail["admin"])):
        return None
    token = "notice-" + hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:24]
    return letter(mail, admins, (), subject or "watchties: a notice", (text, ""), now, token, f"{token}.eml")


def letter(mail, to, cc, subject, parts, now, token, name):
    """Return the Letter with all its headers; no value can begin a header of its own. parts: text, and HTML or ""."""
    sender = named_addresses(mail["from"] or DEFAULT_FROM)[0]
    bare = [a.addr_spec for a in (sender, *to, *cc)]
    message = EmailMessage(email.policy.SMTP.clone(utf8=not all(a.isascii() for a in bare), cte_type="7bit"))
    message["From"], message["To"] = sender, tuple(to or cc)
    if to and cc:
        message["Cc"] = tuple(cc)
    message["Subject"] = model.printable(model.one_line(subject), MAX_SUBJECT)
    message["Date"] = format_datetime(now)
    message["Message-ID"] = f"<watchties.{_id(token)}@{sender.domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation answers, please
    if parts[1]:
        _set_alternatives(message, parts, f"=_watchties_{_id(token)}")
    else:
        message.set_content(parts[0], cte="quoted-printable")
    to, cc = (to, cc) if to else (cc, ())
    return Letter(message, sender.addr_spec, tuple(a.addr_spec for a in to), tuple(a.addr_spec for a in cc), name)


def _set_alternatives(message, parts, boundary):
    """Give a message its text and its HTML, the best last (RFC 2046, 5.1.4). By hand: the library takes a millisecond for it."""
    body = []
    for subtype, text in zip(("plain", "html"), parts):
        coded = binascii.b2a_qp(text.encode("utf-8", "replace")).decode("ascii")
        head = f'Content-Type: text/{subtype}; charset="utf-8"\nContent-Transfer-Encoding: quoted-printable\n'
        body.append(f"--{boundary}\n{head}\n{coded}\n")
    message["MIME-Version"], message["Content-Type"] = "1.0", f'multipart/alternative; boundary="{boundary}"'
    message.set_payload("".join([*body, f"--{boundary}--\n"]).replace("\n", "\r\n"))


def _id(token):
    return token if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", token) else hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()[:32]


def _user_and_rest(job):
    user, _, rest = job.partition("/")
    return user, rest or user


def _safe(text, limit):
    """Return text as a part of a file name: letters, digits and few signs, `limit` bytes at most."""
    return re.sub(r"[^\w@+=-]", "_", text).encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
