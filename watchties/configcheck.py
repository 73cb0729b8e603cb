"""How the tables of a configuration fit together: hosts and trees, directories, rules, mail.

Knows: which hosts a tree may name, which directories must be apart, what our own rules publish, where passwords may lie.
Must not know: TOML, types and defaults of keys (configmodels.py). No pydantic: what is checked are values with attributes.

Names are looked at in every table, the rest only in tables that hold by themselves; the names of the others count as known: one
error, one line, and none that comes to light only when another has been mended.
"""

import graphlib
import os
import posixpath
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from watchties.configfiles import show, suggestion
from watchties.model import CANCEL, COMPUTE, DONE, FAILED, MARKERS, MIRROR, PENDING, PLACES, WEB

APPEARS = {WEB: (PENDING, CANCEL), MIRROR: MARKERS, COMPUTE: (DONE, FAILED)}  # what is ever announced at a place
WHY_NOT = {
    WEB: 'on a web host only PENDING and CANCEL are watched; after a push comes on = ["mirror:DONE"] with after = ["push"]',
    COMPUTE: "on a compute host only DONE and FAILED appear",
}
# rule -> (what it must be on, what it must publish); None: as the site likes
OURS = {
    "pull": ({"web:PENDING"}, {"mirror:PENDING"}),
    "submit": ({"mirror:PENDING"}, {"mirror:SUBMITTED"}),
    "report": ({"mirror:SUBMITTED"}, set()),
    "poll": ({"mirror:SUBMITTED"}, {"compute:FAILED"}),
    "fetch": ({"compute:DONE", "compute:FAILED"}, {"mirror:DONE", "mirror:FAILED"}),
    "push": ({"mirror:DONE", "mirror:FAILED"}, set()),
    "mail": (None, set()),
    "cancel": ({"web:CANCEL", "mirror:CANCEL"}, {"mirror:FAILED"}),
    "notice": (set(), set()),  # the daemon itself starts it
}
COMPUTE_ONLY = ("scheduler", "setup", "max_running", "submit_options", "resources", "caps")
TRANSPORTS = ("server", "sendmail", "folder")
FOR_SERVER = ("port", "starttls", "user", "password_file")
TLS_PORT = 465  # RFC 8314: TLS from the first byte on
NOT_DATA = ("scripts", "bin")  # they lie beside user_data under a host's root


def on_marker(text):
    """Return `text` if it is a PLACE:MARKER that can appear; raise ValueError that says why not."""
    place, colon, marker = text.partition(":")
    if not colon:
        raise ValueError(f'{show(text)} is not PLACE:MARKER; write it such as "mirror:DONE"')
    if place not in PLACES:
        raise ValueError(f"{show(place)} is no place; {suggestion(place, PLACES, 'there are ' + ', '.join(PLACES))}")
    if marker not in MARKERS:
        raise ValueError(f"{show(marker)} is no marker; {suggestion(marker.upper(), MARKERS, 'there are ' + ', '.join(MARKERS))}")
    if marker not in APPEARS[place]:
        raise ValueError(f"{show(text)} makes no sense; {WHY_NOT[place]}")
    return text


def job_pattern(text):
    """Return `text` if every job that matches lies equally deep below the tree's root; raise ValueError if not."""
    for part in text.split("/"):
        if part == "" or part.startswith((".", "-")) or "**" in part or not part.isprintable():
            raise ValueError(f'{show(text)} has the part {show(part)}; write names and * between single slashes, such as "*/*"')
    return text


def schedulers():
    """Return the names of the schedulers there are: the modules of that package, by file name; none is imported."""
    found = (Path(__file__).parent / "schedulers").glob("[a-z]*.py")
    return sorted({"shell", *(path.stem for path in found)})


def check(config_dir, tables, parsed, state_dir):
    """Return problems, (file, line) each: `tables` as they were read, `parsed` the models by label, without the broken."""
    first = {}
    for table in tables:
        first.setdefault((table.kind, table.name), table)
    of = {kind: {name: table for (k, name), table in first.items() if k == kind} for kind in ("host", "tree", "rule", "mail")}
    good = {kind: {name: parsed[table.label] for name, table in of[kind].items() if table.label in parsed} for kind in of}
    problems = [problem for table in of["host"].values() for problem in _host(table, parsed.get(table.label))]
    problems += [problem for table in of["tree"].values() for problem in _hosts_of_tree(table, of["host"])]
    problems += _directories(of["tree"], good["tree"], good["host"], state_dir)
    problems += _rules(config_dir, of["rule"], good["rule"])
    for table in of["mail"].values():
        problems += _mail(table, good["mail"].get("mail"))
    if not of["tree"]:
        problems.append((config_dir, f"{config_dir}: [tree.NAME]: is missing; add one, or nothing is watched"))
    return problems


