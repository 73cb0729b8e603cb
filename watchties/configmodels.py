"""The tables of a configuration: their keys, types, defaults, and what a value may be.

Knows: what each key may hold, one value at a time (with config.py the only module that imports pydantic, 90 ms).
Must not know: files, how tables fit together (configcheck.py), or what is done with a value.

Durations are float seconds, sizes int bytes. Attributes are the keys of the tables; only `[mail] from` is `sender` here.
"""

import os
import posixpath
import re
import shlex
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from watchties import configcheck, configfiles
from watchties.configfiles import show
from watchties.units import duration

USER_DATA = "user_data"  # where a tree lies under a host's root, if nothing is said
SHELL_RUNNING = 4  # how many CPUs a far host has is not known here; four small jobs hurt no machine of today
TRANSFER_RATE = re.compile(r"[0-9]+(\.[0-9]+)?([KMGkmg]([Ii]?[Bb])?|[Bb])")  # rsync(1), --bwlimit
CHMOD = re.compile(r"[DF]?([0-7]{3,4}|[ugoa]*[-+=][rwxXst]*)(,[DF]?([0-7]{3,4}|[ugoa]*[-+=][rwxXst]*))*")  # rsync(1), --chmod
BARE_ADDRESS = r"[^<>@,\s\x00-\x1f\x7f]+@[^<>@,\s\x00-\x1f\x7f]+"


def _above_zero(seconds):
    if seconds <= 0:
        raise ValueError('must be more than nothing; write "1s" or more')
    return seconds


def _matching(pattern, what):
    """Return a check that the whole of a text is like `pattern`; `what` says what it must be, and what to do."""

    def check(value):
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{show(value)} is not {what}")
        return value

    return AfterValidator(check)


def _once_each(values):
    if twice := next((value for number, value in enumerate(values) if value in values[:number]), None):
        raise ValueError(f"{show(twice)} stands twice; write it once")
    return values


def _local_path(text):
    path = os.path.expanduser(text)
    if not os.path.isabs(path) or re.search(r"[\x00-\x1f\x7f]", path):
        raise ValueError(f"{show(text)} is not absolute; begin with / or ~/")
    return os.path.normpath(path)


def _host_root(text):
    """Return a path as `cd` takes it in the home of a login: quoted there, so that a ~ in front must go."""
    path = posixpath.normpath(re.sub("^~(/+|$)", "", text) or ".")
    if not text or path.startswith(("~", "//")) or path == "/" or ".." in path.split("/") or re.search(r"[\x00-\x1f\x7f]", path):
        raise ValueError(f'{show(text)} is not a directory below the home of the login; write "compties", or begin with /')
    return path


def _inside(text):
    """Return a path below some directory: relative, without `..`, normalised."""
    path = posixpath.normpath(text)
    if not text or path.startswith(("/", "-", "~")) or path.split("/")[0] in (".", "..") or re.search(r"[\x00-\x1f\x7f]", path):
        raise ValueError(f"{show(text)} is not a plain relative path; write it without / or - in front, and without ..")
    return path


def _filled(*words):
    """Return a check that a pattern has no {word} but these; there is no way to write a brace as such."""

    def check(text):
        left = re.sub("{(" + "|".join(words) + ")}", "", text)
        if found := re.search(r"{([^{}]*)}", left):
            near, known = configfiles.nearest(found[1], words), " ".join(f"{{{word}}}" for word in words)
            hint = f"did you mean {{{near}}}?" if near else f"there is {known}"
            raise ValueError(f"{configfiles.printable(found[0])} means nothing here; {hint}")
        if re.search("[{}]", left):
            raise ValueError(f"{show(text)} has a brace without its partner; take it out")
        return text

    return check


def _ssh_option(text):
    """Return one of `ssh_options`: a line as in ssh_config(5), or options as on a command line."""
    try:
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9]*[ =].+", text) or (text.startswith("-") and shlex.split(text)):
            return text
    except ValueError:  # a quotation mark without its partner
        pass
    raise ValueError(f'{show(text)} is no option of ssh; write each like "Port=2222" or "-p 2222"')


def _recipients(value):
    """Check both kinds of `to` here: the errors of a union would be told twice, once for each."""
    addresses = (
        [_to_pattern(value).replace("{user}", "user")] if isinstance(value, str) else value.values() if isinstance(value, dict) else [""]
    )
    if not all(isinstance(address, str) and re.fullmatch(BARE_ADDRESS, address) for address in addresses):
        raise ValueError('is neither a pattern nor a table of addresses; write "{user}@example.org" or { ann = "ann@example.org" }')
    return value


_to_pattern = _filled("user")
Duration = Annotated[float, BeforeValidator(duration), AfterValidator(_above_zero)]
Pause = Annotated[float, BeforeValidator(duration)]  # may be "0s"
LocalPath = Annotated[str, AfterValidator(_local_path)]
Inside = Annotated[str, AfterValidator(_inside)]
Text = Annotated[str, Field(min_length=1)]
Line = Annotated[str, _matching(r"[^\x00-\x1f\x7f\x85\u2028\u2029]+", "one line of text; take out what breaks it")]
Count = Annotated[int, Field(ge=1)]
OnMarker = Annotated[str, AfterValidator(configcheck.on_marker)]


# What goes onto the command line of ssh or rsync is a closed form: nothing there may look like an option or hold a blank.
Login = Annotated[str, _matching(r"[^-\s\x00-\x1f\x7f][^\s\x00-\x1f\x7f]*", "what ssh can call; leave the key out for this machine")]
UserName = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?", "a user's name; write it as it stands in /etc/passwd")]
Mode = Annotated[str, _matching(CHMOD, 'a mode that rsync --chmod takes; write it such as "D2775,F664"')]
Rate = Annotated[str, _matching(TRANSFER_RATE, 'a rate that rsync --bwlimit takes; write it with a unit, such as "10M"')]

