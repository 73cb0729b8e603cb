"""Whether the values in a record are of their kind: everything that is decided counts on it.

Knows: which value of a record must be a number, a text, a request.
Must not know: what any of them is for, or where a record lies.

A person may have edited the file, a disk may have mangled it: what is not as it must be is damage, and costs its job alone.
"""

from dataclasses import fields

from watchties.model import FINAL, PENDING, SUBMITTED, Request

FAR_OFF = 1e12  # seconds since 1970 that no clock will ever show


def checked(record, empty):
    """Return a record whose values are of their kind, which `empty` shows; raise ValueError if they are not."""
    for name in (f.name for f in fields(record) if f.name != "old"):
        if type(getattr(record, name)) is not type(getattr(empty, name)):
            raise ValueError(f"{name} is {getattr(record, name)!r}")
    for text in (*record.accepted, *record.served):
        Request.parse(text)
    if record.phase not in ("", PENDING, SUBMITTED, *FINAL) or bool(record.attempt) != bool(record.token):
        raise ValueError(f"phase {record.phase!r}, attempt {record.attempt}, token {record.token!r}")
    if record.old:
        _texts("old", vars(record.old), "token", "host")
        if type(record.old.attempt) is not int:
            raise ValueError(f"attempt of old is {record.old.attempt!r}")
    for rule, tried in record.tries.items():
        _numbers(f"tries of {rule}", tried, "next", *tried.keys() & {"count", "first"})
        _texts(f"tries of {rule}", tried, "reason")
        if not isinstance(tried.get("fields", {}), dict):
            raise ValueError(f"fields of tries of {rule} is {tried['fields']!r}")
    _numbers("fields", record.fields, *record.fields.keys() & {"since"})
    _texts("fields", record.fields, *record.fields.keys() & {"cpu_server"})
    return record


def _numbers(what, table, *keys):
    for key in keys:
        if type(table[key]) not in (int, float) or not abs(table[key]) < FAR_OFF:
            raise ValueError(f"{key} of {what} is {table[key]!r}")


def _texts(what, table, *keys):
    for key in keys:
        if not isinstance(table[key], str):
            raise ValueError(f"{key} of {what} is {table[key]!r}")


def why(error):
    """Return what is wrong with a record that could not be read, for people."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)
