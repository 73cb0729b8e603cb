"""Where hooks lie, and whether they may be trusted: a user's own first, then those that came with watchties.

Knows: the two directories, who may write there.
Must not know: what a hook does, when it runs.
"""

import grp
import os
import pwd
import shlex
import stat
from importlib import resources

from watchties.configfiles import check_permissions
from watchties.errors import ConfigError, UserError
from watchties.runs import find_hook


def folders(own):
    """Return the directories in which hooks are looked for; `own` is the user's."""
    return [own, os.fspath(resources.files("watchties.hooks"))]


def find_all(hooks, rules, own):
    """Return rule name -> path of its hook; `hooks` are their names or paths. Raises ConfigError with all that is wrong."""
    found, problems = {}, check_permissions(own) if os.path.isdir(own) else []
    for rule, name in zip(rules, hooks):
        try:
            found[rule] = find_hook(os.path.expanduser(name), folders(own))
            problems += [] if found[rule].startswith(own + "/") else writable_by_others(found[rule])
        except UserError as error:
            problems.append(f"[[rule]] {rule}: {error}")
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return found


def writable_by_others(path):
    """Return a problem line, with the command to run, if others could change a hook of the package; they would run as us."""
    info = os.stat(path)
    who = [word for bit, word in ((stat.S_IWGRP, "its group"), (stat.S_IWOTH, "others")) if info.st_mode & bit]
    if who == ["its group"] and is_private_group(info.st_gid, info.st_uid):
        return []  # a checkout with the umask 002 of many distributions
    return [f"{path}: {' and '.join(who)} may write to it; run: chmod go-w {shlex.quote(path)}"] if who else []


def is_private_group(gid, uid):
    """Return whether a group is a user's own, with nobody else in it."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and not set(group.gr_mem) - {user.pw_name}
