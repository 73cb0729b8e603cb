"""conf.d/*.toml -> Config, or every error at once: each one line with file, table, key and what to do.

Knows: how the parts are joined, and how an error of pydantic is told to an administrator.
Must not know: how fragments are read (configfiles.py), what a key may hold (configmodels.py), how tables fit
together (configcheck.py), or who uses them. Hooks read `Config.to_json()`, so that they never import pydantic.
"""

import json
import os
import re

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from watchties import configcheck, configfiles
from watchties.configfiles import check_permissions, show, suggestion
from watchties.configmodels import Daemon, Host, Mail, Rule, Tree
from watchties.errors import ConfigError, UserError

__all__ = ["Config", "check_permissions", "load", "plain"]

MODELS = {"host": Host, "tree": Tree, "rule": Rule, "mail": Mail, "daemon": Daemon}


class Config(BaseModel):
    """A configuration without errors; `warnings` are lines for people, `home` is our own home directory."""

    model_config = ConfigDict(frozen=True)
    host: dict[str, Host]
    tree: dict[str, Tree]
    rule: list[Rule]
    mail: Mail
    daemon: Daemon
    home: str
    warnings: list[str] = Field(default=[], exclude=True)

    def find_rule(self, name):
        """Return the rule of that name; raise UserError, with the nearest one, if there is none."""
        for rule in self.rule:
            if rule.name == name:
                return rule
        names = [rule.name for rule in self.rule]
        raise UserError(f"{show(name)} is no rule; {suggestion(name, names, 'there are ' + ', '.join(names))}")

    def hosts_of(self, tree):
        """Return the hosts of a tree (its name, or the Tree), the web host first, then the compute hosts in order."""
        tree = self.tree[tree] if isinstance(tree, str) else tree
        return [self.host[name] for name in tree.hosts()]

    def to_json(self):
        """Return `plain(self)` as JSON: what hooks read instead of importing pydantic. It holds no secret."""
        return json.dumps(plain(self), ensure_ascii=False)


def plain(config):
    """Return a configuration as dicts and lists with the keys of the tables; unset is None, seconds float, bytes int."""
    return config.model_dump(mode="json", by_alias=True)


def load(config_dir, state_dir=None):
    """Return the Config in a directory; raise ConfigError with all problems there are, in the order of the files.

    `state_dir` is where watchties keeps its own files (None: the user's state directory); no mirror may touch it.
    """
    state = os.fspath(state_dir or platformdirs.user_state_dir("watchties"))
    problems = [("", line) for line in check_permissions(config_dir)] if os.path.isdir(config_dir) else []
    tables, found = configfiles.read(config_dir)
    problems += found
    parsed, broken = _validate(tables)
    problems += broken
    if tables:
        problems += configcheck.check(os.fspath(config_dir), tables, parsed, state)
    if problems:
        raise ConfigError(line for _, line in sorted(problems, key=lambda problem: problem[0]))
    parts = {kind: {table.name: parsed[table.label] for table in tables if table.kind == kind} for kind in configfiles.NAMED}
    mail, daemon = parsed.get("[mail]") or Mail(), parsed.get("[daemon]") or Daemon()
    rules = [parsed[table.label] for table in tables if table.kind == "rule"]
    warnings = configcheck.warnings(parts["host"], parts["tree"], mail)
    return Config(**parts, rule=rules, mail=mail, daemon=daemon, home=os.path.expanduser("~"), warnings=warnings)


def _validate(tables):
    """Return ({label: model}, problems); of two tables with one label the first is kept, both are checked."""
    parsed, problems = {}, []
    for table in tables:
        try:
            value = MODELS[table.kind].model_validate(table.data)
        except ValidationError as error:
            problems += [_told(table, item) for item in error.errors(include_url=False)]
            continue
        if table.kind in configfiles.NAMED:
            value._name = table.name
        parsed.setdefault(table.label, value)
    return parsed, problems


def _told(table, error):
    """Return (file, line) for one error of pydantic."""
    keys = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
    item = "".join(f" (item {part + 1})" for part in error["loc"] if isinstance(part, int))
    return table.problem(keys + item, _text(table, error))


def _text(table, error):
    kind, value = error["type"], show(error["input"])
    if kind == "extra_forbidden":
        known = [field.alias or name for name, field in _model(table, error["loc"][:-1]).model_fields.items()]
        return f"unknown key; {suggestion(error['loc'][-1], known, 'there are ' + ', '.join(known))}"
    if kind == "missing":
        example = _model(table, error["loc"][:-1]).model_fields[error["loc"][-1]].examples[0]
        return f"is missing; add it, such as {error['loc'][-1]} = {show(example)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{value} is none of {', '.join(map(show, known))}; {suggestion(error['input'], known, 'write one of them')}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    for ending, text in _WRONG:
        if kind == ending:
            return text.format(value=value, **error.get("ctx", {}))
    return f"{value}: {error['msg'][:1].lower()}{error['msg'][1:]}; put it right"


_WRONG = (
    ("string_type", "is {value}; write text, in quotes"),
    ("int_type", "is {value}; write a whole number, without quotes"),
    ("bool_type", "is {value}; write true or false, without quotes"),
    ("list_type", 'is {value}; write a list, such as ["one", "two"]'),
    ("dict_type", "is {value}; write a table, such as {{ key = value }}"),
    ("model_type", "is {value}; write a table, such as {{ key = value }}"),
    ("byte_size", '{value} is no size; write a number and a unit, such as "500MB" or "2GiB"'),
    ("byte_size_unit", '{value} is no size, as no unit is called {unit}; write it such as "500MB" or "2GiB"'),
    ("greater_than_equal", "{value} is too small; write {ge} or more"),
    ("less_than_equal", "{value} is too large; write {le} or less"),
    ("string_too_short", "is empty; fill it in, or leave the key out"),
    ("too_short", "is empty; name at least one"),
)


def _model(table, loc):
    """Return the model of the table, or of the table within it, that `loc` leads to."""
    model = MODELS[table.kind]
    for part in loc:
        model = {field.alias or name: field for name, field in model.model_fields.items()}[part].annotation
    return model
