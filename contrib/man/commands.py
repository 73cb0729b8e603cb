"""Man pages of click's commands, from the very texts that --help shows.

Knows: click's parameters, the form of our docstrings (\\b before what is not to be filled).
Must not know: what any command does.
"""

import inspect

import click
import roff


def page(name, command, version, about):
    """Return the page of a program: a single command, or a group with all of its commands."""
    outer = click.Context(command, info_name=name, **command.context_settings)
    if not isinstance(command, click.Group):
        parts = [roff.heading("synopsis"), synopsis(name, outer), roff.heading("description"), *body(command)]
        return roff.page(name, 1, version, first_sentence(command), [*parts, roff.heading("options"), *options(outer), *about])
    words = f"[{roff.italic('options')}] {roff.italic('command')} [{roff.italic('arguments')}]"
    parts = [roff.heading("synopsis"), f"{roff.bold(name)} {words}"]
    parts += [roff.heading("description"), *body(command), roff.heading("options"), *options(outer), roff.heading("commands")]
    return roff.page(name, 1, version, first_sentence(command), [*parts, *below(outer), *about])


def below(context):
    """Return the sections of a group's commands, each followed by those of its own commands, if it has some."""
    found = []
    for word in context.command.list_commands(context):
        inner = click.Context(context.command.get_command(context, word), info_name=word, parent=context)
        name = inner.command_path
        found += [roff.subheading(name), synopsis(name, inner), *body(inner.command), *options(inner)]
        found += below(inner) if isinstance(inner.command, click.Group) else []
    return found


def first_sentence(command):
    """Return what a command does, as a NAME section has it."""
    words = " ".join(paragraphs(command)[0][1])
    return words.split(". ")[0].rstrip(".").partition(":")[0]


def paragraphs(command):
    """Return (filled or not, lines) for each paragraph of a command's help."""
    found = []
    for block in inspect.cleandoc(command.help or command.name).split("\n\n"):
        lines = block.split("\n")
        found.append((False, lines[1:]) if lines[0].strip() == "\b" else (True, [line.strip() for line in lines]))
    return found


def body(command):
    return [roff.paragraph(" ".join(lines)) if filled else roff.as_it_stands(lines) for filled, lines in paragraphs(command)]


def synopsis(name, context):
    """Return a line with the arguments, as --help has it."""
    words = [word for part in context.command.collect_usage_pieces(context) for word in part.split()]
    return f"{roff.bold(name)} {' '.join(roff.italic(word) for word in words)}"


def options(context):
    """Return a paragraph for each option, --help among them."""
    found = []
    for param in context.command.get_params(context):
        record = param.get_help_record(context)
        if record and not getattr(param, "hidden", False):
            found.append(roff.item(roff.bold(record[0]), record[1]))
    return found
