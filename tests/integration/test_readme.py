"""README.md is true: its examples run as written, its tables name what there is, no more and no less."""

import os
import re
import shlex
import subprocess
import tarfile
from importlib import import_module
from pathlib import Path

import click
import pytest
from site_kit import Site

from watchties import config, model
from watchties.cli import COMMANDS, main
from watchties.config import MODELS
from watchties.runner import Runner
from watchties.runs import Ended, Run, RunDirs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
TEXT = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)  # without the fenced examples
FRAGMENTS = {"host": "10-hosts.toml", "tree": "20-trees.toml", "mail": "40-mail.toml", "daemon": "50-daemon.toml"}
HOOK_RULE = "archive"


def fenced(language, having):
    """Return the one fenced example of a language that has a text in it."""
    found = [text for kind, text in FENCED if kind == language and having in text]
    assert len(found) == 1, f"{len(found)} examples in {language} have {having!r}"
    return found[0]


def section(title):
    """Return the text below a heading."""
    return re.split(r"^## ", README.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def table_rows(text):
    """Return the cells of the body of each row of the tables in a text."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if not set(row[0]) <= set("-")]


def words_in_code(text):
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site whose web host's login has its home where the examples look for it; README's own rule and hook are in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "vision"))
    site = Site(tmp_path, rules="\n" + fenced("toml", f'name = "{HOOK_RULE}"'))
    hook = site.conf.parent / "hooks" / HOOK_RULE
    hook.write_text(fenced("sh", "#!/bin/sh"))
    hook.chmod(0o755)
    with site:
        yield site


def run_sh(text, **more):
    return subprocess.run(["sh", "-eu", "-c", text], check=True, capture_output=True, text=True, timeout=60, **more)


def test_hand_over_states_hook_and_requeue_run_as_written(site, tmp_path):
    job = "ann/My experiment"
    run_sh(fenced("sh", "CPU_SERVER"))
    fields = site.wait_state(job, "DONE")
    assert (site.web / job / "remote_ties_run.res").read_text() == "1\n2\n3\n"
    assert fields["host"] == "b01"

    asked = f'{fenced("sh", "state_of()")}\nstate_of "$1"'
    done = subprocess.run(["sh", "-c", asked, "sh", str(site.web / job)], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "DONE\n"

    packed = tmp_path / "vision/archive/main/ann/My experiment.1.tar.gz"
    site.wait(packed.exists, 30, "the hook of README has packed the job")
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert {"./command", "./numbers.txt", "./remote_ties_run.res"} <= set(names)
    assert not [name for name in names if ".watchties" in name]

    run_sh(fenced("sh", "touch "))
    site.wait(lambda: site.marker(job)[1].get("attempt") == "2" and site.marker(job)[0] == "DONE", 60, "it has run once more")


def test_state_of_prefers_as_the_model_says(tmp_path):
    script = f'{fenced("sh", "state_of()")}\nstate_of "$1"'
    for place, state in enumerate(model.READING_ORDER):
        folder = tmp_path / state
        folder.mkdir()
        for later in model.READING_ORDER[place:]:
            (folder / later).write_text("")
        done = subprocess.run(["sh", "-c", script, "sh", str(folder)], check=True, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == state


def test_marker_keys_are_those_that_stand_in_real_markers(site):
    told = {}
    for cells in table_rows(section("For whoever writes the web application")):
        if len(cells) == 3 and cells[0] != "key":
            for key in words_in_code(cells[0]):
                told[key] = cells[1]
    site.drop("ann/good")
    site.drop("ann/bad", command="echo no >&2\nexit 3\n")
    site.drop("ann/none", command=None)
    done, failed = site.wait_state("ann/good", "DONE"), site.wait_state("ann/bad", "FAILED")
    rejected = site.wait_state("ann/none", "FAILED")
    assert set(done) == {key for key, where in told.items() if where != "FAILED"}
    assert set(failed) == set(told)
    assert set(rejected) < set(told) and rejected["cause"] == "rejected"


def test_causes_are_named():
    row = next(cells for cells in table_rows(README) if cells[0] == "`cause`")
    assert set(re.findall(r"`([a-z]+)`", row[2])) <= set(model.CAUSES)


# ---- configuration ----


@pytest.mark.parametrize("text", [text for language, text in FENCED if language == "toml"])
def test_toml_examples_load(text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "conf.d"
    folder.mkdir()
    folder.chmod(0o755)
    replaced = {file for kind, file in FRAGMENTS.items() if re.search(rf"^\[{kind}\b", text, re.MULTILINE)}
    for fragment in (ROOT / "conf.d").glob("*.toml"):
        if fragment.name not in replaced:
            (folder / fragment.name).write_text(fragment.read_text())
    (folder / "90-readme.toml").write_text(text)
    for file in folder.iterdir():
        file.chmod(0o644)
    found = config.load(folder, tmp_path / "state")
    assert found.tree["main"].web == "vision"


def test_every_key_is_named_and_every_named_key_exists():
    rows = {words_in_code(cells[0])[0]: set(words_in_code(cells[1])) for cells in table_rows(section("Configuration")) if cells[0] != "table"}
    labels = {"host": "[host.NAME]", "tree": "[tree.NAME]", "rule": "[[rule]]", "mail": "[mail]", "daemon": "[daemon]"}
    real = {labels[kind]: {field.alias or name for name, field in table.model_fields.items()} for kind, table in MODELS.items()}
    assert rows == real


def test_sections_that_are_linked_are_there_and_all_are_in_the_contents():
    titles = re.findall(r"^## (.*)$", README, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]  # as GitHub makes them
    linked = re.findall(r"\]\(#([^)]+)\)", README)
    assert set(linked) <= set(anchors), set(linked) - set(anchors)
    contents = re.findall(r"\]\(#([^)]+)\)", README.partition("\n## ")[0])
    assert sorted(contents) == sorted(set(anchors) - {"more"})


def test_fragments_that_are_linked_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


# ---- commands ----


def named_commands():
    """Return the words of each `watchties ...` in README: in fenced and indented examples and in code within text."""
    texts = [line.split("#")[0] for _, text in FENCED for line in text.splitlines()] + words_in_code(TEXT)
    found = [re.match(r"watchties (\w[^;|&]*)", text) for text in texts]
    return [shlex.split(match[1].replace("[", "").replace("]", "")) for match in found if match]


def test_every_command_is_in_the_table_and_no_other():
    table = [words_in_code(cells[0])[0].split()[1] for cells in table_rows(section("Commands")) if cells[0] != "command"]
    assert sorted(table) == sorted(COMMANDS)


def test_every_command_that_is_named_exists_with_its_options():
    named = named_commands()
    assert {"run", "init", "deploy", "check", "run-hook"} <= {words[0] for words in named}
    for name, *words in named:
        assert name in COMMANDS, name
        known = {option for param in command(name).params for option in param.opts} | {"--help"}
        assert {word for word in words if word.startswith("-")} <= known, (name, words)


def test_options_in_the_table_of_commands_exist():
    for cells in table_rows(section("Commands")):
        options = {word.split()[0] for word in words_in_code(cells[1]) if word.startswith("-")}
        if options:
            name = words_in_code(cells[0])[0].split()[1]
            assert options <= {option for param in command(name).params for option in param.opts}, name


def test_commands_with_json_are_those_that_are_named():
    sentence = next(line for line in section("Commands").replace("\n", " ").split(". ") if "`--json`" in line)
    named = {word for word in words_in_code(sentence) if word in COMMANDS}
    assert named == {name for name in COMMANDS if "--json" in {o for p in command(name).params for o in p.opts}}


def command(name):
    found = main.get_command(click.Context(main), name)
    assert isinstance(found, click.Command)
    return found


def test_completion_line_works(tmp_path):
    line = fenced("sh", "_WATCHTIES_COMPLETE").strip()
    script = re.fullmatch(r'eval "\$\((.*)\)"', line)[1]
    done = run_sh(script, env=os.environ | {"PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)})
    assert "complete" in done.stdout


# ---- the hook contract ----


def test_environment_of_a_hook_is_the_one_that_is_told(tmp_path):
    rows = [words_in_code(cells[0]) for cells in table_rows(section("Hooks of your own")) if "WATCHTIES_" in cells[0]]
    told = {word if word.startswith("WATCHTIES") else f"WATCHTIES{word}" for words in rows for word in words}
    job = {"tree": "main", "job": "a/b", "dir": "/x", "marker": "DONE", "attempt": 1}
    runner = Runner(RunDirs(str(tmp_path)), "/config", {})
    runs = Run("archive", "", "run", "0", "/hook", str(tmp_path), [job]), Run("notice", "", "run", "0", "/hook", str(tmp_path), [], notice="x")
    assert told == {name for run in runs for name in runner.environment(run) if name.startswith("WATCHTIES_")}


def test_keys_of_a_job_line_are_told_to_hooks(site):
    row = next(cells for cells in table_rows(section("Hooks of your own")) if cells[0] == "`WATCHTIES_JOBS`")
    keys = set(words_in_code(row[1])) - {"after"}
    dispatch = import_module("watchties.dispatch")
    assert keys <= set(re.findall(r'^ {12}"(\w+)":', Path(dispatch.__file__).read_text(), re.MULTILINE))


def test_exit_codes_mean_what_is_told(tmp_path):
    words = {"0": "done", "75": "again", "anything else": "failed"}
    rows = {cells[0]: cells[1].split()[0].strip(",;") for cells in table_rows(section("Hooks of your own")) if cells[0] in words}
    assert rows == words
    run = Run("archive", "", "run", "0", "/hook", str(tmp_path), [{"tree": "main", "job": "a/b"}])
    meant = {code: Ended(run, code, {}, "", 0.0).outcome(run.ids()[0]).outcome for code in (0, 75, 3)}
    assert meant == {0: "done", 75: "retry", 3: "failed"}


def test_system_packages_are_those_that_set_up_asks_for():
    asked = set(re.findall(r"^need \w+ (\S+)|^\[.*missing=\"\$missing (\S+?)\"", (ROOT / "contrib/setup.sh").read_text(), re.MULTILINE))
    asked = {name for pair in asked for name in pair if name and not name.startswith("$")}
    told = set(re.search(r"which to install \((.*?);", README, re.DOTALL)[1].replace("\n", " ").split(", "))
    assert told == asked - {"python3"}
