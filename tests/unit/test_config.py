"""Configuration: every kind of mistake has its exact line, all are told at once, and what is shipped loads."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from watchties import config, configcheck, configmodels
from watchties.errors import ConfigError, UserError

SHIPPED = Path(__file__).parents[2] / "conf.d"
RULES = (SHIPPED / "30-rules.toml").read_text()
BASE = {
    "10-hosts.toml": '[host.vision]\nrole = "web"\nssh = "vision"\n\n[host.b01]\nrole = "compute"\nssh = "b01"\nscheduler = "shell"\n',
    "20-trees.toml": '[tree.main]\nroot = "~/mirror"\nweb = "vision"\ncompute = ["b01"]\n',
    "30-rules.toml": RULES,
    "40-mail.toml": '[mail]\nfolder = "/var/tmp/mail"\nadmin = "root@localhost"\n',
    "50-daemon.toml": "[daemon]\n",
}
HOST, TREE, MAIL, DAEMON = "10-hosts.toml", "20-trees.toml", "40-mail.toml", "50-daemon.toml"
SERVER = 'server = "smtp"\nfrom = "w@x"\n'


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Make a home of our own, so that no path of the one who tests is looked at."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def write(directory, files):
    directory.mkdir(mode=0o755, exist_ok=True)
    directory.chmod(0o755)
    for name, text in files.items():
        (directory / name).write_text(text) if isinstance(text, str) else (directory / name).write_bytes(text)
        (directory / name).chmod(0o644)
    return directory


def load(directory, files):
    return config.load(write(directory, files))


def problems(directory, files):
    """Return the problems of a configuration, with DIR for its directory and HOME for our home."""
    with pytest.raises(ConfigError) as caught:
        load(directory, files)
    home = os.path.expanduser("~")
    return [line.replace(str(directory), "DIR").replace(home, "HOME") for line in caught.value.problems]


@pytest.fixture
def conf(tmp_path):
    return tmp_path / "conf.d"


def rule(text):
    return {"60-own.toml": f"[[rule]]\n{text}"}


def rules(old, new):
    assert old in RULES
    return {"30-rules.toml": RULES.replace(old, new, 1)}


def more(file, text):
    return {file: BASE[file] + text}


def swap(file, old, new):
    assert old in BASE[file]
    return {file: BASE[file].replace(old, new, 1)}


PLOTS = 'name = "plots"\non = ["mirror:DONE"]\n'
OWN = "DIR/60-own.toml: [[rule]] plots"
H, V, T, M, D = (
    f"DIR/{HOST}: [host.b01]",
    f"DIR/{HOST}: [host.vision]",
    f"DIR/{TREE}: [tree.main]",
    f"DIR/{MAIL}: [mail]",
    f"DIR/{DAEMON}: [daemon]",
)
R = "DIR/30-rules.toml: [[rule]]"
SECOND = '[tree.two]\nroot = "~/two"\nweb = "vision"\ncompute = ["b01"]\npath = { vision = "two", b01 = "two" }\n'
T2 = f"DIR/{TREE}: [tree.two]"

MISTAKES = {
    # keys and values of one table
    "unknown key": (more(HOST, 'pol = "5s"\n'), f'{H} pol: unknown key; did you mean "poll"?'),
    "unknown key, none near": (
        more(DAEMON, "zzz = 1\n"),
        f"{D} zzz: unknown key; there are reconcile, heartbeat, stop_timeout, host_down_notice, grace, disk_floor, log_keep, journal_keep",
    ),
    "unknown key within": (more(TREE, "[tree.main.limits]\nsizes = 1\n"), f'{T} limits.sizes: unknown key; did you mean "size"?'),
    "our word for from": (more(MAIL, 'sender = "x"\n'), f'{M} sender: unknown key; did you mean "server"?'),
    "missing": (swap(TREE, 'web = "vision"\n', ""), f'{T} web: is missing; add it, such as web = "vision"'),
    "one of two": (swap(HOST, '"web"', '"wbe"'), f'{V} role: "wbe" is none of "web", "compute"; did you mean "web"?'),
    "one of two, none near": (more(HOST, "trigger = 1\n"), f'{H} trigger: 1 is none of "relay", "poll"; write one of them'),
    "number for text": (more(HOST, "setup = 5\n"), f"{H} setup: is 5; write text, in quotes"),
    "text for number": (more(HOST, 'max_running = "5"\n'), f'{H} max_running: is "5"; write a whole number, without quotes'),
    "text for yes or no": (more(TREE, 'failover = "no"\n'), f'{T} failover: is "no"; write true or false, without quotes'),
    "text for list": (swap(TREE, '["b01"]', '"b01"'), f'{T} compute: is "b01"; write a list, such as ["one", "two"]'),
    "item of a list": (more(HOST, 'ssh_options = ["-4", 2]\n'), f"{H} ssh_options (item 2): is 2; write text, in quotes"),
    "text for path": (more(TREE, 'path = "x"\n'), f'{T} path: is "x"; write a table, such as {{ key = value }}'),
    "text for limits": (more(TREE, 'limits = "x"\n'), f'{T} limits: is "x"; write a table, such as {{ key = value }}'),
    "too small": (more(HOST, "max_running = 0\n"), f"{H} max_running: 0 is too small; write 1 or more"),
    "too large": (swap(MAIL, 'folder = "/var/tmp/mail"', SERVER + "port = 70000"), f"{M} port: 70000 is too large; write 65535 or less"),
    "empty text": (more(HOST, 'setup = ""\n'), f"{H} setup: is empty; fill it in, or leave the key out"),
    "empty list": (swap(TREE, '["b01"]', "[]"), f"{T} compute: is empty; name at least one"),
    "twice": (swap(TREE, '["b01"]', '["b01", "b01"]'), f'{T} compute: "b01" stands twice; write it once'),
    "plain number": (more(HOST, "poll = 30\n"), f'{H} poll: 30 is a plain number; add a unit, such as "30s" or "30m"'),
    "no duration": (
        more(HOST, 'poll = "5 minutes"\n'),
        f'{H} poll: "5 minutes" is no duration; write a number and s, m, h or d, such as "90s", "5m", "2h"',
    ),
    "nothing": (more(HOST, 'poll = "0s"\n'), f'{H} poll: must be more than nothing; write "1s" or more'),
    "for ever": (more(DAEMON, 'log_keep = "4000d"\n'), f'{D} log_keep: "4000d" is longer than ten years; write at most "3650d"'),
    "no size": (
        more(DAEMON, 'disk_floor = "big"\n'),
        f'{D} disk_floor: "big" is no size; write a number and a unit, such as "500MB" or "2GiB"',
    ),
    "no unit": (
        more(DAEMON, 'disk_floor = "1 XB"\n'),
        f'{D} disk_floor: "1 XB" is no size, as no unit is called XB; write it such as "500MB" or "2GiB"',
    ),
    "ssh option": (
        swap(HOST, '"b01"', '"-oProxyCommand=x"'),
        f'{H} ssh: "-oProxyCommand=x" is not what ssh can call; leave the key out for this machine',
    ),
    "become": (more(HOST, 'become = "a b"\n'), f'{H} become: "a b" is not a user\'s name; write it as it stands in /etc/passwd'),
    "root of host": (
        more(HOST, 'root = "../x"\n'),
        f'{H} root: "../x" is not a directory below the home of the login; write "compties", or begin with /',
    ),
    "chmod": (more(HOST, 'chmod = "rw"\n'), f'{H} chmod: "rw" is not a mode that rsync --chmod takes; write it such as "D2775,F664"'),
    "bwlimit": (
        more(HOST, 'bwlimit = "10"\n'),
        f'{H} bwlimit: "10" is not a rate that rsync --bwlimit takes; write it with a unit, such as "10M"',
    ),
    "line break": (
        more(HOST, 'ssh_options = ["a\\nb"]\n'),
        f'{H} ssh_options (item 1): "a\\nb" is not one line of text; take out what breaks it',
    ),
    "mirror": (swap(TREE, '"~/mirror"', '"mirror"'), f'{T} root: "mirror" is not absolute; begin with / or ~/'),
    "pattern **": (
        more(TREE, 'jobs = "*/**"\n'),
        f'{T} jobs: "*/**" has the part "**"; write names and * between single slashes, such as "*/*"',
    ),
    "pattern empty": (
        more(TREE, 'jobs = "*//*"\n'),
        f'{T} jobs: "*//*" has the part ""; write names and * between single slashes, such as "*/*"',
    ),
    "pattern ..": (
        more(TREE, 'jobs = "*/.."\n'),
        f'{T} jobs: "*/.." has the part ".."; write names and * between single slashes, such as "*/*"',
    ),
    "path out of root": (
        more(TREE, 'path = { b01 = "../x" }\n'),
        f'{T} path.b01: "../x" is not a plain relative path; write it without / or - in front, and without ..',
    ),
    "retry": (rule(PLOTS + 'retry = { first = "1h" }\n'), f"{OWN} retry: first is longer than maximum; make it shorter"),
    "hook": (rule(PLOTS + 'hook = "x/y"\n'), f'{OWN} hook: "x/y" is not absolute; begin with / or ~/'),
    "hidden hook": (
        rule(PLOTS + 'hook = ".x"\n'),
        f'{OWN} hook: ".x" is no file name; write the name of a file in hooks, or a path that begins with / or ~/',
    ),
    # hosts
    "compute only": (
        swap(HOST, 'role = "web"\n', 'role = "web"\nsetup = "x"\n'),
        f'{V} setup: is only for a compute host; take it out, or set role = "compute"',
    ),
    "no scheduler": (swap(HOST, 'scheduler = "shell"\n', ""), f'{H} scheduler: is missing; add it, such as scheduler = "shell"'),
    "scheduler": (swap(HOST, '"shell"', '"shel"'), f'{H} scheduler: "shel" is no scheduler known here; did you mean "shell"?'),
    "above the cap": (
        more(HOST, "resources = { cores = 8 }\ncaps = { cores = 4 }\n"),
        f"{H} resources.cores: is above caps.cores; lower it, or raise the cap",
    ),
    # trees
    "web unknown": (swap(TREE, '"vision"', '"visoin"'), f'{T} web: no host is called "visoin"; did you mean "vision"?'),
    "compute unknown": (swap(TREE, '"b01"', '"elgato"'), f'{T} compute: no host is called "elgato"; add [host.elgato]'),
    "web is compute": (
        {TREE: BASE[TREE].replace('"vision"', '"b01"')},
        f'{T} web: host b01 has role "compute"; name a host with role = "web"',
    ),
    "compute is web": (swap(TREE, '"b01"', '"vision"'), f'{T} compute: host vision has role "web"; name a host with role = "compute"'),
    "path of stranger": (more(TREE, 'path = { b1 = "x" }\n'), f'{T} path.b1: "b1" is no host of this tree; did you mean "b01"?'),
    "path of programs": (
        more(TREE, 'path = { b01 = "bin/x" }\n'),
        f'{T} path.b01: "bin/x" is where our programs lie; name another, such as "user_data"',
    ),
    "shared on a host": (
        more(TREE, SECOND.replace('vision = "two"', 'vision = "user_data"')),
        f"{T2} path.vision: compties/user_data on host vision is the same directory as compties/user_data on host vision"
        f" of [tree.main] in DIR/{TREE}; give each a directory of its own",
    ),
    "nested on a host": (
        more(TREE, SECOND.replace('b01 = "two"', 'b01 = "user_data/two"')),
        f"{T2} path.b01: compties/user_data/two on host b01 and compties/user_data lie in one another: it is on host b01"
        f" of [tree.main] in DIR/{TREE}; give each a directory of its own",
    ),
    "nested mirrors": (
        more(TREE, SECOND.replace("~/two", "~/mirror/x/../two")),
        f"{T2} root: HOME/mirror/two in the mirror and HOME/mirror lie in one another: it is in the mirror"
        f" of [tree.main] in DIR/{TREE}; give each a directory of its own",
    ),
    "host is the mirror": (
        {HOST: BASE[HOST].replace('ssh = "b01"\n', ""), TREE: BASE[TREE].replace("~/mirror", "~/compties/user_data")},
        f"{T} path.b01: HOME/compties/user_data on host b01 is the same directory as HOME/compties/user_data in the mirror"
        " of this tree; give each a directory of its own",
    ),
    "mirror in our state": (
        swap(TREE, "~/mirror", "~/.local/state/watchties/m"),
        f"{T} root: HOME/.local/state/watchties/m and watchties' own HOME/.local/state/watchties"
        " lie in one another; choose a mirror elsewhere",
    ),
    "our state in the mirror": (
        swap(TREE, "~/mirror", "~/"),
        f"{T} root: HOME and watchties' own HOME/.local/state/watchties lie in one another; choose a mirror elsewhere",
    ),
    "no tree": ({TREE: ""}, "DIR: [tree.NAME]: is missing; add one, or nothing is watched"),
    # rules
    "no colon": (rule('name = "plots"\non = ["DONE"]\n'), f'{OWN} on (item 1): "DONE" is not PLACE:MARKER; write it such as "mirror:DONE"'),
    "no place": (rule('name = "plots"\non = ["miror:DONE"]\n'), f'{OWN} on (item 1): "miror" is no place; did you mean "mirror"?'),
    "no marker": (rule('name = "plots"\non = ["mirror:Done"]\n'), f'{OWN} on (item 1): "Done" is no marker; did you mean "DONE"?'),
    "no sense on compute": (
        rule('name = "plots"\non = ["compute:PENDING"]\n'),
        f'{OWN} on (item 1): "compute:PENDING" makes no sense; on a compute host only DONE and FAILED appear',
    ),
    "no sense on web": (
        rule('name = "plots"\non = ["mirror:DONE", "web:DONE"]\n'),
        f'{OWN} on (item 2): "web:DONE" makes no sense; on a web host only PENDING and CANCEL are watched;'
        ' after a push comes on = ["mirror:DONE"] with after = ["push"]',
    ),
    "never": (rule('name = "plots"\non = []\n'), f'{OWN} on: is empty, so that it never starts; name a marker, such as "mirror:DONE"'),
    "own then": (rule(PLOTS + 'then = "mirror:DONE"\n'), f"{OWN} then: only watchties' own rules publish a marker; take it out"),
    "wrong then": (
        rules('"mirror:PENDING"', '"mirror:SUBMITTED"'),
        f'{R} pull then: must be ["mirror:PENDING"] for this rule of watchties\' own; put it back',
    ),
    "no then": (
        rules('then = "mirror:SUBMITTED"\n', ""),
        f'{R} submit then: must be ["mirror:SUBMITTED"] for this rule of watchties\' own; put it back',
    ),
    "then of push": (rules('after = ["push"]\n', 'then = "mirror:DONE"\n'), f"{R} mail then: this rule publishes nothing; take it out"),
    "wrong on": (
        rules('["web:PENDING"]', '["mirror:CANCEL"]'),
        f'{R} pull on: must be ["web:PENDING"] for this rule of watchties\' own; put it back',
    ),
    "notice on": (rules("on = []", 'on = ["mirror:DONE"]'), f"{R} notice on: must be [] for this rule of watchties' own; put it back"),
    "built-in missing": (
        rules('name = "report"', 'name = "reports"'),
        "DIR: [[rule]] report: is missing; copy it from the 30-rules.toml that came with watchties",
    ),
    "after unknown": (rule(PLOTS + 'after = ["pussh"]\n'), f'{OWN} after: no rule is called "pussh"; did you mean "push"?'),
    "after notice": (rule(PLOTS + 'after = ["notice"]\n'), f"{OWN} after: notice never ends for a job; take it out"),
    "after itself": (rule(PLOTS + 'after = ["plots"]\n'), f"{OWN} after: no end: plots waits for plots; take one of these out"),
    "circle": (
        {**rules('after = ["push"]', 'after = ["plots"]'), **rule(PLOTS + 'after = ["mail"]\n')},
        f"{R} mail after: no end: mail waits for plots, plots waits for mail; take one of these out",
    ),
    "no name of a rule": (
        rule('on = ["mirror:DONE"]\n'),
        'DIR/60-own.toml: [[rule]] number 1 name: is missing; add it, such as name = "pull"',
    ),
    "bad name of a rule": (
        rule('name = "a b"\non = ["mirror:DONE"]\n'),
        'DIR/60-own.toml: [[rule]] a b name: "a b" is no name; use letters, digits, - and _, and begin with a letter or digit',
    ),
    # mail
    "two ways": (more(MAIL, 'sendmail = "x"\nfrom = "w@x"\n'), f"{M}: sendmail and folder exclude one another; keep one"),
    "port without server": (more(MAIL, "port = 25\n"), f"{M} port: is only for a server; set server, or take it out"),
    "no from": (swap(MAIL, "folder", "sendmail"), f'{M} from: is missing; add it, such as from = "watchties@example.org"'),
    "no password": (
        swap(MAIL, 'folder = "/var/tmp/mail"', SERVER + 'user = "w"'),
        f"{M} password_file: is missing; a login needs both user and password_file",
    ),
    "no password file": (
        swap(MAIL, 'folder = "/var/tmp/mail"', SERVER + 'user = "w"\npassword_file = "~/none"'),
        f"{M} password_file: HOME/none cannot be looked at (No such file or directory); write the password into it and chmod 600 it",
    ),
    "pattern of to": (more(MAIL, 'to = "{usr}@x"\n'), f"{M} to: {{usr}} means nothing here; did you mean {{user}}?"),
    "pattern of link": (
        more(MAIL, 'link = "http://{}"\n'),
        f"{M} link: {{}} means nothing here; there is {{tree}} {{user}} {{experiment}}",
    ),
    "attribute in a pattern": (more(MAIL, 'to = "{user.x}"\n'), f"{M} to: {{user.x}} means nothing here; did you mean {{user}}?"),
    "conversion in a pattern": (
        more(MAIL, 'to = "{user!r}"\n'),
        f"{M} to: {{user!r}} means nothing here; did you mean {{user}}?",
    ),
    "ssh option without a value": (
        more(HOST, 'ssh_options = ["-p 22", "2222"]\n'),
        f'{H} ssh_options (item 2): "2222" is no option of ssh; write each like "Port=2222" or "-p 2222"',
    ),
    "no address": (
        swap(MAIL, "root@localhost", "a@x, b@x"),
        f'{M} admin: "a@x, b@x" is not an address; write "ann@example.org" or "Ann <ann@example.org>"',
    ),
    "to without @": (
        more(MAIL, 'to = "{user}"\n'),
        f'{M} to: is neither a pattern nor a table of addresses; write "{{user}}@example.org" or {{ ann = "ann@example.org" }}',
    ),
    "line break in an address": (
        more(MAIL, 'to = { ann = "a\\nBcc: b" }\n'),
        f'{M} to: is neither a pattern nor a table of addresses; write "{{user}}@example.org" or {{ ann = "ann@example.org" }}',
    ),
    "yes for a duration": (
        more(HOST, "poll = true\n"),
        f'{H} poll: true is no duration; write a number and s, m, h or d, such as "90s", "5m", "2h"',
    ),
    "brace": (more(MAIL, 'to = "{user"\n'), f'{M} to: "{{user" has a brace without its partner; take it out'),
    "to": (
        more(MAIL, "to = [1]\n"),
        f'{M} to: is neither a pattern nor a table of addresses; write "{{user}}@example.org" or {{ ann = "ann@example.org" }}',
    ),
    # files and tables
    "table": ({"60.toml": "[hosts.x]\n"}, "DIR/60.toml: [hosts]: unknown table; did you mean [host.NAME]?"),
    "table, none near": (
        {"60.toml": "[zzz]\n"},
        "DIR/60.toml: [zzz]: unknown table; there are [host.NAME], [tree.NAME], [[rule]], [mail], [daemon]",
    ),
    "no table": ({"60.toml": "poll = 1\n"}, "DIR/60.toml: poll: stands outside of any table; move it below a heading such as [daemon]"),
    "no name": ({"60.toml": '[host]\nrole = "web"\n'}, "DIR/60.toml: [host] role: is no table; write [host.NAME]"),
    "one bracket": ({"60.toml": '[rule]\nname = "x"\n'}, "DIR/60.toml: [rule]: is not written so; write [[rule]]"),
    "two brackets": ({DAEMON: "", "60.toml": "[[daemon]]\n"}, "DIR/60.toml: [daemon]: is not written so; write [daemon]"),
    "bad name": (
        {"60.toml": '[host."-x"]\nrole = "web"\n'},
        'DIR/60.toml: [host.-x]: "-x" is no name; use letters, digits, - and _, and begin with a letter or digit',
    ),
    "host twice": ({"60.toml": '[host.b01]\nrole = "web"\n'}, f"DIR/60.toml: [host.b01]: stands in DIR/{HOST} too; keep one of the two"),
    "tree in two": (
        {"60.toml": SECOND.replace("two", "main", 1)},
        f"DIR/60.toml: [tree.main]: stands in DIR/{TREE} too; keep one of the two",
    ),
    "mail in two": ({"60.toml": "[mail]\n"}, f"DIR/60.toml: [mail]: stands in DIR/{MAIL} too; keep one of the two"),
    "rule in two": (
        rule('name = "pull"\non = ["web:PENDING"]\n'),
        "DIR/60-own.toml: [[rule]] pull: stands in DIR/30-rules.toml too; keep one of the two",
    ),
    "rule twice": (rule(PLOTS + "[[rule]]\n" + PLOTS), f"{OWN}: stands earlier in this file too; keep one of the two"),
    "syntax": ({"60.toml": "\n[mail\n"}, "DIR/60.toml:2: not TOML: Expected ']' at the end of a table declaration; put it right"),
    "syntax at the end": ({"60.toml": '\n\na = "'}, "DIR/60.toml:3: not TOML: Unterminated string; put it right"),
    "twice in a file": ({"60.toml": "[host.x]\n[host.x]\n"}, "DIR/60.toml:2: not TOML: Cannot declare ('host', 'x') twice; put it right"),
    "no UTF-8": ({"60.toml": b"# ok\n# \xff\n"}, "DIR/60.toml:2: is not valid UTF-8; save the file as UTF-8"),
}


def test_base_is_right(conf):
    assert load(conf, BASE).warnings == []


@pytest.mark.parametrize("change, line", MISTAKES.values(), ids=list(MISTAKES))
def test_one_mistake_one_line(conf, change, line):
    assert problems(conf, {**BASE, **change}) == [line]


def test_all_mistakes_at_once_in_the_order_of_the_files(conf):
    """Syntax errors, unknown keys, bad values and what does not fit together hide none of one another."""
    files = dict(BASE)
    files[HOST] += "pol = 1\npoll = 30\nmax_running = 0\n"
    files[TREE] = files[TREE].replace('"vision"', '"b01"') + 'root2 = "x"\n'
    files[MAIL] += "port = 1\n"
    files["60-own.toml"] = "[[rule]]\n" + PLOTS + 'after = ["nothing"]\ntimeout = "soon"\n'
    files["70-broken.toml"] = "x ="
    found = problems(conf, files)
    assert [line.split(": ")[:2] for line in found] == [
        [f"DIR/{HOST}", "[host.b01] poll"],
        [f"DIR/{HOST}", "[host.b01] max_running"],
        [f"DIR/{HOST}", "[host.b01] pol"],
        [f"DIR/{TREE}", "[tree.main] root2"],
        [f"DIR/{TREE}", "[tree.main] web"],
        [f"DIR/{MAIL}", "[mail] port"],
        ["DIR/60-own.toml", "[[rule]] plots timeout"],
        ["DIR/60-own.toml", "[[rule]] plots after"],
        ["DIR/70-broken.toml:1", "not TOML"],
    ]


def test_a_broken_host_is_not_called_missing_by_its_tree(conf):
    assert len(problems(conf, {**BASE, **more(HOST, "poll = 30\n")})) == 1


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(mode=0o755)])
def test_nothing_to_read(conf, make):
    make(conf)
    with pytest.raises(ConfigError, match=r"`watchties init` makes a configuration$") as caught:
        config.load(conf)
    assert len(caught.value.problems) == 1 and str(conf) in caught.value.problems[0]


def test_a_fifo_does_not_hang_us(conf):
    write(conf, BASE)
    os.mkfifo(conf / "60.toml", 0o644)
    assert problems(conf, {}) == ["DIR/60.toml: is not a file; remove it"]


def test_hidden_and_other_files_are_not_read(conf):
    load(conf, {**BASE, ".60.toml": "x", "60.toml~": "x", "__init__.py": "x"})
    (conf / ".#60.toml").symlink_to("nobody@nowhere")
    config.load(conf)


# Who may write


def test_writable_by_others_is_refused_with_the_command(tmp_path):
    conf = write(tmp_path / "conf d", BASE)
    (conf / HOST).chmod(0o664)
    (conf / TREE).chmod(0o646)
    conf.chmod(0o777)
    said = [
        f"{conf}: its group and others may write to it",
        f"{conf / HOST}: its group may write to it",
        f"{conf / TREE}: others may write to it",
    ]
    lines = config.check_permissions(conf)
    assert lines == [f"{text}; run: chmod go-w '{text.split(': ')[0]}'" for text in said]
    with pytest.raises(ConfigError) as caught:
        config.load(conf)
    assert list(caught.value.problems) == lines
    for line in lines:
        subprocess.run(line.split("run: ")[1], shell=True, check=True)
    assert config.check_permissions(conf) == [] and config.load(conf)


def test_owned_by_a_stranger_is_refused(conf):
    write(conf, {HOST: ""})
    us = os.geteuid() + 1
    if os.geteuid() == 0:  # what root owns is fine for everybody
        us, owner = 0, 54321
        os.chown(conf / HOST, owner, -1)
        name = "root"
        assert config.check_permissions(conf, us) == [
            f"{conf / HOST}: belongs to 54321, not to {name} or root; run: chown {name} {conf / HOST}"
        ]
        assert config.check_permissions(conf, 54321) == []
    else:
        assert [line.split(": ")[1].split(" ")[0] for line in config.check_permissions(conf, us)] == ["belongs", "belongs"]


def test_links_are_judged_by_what_they_lead_to(conf, tmp_path):
    write(conf, BASE)
    (conf / HOST).rename(tmp_path / "shared.toml")
    (conf / HOST).symlink_to(tmp_path / "shared.toml")
    assert config.check_permissions(conf) == [] and config.load(conf)
    (tmp_path / "shared.toml").chmod(0o666)
    assert [line.partition(":")[0] for line in config.check_permissions(conf)] == [str(conf / HOST)]
    (tmp_path / "shared.toml").unlink()
    assert config.check_permissions(conf) == [f"{conf / HOST}: cannot be looked at (No such file or directory); remove it or put it right"]
    with pytest.raises(ConfigError) as told:
        config.load(conf)
    assert sum(f"{conf / HOST}: cannot be" in line for line in str(told.value).splitlines()) == 1, "it is told once"


def test_files_in_subdirectories_are_looked_at(conf):
    write(conf, BASE)
    write(conf / "__pycache__", {"pull.pyc": ""})
    (conf / "__pycache__" / "pull.pyc").chmod(0o666)
    assert len(config.check_permissions(conf)) == 1


def test_a_password_is_not_readable_by_others(conf, home):
    secret = home / "pass word"
    secret.write_text("x")
    files = {**BASE, **swap(MAIL, 'folder = "/var/tmp/mail"', SERVER + 'user = "w"\nstarttls = true\npassword_file = "~/pass word"')}
    for mode in (0o640, 0o604, 0o622):
        secret.chmod(mode)
        assert problems(conf, files) == [f"{M} password_file: HOME/pass word is open to others; run: chmod 600 'HOME/pass word'"]
    secret.chmod(0o600)
    loaded = load(conf, files)
    assert loaded.mail.password_file == str(secret) and loaded.warnings == []
    assert json.loads(loaded.to_json())["mail"]["password_file"] == str(secret)


# Durations and sizes

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "": 1}


@given(st.integers(0, 3650), st.sampled_from(sorted(UNITS)))
def test_whole_durations(number, unit):
    assert configmodels.duration(f"{number}{unit}") == number * UNITS[unit]


@given(st.decimals(0, 3650, places=3), st.sampled_from(sorted(UNITS)))
def test_durations_with_a_point(number, unit):
    assert configmodels.duration(f"{number} {unit}") == pytest.approx(float(number) * UNITS[unit])


@given(st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text(max_size=2))))
def test_what_is_no_duration_is_refused(value):
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)? ?[smhd]", value):
        return
    with pytest.raises(ValueError):
        configmodels.duration(value)


@given(st.integers(0, 10**6), st.sampled_from(sorted(BYTES)))
def test_sizes(number, unit):
    size = configmodels.Daemon(disk_floor=f"{number}{unit}").disk_floor
    assert size == number * BYTES[unit]
    assert (
        configmodels.Daemon.model_validate_json(
            configmodels.Daemon.model_construct(disk_floor=size).model_dump_json(include={"disk_floor"})
        ).disk_floor
        == size
    )


def test_values_are_seconds_and_bytes(conf):
    loaded = load(conf, {**BASE, DAEMON: '[daemon]\nreconcile = "1d"\ngrace = "0s"\ndisk_floor = 5\n'})
    assert (loaded.daemon.reconcile, loaded.daemon.grace, loaded.daemon.disk_floor) == (86400.0, 0.0, 5)


# What is loaded

KEYS = """
host: role ssh root become trigger poll ssh_options chmod bwlimit scheduler setup max_running submit_options resources caps
tree: root jobs web compute failover path backend resubmit_lost success limits
tree.success: stderr_empty require forbid
tree.limits: size files
rule: name on then after hook batch parallel alone_above timeout retry
rule.retry: first maximum give_up_after
mail: server port starttls user password_file sendmail folder from to email_file cc admin link templates
daemon: reconcile heartbeat stop_timeout host_down_notice grace disk_floor log_keep journal_keep
"""


@pytest.fixture
def shipped(conf):
    conf.mkdir(mode=0o755)
    for path in SHIPPED.glob("*.toml"):
        shutil.copy(path, conf)
        (conf / path.name).chmod(0o644)
    return conf


def uncommented(directory):
    """Return the fragments with every setting that is commented out put in force."""
    return {path.name: re.sub(r"(?m)^#(?=[a-z\[])", "", path.read_text()) for path in directory.glob("*.toml")}


@pytest.mark.parametrize("line", KEYS.split("\n")[1:-1])
def test_every_key_of_the_table_is_there_and_in_a_fragment(shipped, line):
    table, keys = line.split(": ")
    kind, *within = table.split(".")
    part = config.plain(config.load(shipped))[kind]
    part = part[0] if kind == "rule" else part.get({"host": "b01", "tree": "main"}.get(kind), part)
    for name in within:
        part = part[name]
    assert list(part) == keys.split()
    text = "\n".join(path.read_text() for path in shipped.glob("*.toml"))
    if kind == "rule" and not within:
        assert all(re.search(rf"(?m)^#?{key} = |^#   {key}  ", text) for key in part)
    else:
        assert all(re.search(rf"(?m)^#?{key} = |[{{ ,]{key} = |^#?\[\w+\.\w+\.{key}\]", text) for key in part)


def test_shipped_fragments_work_as_they_stand(shipped, home):
    loaded = config.load(shipped)
    assert loaded.warnings == []
    assert [(host.name, host.role, host.ssh, host.max_running) for host in loaded.hosts_of("main")] == [
        ("vision", "web", None, None),
        ("b01", "compute", None, 4),
    ]
    assert loaded.hosts_of(loaded.tree["main"]) == list(loaded.host.values())
    assert (loaded.tree["main"].name, loaded.tree["main"].root) == ("main", str(home / "compties" / "user_data"))
    assert loaded.tree["main"].path == {"vision": "user_data", "b01": "user_data"}
    assert loaded.mail.folder == str(home / ".local/state/watchties/mail") and loaded.mail.sender == "watchties@localhost"
    assert {rule.name: (rule.batch, rule.hook) for rule in loaded.rule} == {
        name: ({"notice": 1, "poll": 2000, "submit": 100}.get(name, 500), name) for name in configcheck.OURS
    }


def test_commented_settings_are_right_too(conf, shipped, home):
    """Uncommenting them all brings only what excludes one another, and schedulers that may not be there."""
    (home / ".config/watchties").mkdir(parents=True)
    (home / ".config/watchties/smtp-password").touch(0o600)
    found = problems(conf, uncommented(shipped))
    expected = [f"{M}: server and sendmail and folder exclude one another; keep one"]
    if "lsf" not in configcheck.schedulers():
        expected.insert(
            0, f'DIR/{HOST}: [host.elgato] scheduler: "lsf" is no scheduler known here; there is {", ".join(configcheck.schedulers())}'
        )
    assert found == expected


def test_commented_defaults_are_the_defaults(conf, shipped):
    files = uncommented(shipped)
    plain = config.plain(load(conf, {**BASE, DAEMON: files[DAEMON]}))
    assert plain["daemon"] == configmodels.Daemon().model_dump(mode="json")
    default = configmodels.Rule(name="x", on=[]).model_dump(mode="json")
    assert (default["timeout"], default["batch"], default["parallel"], default["alone_above"]) == (3600, 1, 1, None)
    assert default["retry"] == {"first": 10, "maximum": 900, "give_up_after": 259200}


def test_json_is_plain_and_whole(conf, home):
    loaded = load(conf, BASE)
    data = json.loads(loaded.to_json())
    assert data == config.plain(loaded) and data["home"] == str(home)
    assert list(data) == ["host", "tree", "rule", "mail", "daemon", "home"]
    assert data["host"]["b01"]["poll"] == 30.0 and data["host"]["vision"]["scheduler"] is None
    assert data["daemon"]["disk_floor"] == 10**9 and isinstance(data["daemon"]["disk_floor"], int)
    assert data["rule"][0]["then"] == ["mirror:PENDING"] and data["rule"][0]["name"] == "pull"


@pytest.mark.parametrize("how, lines", [("", 1), ("starttls = true\n", 0), ("port = 465\n", 0)])
def test_a_password_in_clear_is_warned_of(conf, home, how, lines):
    (home / "secret").touch(0o600)
    mail = f'[mail]\n{SERVER}admin = "a@x"\nuser = "w"\npassword_file = "~/secret"\n{how}'
    assert load(conf, {**BASE, MAIL: mail}).warnings == ["[mail] user: the password is sent in clear; set starttls = true"] * lines


def test_it_cannot_be_changed(conf):
    loaded = load(conf, BASE)
    for thing, key in (loaded, "home"), (loaded.host["b01"], "poll"), (loaded.daemon, "grace"), (loaded.rule[0].retry, "first"):
        with pytest.raises(ValueError):
            setattr(thing, key, 1)
    assert loaded == config.load(conf)


def test_find_rule(conf):
    loaded = load(conf, BASE)
    assert loaded.find_rule("push").name == "push"
    with pytest.raises(UserError, match=r'^"pusch" is no rule; did you mean "push"\?$'):
        loaded.find_rule("pusch")


def test_mail_and_daemon_may_be_left_out(conf):
    files = {name: text for name, text in BASE.items() if name not in (MAIL, DAEMON)}
    loaded = load(conf, files)
    assert loaded.daemon == configmodels.Daemon() and loaded.mail == configmodels.Mail()
    assert loaded.warnings == ["[mail]: no mail is sent; set server, sendmail or folder"]


@pytest.mark.parametrize(
    "change, line",
    [
        (more(HOST, '[host.spare]\nrole = "web"\n'), "[host.spare]: is in no tree; name it there, or take it out"),
        (swap(MAIL, 'admin = "root@localhost"\n', ""), "[mail] admin: is not set; nobody is told when a host is down or a job is given up"),
    ],
)
def test_warnings(conf, change, line):
    assert load(conf, {**BASE, **change}).warnings == [line]


@pytest.mark.parametrize(
    "change",
    [
        rules('then = ["mirror:DONE", "mirror:FAILED"]', 'then = "mirror:DONE"'),
        rules('on = ["mirror:DONE", "mirror:FAILED"]\nafter', 'on = ["mirror:FAILED"]\nafter'),
        rule(PLOTS + 'after = ["push", "mail"]\nhook = "~/hooks/plots"\n'),
        more(TREE, SECOND),
        more(TREE, 'jobs = "lab/*/run-[0-9]"\n'),
        more(HOST, 'root = "~/compties"\nbwlimit = "1.5m"\nchmod = "Dg+s,ug+rwX,F664"\nbecome = "www-data"\n'),
        more(MAIL, 'to = { ann = "ann@example.org" }\ncc = ["Ann B. <ann@example.org>"]\nlink = "http://x/?e={experiment}"\n'),
        more(HOST, 'ssh_options = ["-p 22 -4", "ProxyJump=a@b", "Port 22"]\n'),
        # two logins on one machine have a home each
        {HOST: BASE[HOST].replace('ssh = "vision"', 'ssh = "www@b01"')},
    ],
)
def test_what_is_right_is_taken(conf, change):
    load(conf, {**BASE, **change})


def test_absolute_directories_meet_whoever_logs_in(conf):
    hosts = BASE[HOST].replace('ssh = "vision"', 'ssh = "www@b01"\nroot = "/data"') + 'root = "/data"\n'
    assert len(problems(conf, {**BASE, HOST: hosts})) == 1


def test_links_do_not_hide_that_directories_meet(conf, home):
    (home / "mirror").mkdir()
    (home / "two").symlink_to(home / "mirror")
    assert [line.split(": ")[1] for line in problems(conf, {**BASE, **more(TREE, SECOND)})] == ["[tree.two] root"]


def test_a_circle_is_told_in_the_order_of_waiting(conf):
    own = "".join(f'[[rule]]\nname = "{name}"\non = ["mirror:DONE"]\nafter = ["{other}"]\n' for name, other in ("ca", "bc", "ab"))
    found = problems(conf, {**BASE, "60-own.toml": own})
    assert found == ["DIR/60-own.toml: [[rule]] a after: no end: a waits for b, b waits for c, c waits for a; take one of these out"]


@pytest.mark.parametrize(
    "given, expected", [({"scheduler": "shell"}, 4), ({"scheduler": "shell", "max_running": 9}, 9), ({"scheduler": "x"}, None)]
)
def test_only_the_plain_machine_has_a_limit_by_default(given, expected):
    assert configmodels.Host.model_validate({"role": "compute", **given}).max_running == expected


def test_two_circles_are_told_as_two(conf):
    own = "".join(f'[[rule]]\nname = "{name}"\non = ["mirror:DONE"]\nafter = ["{other}"]\n' for name, other in ("ab", "ba", "cd", "dc"))
    found = problems(conf, {**BASE, "60-own.toml": own})
    assert [line.partition("no end: ")[2] for line in found] == [
        f"{x} waits for {y}, {y} waits for {x}; take one of these out" for x, y in ("ab", "cd")
    ]


def test_schedulers_are_listed_without_importing_them():
    code = "import sys; from watchties import configcheck; configcheck.schedulers(); print([m for m in sys.modules if 'schedulers' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert "shell" in configcheck.schedulers() and "__init__" not in configcheck.schedulers()


def test_reading_and_checking_need_no_pydantic():
    code = "import sys; from watchties import configcheck, configfiles; print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# Whatever stands there

WORDS = sorted({word for line in KEYS.split("\n") for word in line.replace(":", "").split()} | {"vision", "main", "a\nb", "\u2028", "é"})
VALUES = st.recursive(
    st.one_of(
        st.sampled_from(WORDS + ["web", "compute", "mirror:DONE", "5m", "~", "/", "..", "{user}", "*/*", "2GB"]),
        st.integers(-2, 10**20),
        st.floats(),
        st.booleans(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=12,
)


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["host", "tree", "rule", "mail", "daemon", "x"]), VALUES, min_size=1))
def test_whatever_stands_there_gets_lines_and_no_traceback(conf, data):
    """Any TOML at all is taken or refused in single lines that name its file."""
    text = "\n".join(f"{key} = {toml(value)}" for key, value in data.items())
    files = {"10.toml": text, **{name: body for name, body in BASE.items() if "rule" not in data and "30" in name}}
    with pytest.raises(ConfigError) as caught:
        for old in conf.glob("*"):
            old.unlink()
        load(conf, {**files, "99.toml": "x = 1"})
    for line in caught.value.problems:
        assert str(conf) in line and line.isprintable(), line