def warnings(hosts, trees, mail):
    """Return lines about what is allowed but seldom meant; `hosts` and `trees` by name."""
    used = {name for tree in trees.values() for name in tree.hosts()}
    lines = [f"[host.{name}]: is in no tree; name it there, or take it out" for name in hosts if name not in used]
    if not any(getattr(mail, key) for key in TRANSPORTS):
        lines.append("[mail]: no mail is sent; set server, sendmail or folder")
    elif not mail.admin:
        lines.append("[mail] admin: is not set; nobody is told when a host is down or a job is given up")
    if mail.server and mail.user and not mail.starttls and mail.port != TLS_PORT:
        lines.append("[mail] user: the password is sent in clear; set starttls = true")
    return lines


def _host(table, host):
    given, role = table.data, table.data.get("role")
    if role == WEB:
        wrong = [key for key in COMPUTE_ONLY if key in given]
        return [table.problem(key, 'is only for a compute host; take it out, or set role = "compute"') for key in wrong]
    if role == COMPUTE and "scheduler" not in given:
        return [table.problem("scheduler", 'is missing; add it, such as scheduler = "shell"')]
    if not host or role != COMPUTE:
        return []
    if host.scheduler not in (known := schedulers()):
        hint = suggestion(host.scheduler, known, "there is " + ", ".join(known))
        return [table.problem("scheduler", f"{show(host.scheduler)} is no scheduler known here; {hint}")]
    over = [key for key in ("cores", "memory", "walltime") if _over(getattr(host.resources, key), getattr(host.caps, key))]
    return [table.problem(f"resources.{key}", f"is above caps.{key}; lower it, or raise the cap") for key in over]


def _over(value, cap):
    return value is not None and cap is not None and value > cap


def _texts(value):
    """Return those of the items of a list, or of the keys of a table, that are texts; [] of anything else."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, (list, dict)) else []


def _hosts_of_tree(table, hosts):
    web, compute, paths = _texts([table.data.get("web")]), _texts(table.data.get("compute")), table.data.get("path")
    for key, role, name in [("web", WEB, name) for name in web] + [("compute", COMPUTE, name) for name in dict.fromkeys(compute)]:
        if name not in hosts:
            yield table.problem(key, f"no host is called {show(name)}; {suggestion(name, hosts, f'add [host.{name}]')}")
        elif (other := hosts[name].data.get("role")) != role and other in (WEB, COMPUTE):
            yield table.problem(key, f'host {name} has role {show(other)}; name a host with role = "{role}"')
    for name in _texts(paths):
        if name not in [*web, *compute]:
            hint = suggestion(name, [*web, *compute], "name it in web or compute, or take it out")
            yield table.problem(f"path.{name}", f"{show(name)} is no host of this tree; {hint}")
        if isinstance(paths[name], str) and posixpath.normpath(paths[name]).split("/")[0] in NOT_DATA:
            yield table.problem(f"path.{name}", f'{show(paths[name])} is where our programs lie; name another, such as "user_data"')


@dataclass(frozen=True)
class _Directory:
    """A tree's directory somewhere: `login` is "" where `path` is absolute, as then it does not matter who logs in."""

    tree: str
    key: str
    machine: str
    login: str
    path: str
    where: str

    def meets(self, other):
        if (self.machine, self.login) != (other.machine, other.login):
            return False
        return posixpath.commonpath([self.path, other.path]) in (self.path, other.path)


def _directories(tables, trees, hosts, state_dir):
    """Return a problem for each two directories that are, or lie in, one another, and for a mirror that meets our state."""
    seen, problems = [], []
    state = _Directory("", "", "", "", os.path.realpath(state_dir), "")
    for name, tree in trees.items():
        for directory in _directories_of(name, tree, hosts):
            if directory.key == "root" and directory.meets(state):
                text = f"{directory.path} and watchties' own {state.path} lie in one another; choose a mirror elsewhere"
                problems.append(tables[name].problem("root", text))
            for other in [other for other in seen if other.meets(directory)]:
                problems.append(tables[name].problem(directory.key, _shared(directory, other, tables)))
            seen.append(directory)
    return problems


