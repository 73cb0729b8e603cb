"""job.toml: what a job asks for, over the host's defaults, within its caps; and files that are broken or hostile."""

import os
import resource
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchties import resources, units
from watchties.errors import Rejected

GIB = 1 << 30
HOST = {"resources": {"cores": 1, "memory": 2 * GIB, "walltime": 7200.0, "queue": "normal", "account": None},
        "caps": {"cores": 8, "memory": 16 * GIB, "walltime": 3 * 86400.0}}  # fmt: skip


def of_job(tmp_path, text, host=HOST):
    (tmp_path / "job.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return resources.of_job(str(tmp_path), host, "b01")


def refused(tmp_path, text, host=HOST):
    with pytest.raises(Rejected) as caught:
        of_job(tmp_path, text, host)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("job.toml")
    return str(caught.value)


def test_without_a_file_a_job_has_what_its_host_gives(tmp_path):
    assert resources.of_job(str(tmp_path), HOST, "b01") == {"cores": 1, "memory": 2 * GIB, "walltime": 7200.0, "queue": "normal"}
    assert resources.of_job(str(tmp_path), {}, "b01") == {}


def test_a_job_asks_for_more_and_the_rest_stays(tmp_path):
    text = 'cores = 4\nmemory = "8 GiB"\nwalltime = "90m"\naccount = "physics"\n'
    assert of_job(tmp_path, text) == {"cores": 4, "memory": 8 * GIB, "walltime": 5400.0, "queue": "normal", "account": "physics"}
    assert of_job(tmp_path, "cores = 8")["cores"] == 8  # as much as the cap


@pytest.mark.parametrize(
    "text, said",
    [("cores = 9", "cores = 9 is more than b01 allows, 8"), ('memory = "17GiB"', "memory = 17GiB is more than b01 allows, 16GiB"),
     ('walltime = "4d"', "walltime = 4d is more than b01 allows, 3d")],
)  # fmt: skip
def test_over_a_cap_says_the_cap(tmp_path, text, said):
    assert said in refused(tmp_path, text)
    assert of_job(tmp_path, text, {**HOST, "caps": {}})


@pytest.mark.parametrize(
    "text, said",
    [
        ("core = 2", 'unknown key "core"; did you mean "cores"?'),
        ("gpus = 2", 'unknown key "gpus"; there are cores, memory, walltime, queue, account'),
        ("[resources]\ncores = 2", 'unknown key "resources"'),
        ('cores = "2"', 'cores: "2" is no number of cores'), ("cores = true", "cores: true"), ("cores = 0", "cores: 0"),
        ("cores = -1", "cores: -1"), ("cores = 1.5", "cores: 1.5"), ("cores = inf", "is no number"), ("cores = 9999999999", "is no number"),
        ("memory = 4", 'memory: 4 is a plain number; add a unit, such as "4GiB"'), ('memory = "4 lots"', "is no size"),
        ('memory = "0GB"', "is nothing"), ('memory = "9999999999999PiB"', "more than any machine"),
        ("walltime = 60", "is a plain number"), ('walltime = "soon"', "is no duration"), ('walltime = "9999d"', "longer than ten years"),
        ('walltime = "0s"', "is nothing"), ('walltime = ["1h"]', "is no duration"),
        ('queue = "-x"', "no plain name"), ('queue = "a b"', "no plain name"), ('queue = "a;reboot"', "no plain name"),
        ('queue = "$(reboot)"', "no plain name"), ('account = ""', "no plain name"), ('account = "a\\nb"', "no plain name"),
        ('queue = "' + 101 * "q" + '"', "no plain name"), ("queue = 7", "no plain name"),
        ("cores = ", "not TOML"), ("cores = 1\ncores = 2", "not TOML"), ("a = " + 3000 * "[", "not TOML"), ("cores = " + 5000 * "9", "not TOML"),
        (b"cores = 1\n# \xff", "line 2: not valid UTF-8"), ("#" * 20000, "longer than 16384 bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(tmp_path, text, said):
    assert said in refused(tmp_path, text)


def test_every_mistake_is_named_at_once(tmp_path):
    said = refused(tmp_path, 'cores = 0\nmemroy = "1GB"\nqueue = "a b"')
    assert all(text in said for text in ("cores: 0", 'did you mean "memory"?', "queue:"))


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path):
    (tmp_path / "elsewhere.toml").write_text("cores = 2")
    (tmp_path / "job.toml").symlink_to("elsewhere.toml")
    with pytest.raises(Rejected, match="symbolic link"):
        resources.of_job(str(tmp_path), HOST, "b01")
    for make in os.mkfifo, os.mkdir:
        (tmp_path / "job.toml").unlink(missing_ok=True)
        make(tmp_path / "job.toml")
        with pytest.raises(Rejected, match="is not a file"):
            resources.of_job(str(tmp_path), HOST, "b01")


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    try:
        assert set(resources.parse(text)) <= set(resources.READ)
    except Rejected as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["1B", "500MB", "2GiB", "3kB", "5KiB", "1PB"])
def test_sizes_are_shown_as_they_are_written(text):
    assert units.shown_size(units.size(text)) == text


@pytest.mark.parametrize("text", ["1s", "90s", "5m", "2h", "1d", "0.5s"])
def test_durations_are_shown_as_they_are_written(text):
    assert units.shown_duration(units.duration(text)) == text


def test_the_example_in_the_documentation_is_one():
    text = (Path(__file__).parents[2] / "README.md").read_text().partition("in a file `job.toml`")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert set(resources.parse(textwrap.dedent(text))) == set(resources.READ)


def test_what_is_no_fault_of_the_file_rejects_no_job(tmp_path):
    (tmp_path / "job.toml").write_text("cores = 4")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            resources.of_job(str(tmp_path), HOST, "b01")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
