"""The man pages: as fresh as their sources, whole, and right in the eyes of two formatters; a package brings them."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from watchties.config import MODELS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "contrib/man"))
import build  # noqa: E402

PAGES = sorted((ROOT / "contrib/man/pages").glob("*.[1-8]"))


def test_pages_are_as_their_sources_are_now():
    made = build.pages()
    stale = [name for name, text in made.items() if not (ROOT / "contrib/man/pages" / name).exists() or (ROOT / "contrib/man/pages" / name).read_text() != text]
    assert not stale and {path.name for path in PAGES} == set(made), f"run: make man ({stale})"


def test_every_program_of_ours_that_is_a_click_command_has_a_page():
    assert "watchties" in build.programs() and "watchties.toml.5" in {path.name for path in PAGES}
    assert {f"{name}.1" for name in build.programs()} <= {path.name for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_both_formatters_take_it_without_a_warning(path):
    done = subprocess.run(["groff", "-ww", "-man", "-Tutf8", "-z", path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lint = subprocess.run(["mandoc", "-Tlint", "-Wwarning", path], capture_output=True, text=True, timeout=60)
    assert [line for line in lint.stdout.splitlines() if 'missing date, using ""' not in line] == []  # a release has one, not a page


def test_no_key_s_description_breaks_off():
    """A comment in conf.d that leads over to the line below says nothing where it stands alone."""
    for kind, model in MODELS.items():
        text = (ROOT / "conf.d" / f"{build.settings.FRAGMENTS[kind]}.toml").read_text()
        for key, said in build.settings.described(kind, text).items():
            assert said and not said.endswith((":", "...", ",")), (kind, key, said)


def test_man_finds_the_pages_beside_the_program():
    """Also those of a clone: contrib/setup.sh links them into its environment."""
    for path in PAGES:
        assert (Path(sys.prefix) / f"share/man/man{path.suffix[1:]}" / path.name).read_text() == path.read_text()


def inner(context):
    """Yield (words, command) for each command below a group, those of groups in it among them."""
    if isinstance(context.command, click.Group):
        for word in context.command.list_commands(context):
            below = click.Context(context.command.get_command(context, word), info_name=word, parent=context)
            yield below.command_path, below.command
            yield from inner(below)


@pytest.mark.parametrize("name", build.programs())
def test_every_command_and_option_is_in_its_page(name):
    page, command = (ROOT / "contrib/man/pages" / f"{name}.1").read_text().replace("\\-", "-"), build.programs()[name]
    for path, one in inner(click.Context(command, info_name=name)):
        head, found, rest = page.partition(f'\n.SS "{path}"\n')
        assert found, f"{path} has no section"
        for option in (option for param in one.params if isinstance(param, click.Option) for option in param.opts):
            assert re.search(rf"^\\fB.*{re.escape(option)}\b", rest.partition("\n.S")[0], re.MULTILINE), (path, option)
    for param in command.params:
        assert not isinstance(param, click.Option) or all(option in page for option in param.opts)


def test_every_key_of_the_configuration_is_in_its_page_and_said_what_it_is():
    page = (ROOT / "contrib/man/pages/watchties.toml.5").read_text().split(".SH EXAMPLES")[0]
    paragraphs = dict(re.findall(r"^\.TP\n\\fB([a-z_.]+)\\fR.*\n((?:[^.\n].*\n?)*)", page, re.MULTILINE))
    for kind, model in MODELS.items():
        assert f".SH {build.settings.LABELS[kind]}\n" in page
        for name, field in model.model_fields.items():
            assert paragraphs.get(field.alias or name, "").strip(), f"conf.d says nothing of {kind} {name}"
    for inner in "resources.account", "caps.memory", "success.require", "limits.size", "retry.give_up_after":
        assert inner in paragraphs


@pytest.mark.slow
def test_the_package_brings_the_pages(tmp_path):
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "wheel", tmp_path / "from"]
    ours = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in ours.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "from" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(argv, check=True, timeout=300)
    with zipfile.ZipFile(next((tmp_path / "wheel").iterdir())) as wheel:
        names = {name.partition(".data/data/")[2] for name in wheel.namelist()}
    assert {f"share/man/man{path.suffix[1:]}/{path.name}" for path in PAGES} <= names
