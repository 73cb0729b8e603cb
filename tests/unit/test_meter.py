"""progress.py, meter.py: rsync's own words on how far it is, the file in a run's directory, what people are told."""

import json
import os
import subprocess

import pytest
from helpers import put

from watchties import progress
from watchties.meter import OPTION, Meter, without_progress
from watchties.progress import Progress

WORDS = b"\r         32,768   1%    0.00kB/s    0:00:00  \r      1,212,416  40%    1.00MB/s    0:00:02  "
ENDED = b"\r      3,000,000  75%    1.03MB/s    0:00:02 (xfr#1, to-chk=3/7)"


@pytest.fixture
def run(tmp_path):
    """The directory of a run, as the daemon makes it."""
    where = tmp_path / "runs/fetch-1"
    where.mkdir(parents=True)
    (where / "run.json").write_text(json.dumps({"id": "fetch-1", "rule": "fetch", "host": "b01", "lock": "/x"}))
    (where / "jobs").write_text(json.dumps({"tree": "main", "job": "ann/a"}) + "\n")
    return where


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def read(run):
    found = progress.transfers(run.parent.parent, Clock.now)
    return found[0].progress if found else None


def test_the_last_words_count_and_make_rate_and_time_left(run):
    clock = Clock()
    meter = Meter(str(run), clock)
    meter.look(WORDS)
    assert read(run) == Progress(1_212_416, 40, 1 << 20, 2.0, 1000.0, 1000.0), "rsync's own figures at first"
    clock.now += 2
    meter.look(WORDS + ENDED)
    one = Progress(**json.loads((run / "progress").read_text()))
    assert (one.bytes, one.percent, one.rate) == (3_000_000, 75, (3_000_000 - 1_212_416) / 2)
    assert one.left == pytest.approx(1_000_000 / one.rate), "of a file's end, the time is that since the beginning: the percents tell"


def test_where_no_byte_moves_that_is_told(run):
    clock = Clock()
    meter = Meter(str(run), clock)
    for clock.now in range(1000, 1041):
        meter.look(WORDS)
    one = Progress(**json.loads((run / "progress").read_text()))
    assert one.told() == "1.2 MB, 40 %, no byte for 40s"


def test_nothing_is_written_before_a_byte_has_come_nor_left_behind(run):
    meter = Meter(str(run))
    meter.look(b"")
    meter.look(b"\r              0   0%    0.00kB/s    0:00:00 (xfr#0, to-chk=4/7)")
    assert not (run / "progress").exists()
    meter.look(WORDS)
    assert (run / "progress").exists()
    meter.close()
    assert not list(run.glob("progress*"))


def test_a_full_disk_or_a_directory_that_is_gone_stops_nothing(run):
    Meter(str(run / "gone")).look(WORDS)
    Meter(str(run / "gone")).close()


def test_what_a_killed_hook_has_left_counts_no_more(run):
    Meter(str(run), Clock()).look(WORDS)
    assert progress.transfers(run.parent.parent, Clock.now + progress.FRESH - 1)
    assert not progress.transfers(run.parent.parent, Clock.now + progress.FRESH)


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"bytes": 1}', "\udcff"])
def test_junk_in_the_file_is_no_transfer(run, junk):
    (run / "progress").write_text(junk, errors="surrogateescape")
    assert progress.transfers(run.parent.parent) == [] and progress.in_one_line(run.parent.parent) == ""


def test_no_state_directory_is_no_transfer(tmp_path):
    assert progress.transfers(tmp_path / "none") == []


def test_one_line_tells_a_few_and_how_many_more(run, tmp_path):
    for number in range(2, 6):
        other = tmp_path / f"runs/push-{number}"
        other.mkdir()
        (other / "run.json").write_text(json.dumps({"id": other.name, "rule": "push", "host": "vision", "lock": "/x"}))
        progress.write(other, Progress(10**9, None, 0.0, None, os.stat(other).st_mtime, os.stat(other).st_mtime))
    Meter(str(run)).look(WORDS)
    assert progress.in_one_line(tmp_path) == (
        "fetch b01: 1.2 MB, 40 %, 1.0 MB/s, at most 2s left; push vision: 1.0 GB, 0 B/s; push vision: 1.0 GB, 0 B/s; 2 more"
    )


def test_the_listing_of_a_real_rsync_is_the_same_with_progress_and_without(tmp_path):
    for name in ("plain", "with\rreturn", "  1,024  50%  1.00kB/s 0:00:01", "two\nlines", "é"):
        put(tmp_path / "from" / name, name * 1000)
    said = {}
    for option in OPTION, "--info=progress0":
        argv = ["rsync", "-r", "-8", "-ii", "--out-format=%i %n", option, f"{tmp_path}/from/", f"{tmp_path}/{option}"]
        done = subprocess.run(argv, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C"})
        said[option] = done.stdout.decode()
    assert "%" in said[OPTION].replace(" 50% ", "") and len(said[OPTION].splitlines()) > 6
    assert without_progress(said[OPTION]) == without_progress(said["--info=progress0"]).replace("--info=progress0", OPTION)


@pytest.mark.parametrize("count, told", [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
                                         (1.25e9, "1.2 GB"), (3e18, "3000 PB")])  # fmt: skip
def test_sizes(count, told):
    assert progress.size(count) == told


@pytest.mark.parametrize("count, told", [(0, "0s"), (0.44, "0.4s"), (9.96, "10s"), (59.6, "1m00s"), (250, "4m10s"), (3599.7, "1h00m"),
                                         (11100, "3h05m"), (187_200, "2d04h")])  # fmt: skip
def test_durations(count, told):
    assert progress.seconds(count) == told