Address = Annotated[
    str, _matching(f"{BARE_ADDRESS}|[^<>@,\\x00-\\x1f]*<{BARE_ADDRESS}>", 'an address; write "ann@example.org" or "Ann <ann@example.org>"')
]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Named(_Table):
    _name: str = PrivateAttr(default="")

    @property
    def name(self):
        """The NAME in the table's heading."""
        return self._name


class Resources(_Table):
    """What a job gets, or may ask for at most; None: the scheduler's own default, or no limit."""

    cores: Count | None = None
    memory: ByteSize | None = None
    walltime: Duration | None = None
    queue: Line | None = None
    account: Line | None = None


class Caps(_Table):
    cores: Count | None = None
    memory: ByteSize | None = None
    walltime: Duration | None = None


class Host(_Named):
    role: Literal["web", "compute"] = Field(examples=["web"])
    ssh: Login | None = None
    root: Annotated[str, AfterValidator(_host_root)] = "compties"
    become: UserName | None = None
    trigger: Literal["relay", "poll"] = "relay"
    poll: Duration = 30.0
    ssh_options: list[Annotated[Line, AfterValidator(_ssh_option)]] = []
    chmod: Mode | None = None
    bwlimit: Rate | None = None
    scheduler: str | None = None
    setup: Text | None = None
    max_running: Count | None = None
    submit_options: list[Line] = []
    resources: Resources = Resources()
    caps: Caps = Caps()

    @model_validator(mode="before")
    @classmethod
    def _shell_has_no_queue(cls, data):
        return {"max_running": SHELL_RUNNING, **data} if data.get("role") == "compute" and data.get("scheduler") == "shell" else data


class Success(_Table):
    stderr_empty: bool = False
    require: list[Inside] = []
    forbid: list[Inside] = []


class Limits(_Table):
    size: ByteSize | None = None
    files: Count | None = None


class Tree(_Named):
    root: LocalPath = Field(examples=["~/compties/user_data"])
    jobs: Annotated[str, AfterValidator(configcheck.job_pattern)] = "*/*"
    web: str = Field(examples=["vision"])
    compute: Annotated[list[str], Field(min_length=1), AfterValidator(_once_each)] = Field(examples=[["b01"]])
    failover: bool = True
    path: dict[str, Inside] = {}
    backend: Literal["auto", "inotify", "polling"] = "auto"
    resubmit_lost: Annotated[int, Field(ge=0)] = 0
    success: Success = Success()
    limits: Limits = Limits()

    @model_validator(mode="before")
    @classmethod
    def _every_host_has_a_path(cls, data):
        web, compute, path = data.get("web"), data.get("compute"), data.get("path", {})
        if not isinstance(path, dict) or not isinstance(compute, list):
            return data
        hosts = [name for name in [web, *compute] if isinstance(name, str)]
        return {**data, "path": {**dict.fromkeys(hosts, USER_DATA), **path}}

    def hosts(self):
        """Return the names of the tree's hosts, the web host first."""
        return [self.web, *self.compute]


class Retry(_Table):
    first: Duration = 10.0
    maximum: Duration = 900.0
    give_up_after: Duration = 3 * 86400.0

    @model_validator(mode="after")
    def _rises(self):
        if self.first > self.maximum:
            raise ValueError("first is longer than maximum; make it shorter")
        return self


class Rule(_Table):
    name: str = Field(examples=["pull"])
    on: Annotated[list[OnMarker], AfterValidator(_once_each)] = Field(examples=[["mirror:DONE"]])
    then: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), AfterValidator(_once_each)] = []
    after: Annotated[list[str], AfterValidator(_once_each)] = []
    hook: Text = ""
    batch: Count = 1
    parallel: Count = 1
    alone_above: ByteSize | None = None
    timeout: Duration = 3600.0
    retry: Retry = Retry()

    @model_validator(mode="before")
    @classmethod
    def _hook_is_named_like_the_rule(cls, data):
        return {"hook": data["name"], **data} if isinstance(data.get("name"), str) else data

    @field_validator("hook")
    @classmethod
    def _file_name_or_path(cls, text):
        if "/" in text or text.startswith("~"):
            return _local_path(text)
        if text.startswith((".", "-")) or re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError(f"{show(text)} is no file name; write the name of a file in hooks, or a path that begins with / or ~/")
        return text


class Mail(_Table):
    server: Line | None = None
    port: Annotated[int, Field(ge=1, le=65535)] = 25
    starttls: bool = False
    user: Line | None = None
    password_file: LocalPath | None = None
    sendmail: Line | None = None
    folder: LocalPath | None = None
    sender: Address | None = Field(default=None, alias="from")
    to: Annotated[str | dict[str, str] | None, BeforeValidator(_recipients)] = None
    email_file: Inside | None = None
    cc: list[Address] = []
    admin: Address | None = None
    link: Annotated[Line, AfterValidator(_filled("tree", "user", "experiment"))] | None = None
    templates: LocalPath | None = None


class Daemon(_Table):
    reconcile: Duration = 300.0
    heartbeat: Duration = 15.0
    stop_timeout: Duration = 30.0
    host_down_notice: Duration = 900.0
    grace: Pause = 60.0
    disk_floor: ByteSize = ByteSize(10**9)
    log_keep: Duration = 30 * 86400.0
    journal_keep: Duration = 90 * 86400.0