def _shared(directory, other, tables):
    whose = "this tree" if directory.tree == other.tree else f"[tree.{other.tree}] in {tables[other.tree].file}"
    shares = f"is the same directory as {other.path}" if directory.path == other.path else f"and {other.path} lie in one another: it is"
    return f"{directory.path} {directory.where} {shares} {other.where} of {whose}; give each a directory of its own"


def _directories_of(name, tree, hosts):
    yield _Directory(name, "root", "", "", os.path.realpath(tree.root), "in the mirror")
    for host in [hosts[host] for host in dict.fromkeys(tree.hosts()) if host in hosts]:
        user, _, machine = (host.ssh or "").rpartition("@")
        path = posixpath.normpath(posixpath.join(host.root, tree.path[host.name]))
        if not host.ssh and (not host.become or path.startswith("/")):
            path = os.path.realpath(os.path.join(os.path.expanduser("~"), path))
        login = "" if path.startswith("/") else f"{user}@{host.become}"
        yield _Directory(name, f"path.{host.name}", machine, login, path, f"on host {host.name}")


def _rules(config_dir, tables, rules):
    problems = [problem for name, rule in rules.items() if name for problem in _rule(tables[name], rule)]
    problems += [problem for name, table in tables.items() if name for problem in _after(table, tables)]
    missing = [name for name in OURS if name not in tables]
    copy = "is missing; copy it from the 30-rules.toml that came with watchties"
    problems += [(config_dir, f"{config_dir}: [[rule]] {name}: {copy}") for name in missing]
    graph = {name: [other for other in rule.after if other in rules] for name, rule in rules.items()}
    while circle := _circle(graph):
        waits = ", ".join(f"{one} waits for {other}" for one, other in zip(circle, circle[1:]))
        problems.append(tables[circle[0]].problem("after", f"no end: {waits}; take one of these out"))
        graph[circle[0]].remove(circle[1])
    return problems


def _circle(graph):
    """Return names of which each waits for the next, the last being the first again; [] if there is no such circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1][::-1]  # it is given with who is waited for first
        start = min(circle)
        at = circle.index(start)
        return circle[at:-1] + circle[:at] + [start]
    return []


def _rule(table, rule):
    on, then = OURS.get(rule.name, (None, None))
    if on is not None and set(rule.on) != on:
        yield table.problem("on", f"must be {show(sorted(on))} for this rule of watchties' own; put it back")
    if on is None and not rule.on:
        yield table.problem("on", 'is empty, so that it never starts; name a marker, such as "mirror:DONE"')
    if then is None and rule.then:
        yield table.problem("then", "only watchties' own rules publish a marker; take it out")
    elif then is not None and set(rule.then) != then and not (rule.name == "fetch" and rule.then == ["mirror:DONE"]):
        must = f"must be {show(sorted(then))} for this rule of watchties' own; put it back"
        yield table.problem("then", must if then else "this rule publishes nothing; take it out")


def _after(table, tables):
    for name in dict.fromkeys(_texts(table.data.get("after"))):
        if name == "notice":
            yield table.problem("after", "notice never ends for a job; take it out")
        elif name not in tables:
            known = [other for other in tables if other and other != table.name]
            yield table.problem("after", f"no rule is called {show(name)}; {suggestion(name, known, 'there are ' + ', '.join(known))}")


def _mail(table, mail):
    given = [key for key in TRANSPORTS if key in table.data]
    if len(given) > 1:
        yield table.problem("", f"{' and '.join(given)} exclude one another; keep one")
    if "server" not in given:
        for key in [key for key in FOR_SERVER if key in table.data]:
            yield table.problem(key, "is only for a server; set server, or take it out")
    elif ("user" in table.data) != ("password_file" in table.data):
        lacking = "password_file" if "user" in table.data else "user"
        yield table.problem(lacking, "is missing; a login needs both user and password_file")
    if given and given[0] != "folder" and "from" not in table.data:
        yield table.problem("from", 'is missing; add it, such as from = "watchties@example.org"')
    if mail and mail.password_file:
        yield from _secret(table, mail.password_file)


def _secret(table, path):
    try:
        status = os.stat(path)
    except OSError as error:
        yield table.problem("password_file", f"{path} cannot be looked at ({error.strerror}); write the password into it and chmod 600 it")
        return
    if not stat.S_ISREG(status.st_mode):
        yield table.problem("password_file", f"{path} is no file; name a file that holds the password")
    elif status.st_mode & 0o077:
        yield table.problem("password_file", f"{path} is open to others; run: chmod 600 {shlex.quote(path)}")
