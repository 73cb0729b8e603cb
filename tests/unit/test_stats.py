"""stats.py and the figures of `watchties stats`: from lines of history to durations, days, causes."""

import json
import time

import pytest
from click.testing import CliRunner

from watchties import stats
from watchties.cli import main
from watchties.cli.stats import bars
from watchties.journal import Event, Journal

NOON = time.mktime((2026, 3, 28, 12, 0, 0, 0, 0, -1))  # summer time begins in the night in Europe


def line(when, event, rule="", seconds=None, cause="", job="ann/a"):
    return Event(NOON + when, "main", job, 1, rule, event, "", seconds, cause)


WAY = [line(0, "PENDING"), line(0, "done", "pull", 2.0), line(10, "SUBMITTED"), line(10, "done", "submit", 1.5),
       line(10.5, "done", "report", 0.1),
       line(40, "DONE", seconds=25.0), line(40, "done", "fetch", 3.0),
       line(45, "done", "push", 4.0), line(46, "done", "mail", 0.5)]  # fmt: skip


def took(lines):
    return {stage: found for stage, found in stats.of(lines)["stages"].items() if found}


def test_each_stage_of_one_job():
    assert took(WAY) == {"pull": [2.0], "waiting": [8.5], "submit": [1.5], "running": [25.0], "fetch": [3.0], "push": [4.0], "mail": [0.5],
                         "in all": [48.0]}  # fmt: skip


def test_a_second_attempt_is_measured_for_itself_also_where_nothing_was_pulled():
    again = [Event(*(event.when + 1000, *event[1:])) for event in WAY if event.rule != "pull"]
    assert took(WAY + again)["in all"] == [48.0, 46.0]


def test_a_pull_while_the_former_attempt_runs_belongs_to_the_next():
    over = WAY[:4] + [line(20, "done", "pull", 5.0), line(30, "PENDING"), *(Event(*(event.when + 100, *event[1:])) for event in WAY[2:])]
    assert took(over)["in all"] == [131.0]


def test_tries_and_what_is_on_its_way_count_for_no_stage():
    assert took([line(0, "PENDING"), line(1, "retry", "submit", 9.0), line(2, "interrupted", "submit")]) == {}


def test_failures_by_cause_and_days():
    failed = [line(1, "FAILED", cause="exit", job="b/b"), line(2, "FAILED", cause="exit", job="c/c")]
    found = stats.of([line(0, "FAILED", cause="lost"), *failed, *WAY])
    assert found["causes"] == {"exit": 2, "lost": 1} and found["days"] == {"2026-03-28": {"FAILED": 3, "DONE": 1}}


@pytest.mark.parametrize("count, p50, p95", [(1, 1, 1), (2, 1, 2), (100, 50, 95), (101, 51, 96)])
def test_quantiles(count, p50, p95):
    values = list(range(count, 0, -1))
    assert (stats.quantile(values, 50), stats.quantile(values, 95), stats.quantile([], 50)) == (p50, p95, None)


def test_bars_have_every_day_also_where_nothing_ended_and_the_hour_changed():
    shown = bars({"2026-03-28": {"DONE": 3, "FAILED": 1}, "2026-03-30": {"DONE": 1}}, NOON, NOON + 5 * 86400, "#", "-")
    assert [row.split() for row in shown[1:]] == [["2026-03-28", "3", "1", "###-"], ["2026-03-29", "0", "0"], ["2026-03-30", "1", "0", "#"]]


def test_bars_of_a_long_time_are_weeks_and_fit():
    days = {f"2026-{month:02}-15": {"DONE": 1000 * month, "FAILED": 1} for month in range(1, 7)}
    shown = bars(days, NOON, NOON + 200 * 86400, "#", "-")
    assert shown[0].startswith("WEEK OF") and len(shown) == 23 and max(map(len, shown)) < 80


def call(folder, *args):
    return CliRunner().invoke(main, ["--state", str(folder), "stats", *args])


def test_no_journal_no_history_and_no_job_in_that_time_are_told_in_words(tmp_path):
    shown = call(tmp_path)
    assert shown.exit_code == 2 and "no daemon has been at work here yet" in shown.output
    journal = Journal(tmp_path / "journal.sqlite")
    shown = call(tmp_path)
    assert shown.exit_code == 0 and "the journal holds no history" in shown.output
    journal.note_many(WAY)
    journal.close()
    shown = call(tmp_path, "--since", "2026-03-01", "--until", "2026-03-02")
    assert shown.exit_code == 0 and "no job has gone its way in this time" in shown.output


def test_json_and_a_wrong_time(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.note_many(WAY)
    journal.close()
    found = json.loads(call(tmp_path, "--since", "2026-03-28", "--until", "2026-03-29T12:00", "--json").stdout)
    assert found["stages"]["running"] == {"count": 1, "p50": 25.0, "p95": 25.0} and found["days"] == {"2026-03-28": {"DONE": 1}}
    for words, said in (["--since", "yesterday"], "'yesterday' is no time"), (["--since", "1h", "--until", "2h"], "is not before"):
        shown = call(tmp_path, *words)
        assert shown.exit_code == 2 and said in shown.output
