"""stats: how long each step takes, jobs for each day, failures by cause.

Knows: which period is meant, how figures become a table and bars.
Must not know: what the journal's lines mean (watchties/stats.py).
"""

import re
import sys
import time

import click

from watchties.cli.common import aligned, clock, iso, json_option, show_json, with_places
from watchties.errors import UserError
from watchties.progress import seconds

DAY = 86400
UNITS = {"h": 3600, "d": DAY, "w": 7 * DAY}
BAR = 40  # columns
DAYS = 31  # bars at most; a longer period is shown by weeks
SHARES = (50, 95)


class When(click.ParamType):
    """A moment: a date, a date and time, or so long ago; seconds since 1970."""

    name = "when"

    def convert(self, value, param, ctx):
        if isinstance(value, float):
            return value
        if match := re.fullmatch(r"(\d{1,6})([hdw])", value):
            return time.time() - int(match[1]) * UNITS[match[2]]
        for form in "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M":
            try:
                return time.mktime(time.strptime(value, form))
            except (ValueError, OverflowError):
                continue
        return self.fail(f'{value!r} is no time; write how long ago, such as "36h", "7d", "2w", or a date, such as 2026-11-28', param, ctx)


@click.command()
@click.option("--since", metavar="WHEN", type=When(), default="30d", show_default=True,
              help="From then on: 36h, 7d, 2w ago, or a date such as 2026-11-28.")
@click.option("--until", metavar="WHEN", type=When(), help="Up to then, written alike.  [now]")
@json_option
@with_places
def stats(places, since, until, as_json):
    """Show how long each step takes (half of the jobs: p50; 95 of 100: p95), how many jobs a day, and failures by cause.

    It reads the journal, which keeps history as long as [daemon] journal_keep says. Where the journal was deleted,
    history begins anew.

    \b
    Example:  watchties stats
              watchties stats --since 7d
              watchties stats --since 2026-11-01 --until 2026-11-15 --json
    """
    from watchties import stats as work

    until = time.time() if until is None else until
    if since >= until:
        raise UserError(f"--since {clock(since)} is not before --until {clock(until)}; turn them round")
    reader = places.reader()
    begins, found = reader.begins(), work.of(reader.happened(since, until))
    table = {stage: (len(took), *(work.quantile(took, share) for share in SHARES)) for stage, took in found["stages"].items()}
    if as_json:
        return show_json({
            "since": iso(since), "until": iso(until), "history_begins": iso(begins),
            "stages": {stage: {"count": n, "p50": p50, "p95": p95} for stage, (n, p50, p95) in table.items()},
            "days": {day: dict(counts) for day, counts in sorted(found["days"].items())},
            "causes": dict(found["causes"].most_common()),
        })  # fmt: skip
    click.echo(f"from {clock(since)} to {clock(until)}")
    if begins is None:
        return click.echo("the journal holds no history: no job has gone its way yet, or the journal was deleted since")
    if begins > since:
        click.echo(f"the journal's history begins at {clock(begins)}")
    if not any(count for count, *_ in table.values()) and not found["days"]:
        return click.echo("no job has gone its way in this time")
    show(table, found, since, until)


def show(table, found, since, until):
    """Print the figures."""
    rows = [(stage, str(n), *("-" if took is None else seconds(took) for took in both)) for stage, (n, *both) in table.items()]
    click.echo("\nhow long it takes\n" + "\n".join(aligned([("  STEP", "TIMES", "P50", "P95"), *((f"  {s}", *rest) for s, *rest in rows)])))
    click.echo("\njobs that ended")
    for line in bars(found["days"], since, until, *marks()):
        click.echo(f"  {line}")
    if found["causes"]:
        click.echo("\nfailures by cause")
        click.echo("\n".join(aligned([(f"  {cause}", str(count)) for cause, count in found["causes"].most_common()])))


def marks():
    """Return the characters for a bar's DONE and FAILED: blocks where the output can show them."""
    try:
        "█░".encode(getattr(sys.stdout, "encoding", None) or "ascii")
        return "█", "░"
    except (UnicodeEncodeError, LookupError):
        return "#", "-"


def bars(days, since, until, done, failed):
    """Return a line for each day, or each week of a longer period: first day, jobs, a bar of those DONE and FAILED."""
    every = 1 if until - since <= DAYS * DAY else 7
    first = min(days, default=None)
    if first is None:
        return ["none"]
    dates = _dates(first, max(days))
    groups = [(some[0], [sum(days.get(day, {}).get(state, 0) for day in some) for state in ("DONE", "FAILED")])
              for some in (dates[at : at + every] for at in range(0, len(dates), every))]  # fmt: skip
    most = max(sum(counts) for _, counts in groups)
    unit = max(1.0, most / BAR)
    legend = f"{done} DONE, {failed} FAILED" + (f"; {unit:.3g} jobs each" if unit > 1 else "")
    head = "WEEK OF" if every == 7 else "DAY", "DONE", "FAILED", legend
    return aligned([head, *((day, str(a), str(b), done * _bar(a, unit) + failed * _bar(b, unit)) for day, (a, b) in groups)])


def _bar(count, unit):
    return max(1, round(count / unit)) if count else 0


def _dates(first, last):
    """Return all dates from one to the other, as texts; noon keeps clear of the hours that summer time takes or gives."""
    noon, found = time.mktime(time.strptime(first + " 12", "%Y-%m-%d %H")), []
    while not found or found[-1] < last:
        found.append(time.strftime("%Y-%m-%d", time.localtime(noon)))
        noon += DAY
    return found
