"""build.py FOLDER: writes the man pages: one for each console script that click knows, and watchties.toml.5.

Knows: where programs and configuration come from.
Must not know: how a page is made of them (commands.py, settings.py).

Not click-man: it makes a page of each subcommand, fills the examples in the help like any text, and has nothing for
the configuration.
"""

import configparser
import importlib
import sys
from pathlib import Path

import click
import commands
import roff
import settings

from watchties import __version__
from watchties.config import MODELS

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "~/.config/watchties/conf.d/*.toml": "The configuration.",
    "~/.config/watchties/hooks/": "Hooks of your own; one called like one of ours takes its place.",
    "~/.local/state/watchties/log/*.log": "A log for each hook, and daemon.log.",
    "~/.local/state/watchties/journal.sqlite": "Index and history; may be deleted at any time.",
    "~/.local/state/watchties/runs/, locks/": "Runs at work.",
}
EXIT = {
    "0": "It is done.",
    "1": "Something is wrong, and was told.",
    "2": "It was asked for in a wrong way, or the configuration is wrong.",
}


def programs():
    """Return name -> click command of each console script in setup.cfg; what is no click command makes its help elsewhere."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().split("\n")
    found = {}
    for line in lines:
        name, target = (part.strip() for part in line.split("="))
        module, attribute = target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, click.Command):
            found[name] = command
    return found


def pages():
    """Return file name -> page."""
    made, found = programs(), {}
    names = [f"{name}(1)" for name in made] + ["watchties.toml(5)"]
    for name, command in made.items():
        found[f"{name}.1"] = commands.page(name, command, __version__, about(f"{name}(1)", names))
    found["watchties.toml.5"] = settings.page(__version__, MODELS, ROOT / "conf.d", about("watchties.toml(5)", names))
    return found


def about(own, names):
    """Return the sections at the end of each page."""
    parts = [roff.heading("files"), *(roff.item(roff.italic(path), what) for path, what in FILES.items())]
    if own.endswith("(1)"):
        parts += [roff.heading("exit status"), *(roff.item(roff.bold(code), what) for code, what in EXIT.items())]
    others = [f"{roff.bold(name[:-3])}{name[-3:]}" for name in names if name != own]
    return [*parts, roff.heading("see also"), ",\n".join([*others, "\\fBrsync\\fR(1)", "\\fBssh\\fR(1)"])]


def main(folder):
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    for name, page in pages().items():
        (folder / name).write_text(page)
        print(folder / name)


if __name__ == "__main__":
    main(sys.argv[1])
