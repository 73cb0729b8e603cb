#!/usr/bin/env python3
"""Fits a coupled damped oscillator to each dyad of a CSV; writes the parameters as CSV and the curves as SVG.

    python3 fit_oscillators.py data.csv --out parameters.csv --plot curves.svg

The data have one row per person and moment, in any order: a dyad, a time, an observable, a distinguisher (0 or 1). Other
columns are passed over; --moderator NAME carries a person's mean of one into the results. An observable that is empty or NA is
a missed moment. oscillators.py, which must lie beside this file, says what is fitted and how. In the results

    x'' = eta * x + zeta * x' + eta_partner * x_p + zeta_partner * x_p'     with x = observable - level

frequency = sqrt(-eta) / (2 pi) is in cycles per unit of time, damping = -zeta / 2 the rate at which the amplitude decays.

Bounds, on what make_dyads.py writes (60 moments, periods of 8 to 16 moments, amplitudes of 10 to 20), held by a test: without
noise every parameter is found to 0.00001 (eta per squared moment, zeta per moment); with noise of standard deviation 2, half
of the persons (nine in ten) have their frequency within 1 % (3 %), eta within 0.006 (0.02), zeta 0.01 (0.03), eta_partner
0.01 (0.04) and zeta_partner 0.02 (0.06).

Exit code 0: at least one dyad was fitted; 1: bad input, told in one line; 2: bad options. Standard library only; Python 3.6 or newer.

Knows: files and columns, and how results look. Must not know: how an oscillator is fitted.
"""

import argparse
import csv
import math
import sys
from collections import OrderedDict, namedtuple
from xml.sax.saxutils import escape

if __package__:
    from . import oscillators
else:  # run as a script, on a host where nothing is installed
    import oscillators

MISSING = ("", "NA", "NaN", "nan")
COLOURS = ("#0072b2", "#d55e00")  # told apart by colour-blind eyes too
WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 170, 62, 78, 70  # of a panel's field, and what is around it, in pixels

Columns = namedtuple("Columns", "dyad time observable distinguisher moderators")
Row = namedtuple("Row", "dyad time value person moderators")
Dyad = namedtuple("Dyad", "name rows fits curves")


class BadInput(Exception):
    """The data cannot be used; the message is one line."""


def number(text, name, line):
    """Return a finite number; raise BadInput with the line if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput("line %d: %s is %r, not a number" % (line, name, text[:40]))
    return value


def parse_row(record, names, line):
    """Return the Row of one record (dict by column), value None if it is missing."""
    person = record[names.distinguisher].strip()
    if person not in ("0", "1"):
        raise BadInput("line %d: %s is %r, neither 0 nor 1" % (line, names.distinguisher, person[:40]))
    text = record[names.observable].strip()
    value = None if text in MISSING else number(text, names.observable, line)
    extra = [number(record[name], name, line) for name in names.moderators]
    return Row(record[names.dyad].strip(), number(record[names.time], names.time, line), value, int(person), extra)


def check_header(header, names):
    """Raise BadInput if a column that is asked for is not there."""
    for name in names[:4] + tuple(names.moderators):
        if name not in header:
            raise BadInput("line 1: there is no column %r; there are: %s" % (name, ", ".join(header)))


def read_rows(lines, names):
    """Return the Rows of a CSV, given line by line."""
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    if not header:
        raise BadInput("the file is empty")
    check_header(header, names)
    rows, seen = [], set()
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise BadInput("line %d: %d fields, where the header has %d" % (reader.line_num, len(cells), len(header)))
        row = parse_row(dict(zip(header, cells)), names, reader.line_num)
        key = (row.dyad, row.person, row.time)
        if key in seen:
            raise BadInput("line %d: dyad %s, %s %d has the time %g twice" % (
                reader.line_num, row.dyad, names.distinguisher, row.person, row.time))
        seen.add(key)
        rows.append(row)
    if not rows:
        raise BadInput("there is a header and no data")
    return rows


def by_dyad(rows):
    """Return dyad -> the two persons' lists of Rows with a value, by time; dyads in the order of their first row."""
    dyads = OrderedDict()
    for row in rows:
        pair = dyads.setdefault(row.dyad, ([], []))
        if row.value is not None:
            pair[row.person].append(row)
    for pair in dyads.values():
        for series in pair:
            series.sort(key=lambda row: row.time)
    return dyads


def means(rows, count):
    """Return the mean of each moderator over the rows."""
    return [sum(row.moderators[i] for row in rows) / len(rows) for i in range(count)]


def fit_all(rows):
    """Return the Dyads that could be fitted, and a line on each that could not."""
    done, left_out = [], []
    for name, pair in by_dyad(rows).items():
        try:
            fits, curves = oscillators.fit_pair([[(row.time, row.value) for row in series] for series in pair])
            done.append(Dyad(name, pair, fits, curves))
        except oscillators.CannotFit as error:
            left_out.append("dyad %s is left out: %s" % (name, error))
    return done, left_out


def write_parameters(path, dyads, names):
    """Write one row per dyad and person."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("dyad", names.distinguisher) + oscillators.Fit._fields + tuple(names.moderators))
        for dyad in dyads:
            for person, (rows, fit) in enumerate(zip(dyad.rows, dyad.fits)):
                values = list(fit) + means(rows, len(names.moderators))
                writer.writerow([dyad.name, person] + ["" if value is None else "%.8g" % value for value in values])


def ticks(low, high):
    """Return three to six round numbers from low to high."""
    unit = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = unit * next(m for m in (5, 2, 1) if unit * m <= (high - low) / 3)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def text(x, y, words, more=""):
    """Return words at a place; what XML cannot hold is shown as a question mark."""
    clean = "".join(c if c.isprintable() else "?" for c in words)
    return '<text x="%.1f" y="%.1f" %s>%s</text>' % (x, y, more, escape(clean))


def placing(points, left, top):
    """Return the limits (t0, t1, v0, v1) of a panel that shows the points, and what turns (time, value) into pixels there."""
    times, values = zip(*points)
    t0, t1, v0, v1 = min(times), max(times), min(values), max(values)
    v0, v1 = v0 - 0.06 * (v1 - v0), v1 + 0.06 * (v1 - v0)

    def place(time, value):
        return left + 8 + (WIDTH - 16) * (time - t0) / (t1 - t0), top + HEIGHT - HEIGHT * (value - v0) / (v1 - v0)

    return (t0, t1, v0, v1), place


def axes(left, top, limits, place, names):
    """Return the SVG lines of a panel's field, grid, ticks and their names."""
    t0, t1, v0, v1 = limits
    lines = ['<rect class="field" x="%d" y="%d" width="%d" height="%d"/>' % (left, top, WIDTH, HEIGHT)]
    for tick in ticks(v0, v1):
        y = place(t0, tick)[1]
        lines += ['<path class="grid" d="M%d %.1fh%d"/>' % (left, y, WIDTH), text(left - 6, y + 4, "%g" % tick, 'class="end"')]
    for tick in ticks(t0, t1):
        lines.append(text(place(tick, v0)[0], top + HEIGHT + 16, "%g" % tick, 'class="middle"'))
    lines.append(text(left + WIDTH / 2, top + HEIGHT + 31, names.time, 'class="middle"'))
    turned = 'class="middle" transform="rotate(-90 %d %d)"' % (left - 44, top + HEIGHT / 2)
    return lines + [text(left - 44, top + HEIGHT / 2, names.observable, turned)]


def panel(dyad, left, top, names):
    """Return the SVG lines of one dyad: axes, data as dots, fitted curves as lines."""
    points = [[(row.time, row.value) for row in rows] for rows in dyad.rows]
    limits, place = placing(points[0] + points[1] + dyad.curves[0] + dyad.curves[1], left, top)
    lines = axes(left, top, limits, place, names)
    for colour, dots, curve in zip(COLOURS, points, dyad.curves):
        lines += ['<circle cx="%.1f" cy="%.1f" r="2.6" fill="%s" fill-opacity="0.5"/>' % (place(*dot) + (colour,)) for dot in dots]
        path = " ".join("%.1f,%.1f" % place(*point) for point in curve)
        lines.append('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (colour, path))
    lines.append(text(left, top - 8, "dyad " + dyad.name[:24], 'class="name"'))
    quality = "".join('<tspan dx="8" style="fill:%s">%.2f</tspan>' % (colour, fit.r2) for colour, fit in zip(COLOURS, dyad.fits))
    return lines + ['<text x="%d" y="%d" class="end">R\u00b2%s</text>' % (left + WIDTH, top - 8, quality)]


def drawing(dyads, names):
    """Return an SVG with one panel for each dyad, in two columns."""
    across = min(len(dyads), 2)
    down = (len(dyads) + 1) // 2
    width, height = LEFT + across * (WIDTH + LEFT) - 34, TOP + down * (HEIGHT + GAP) - 8
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">' % (width, height, width, height),
        "<title>Coupled oscillators: data and fitted curves</title>",
        "<style>text{font:12px 'DejaVu Sans',Verdana,Arial,sans-serif;fill:#444}.end{text-anchor:end}.middle{text-anchor:middle}"
        ".name{font-weight:bold;font-size:13px;fill:#111}.field{fill:#fafafa;stroke:#bbb}.grid{stroke:#e2e2e2;fill:none}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for person, colour in enumerate(COLOURS):
        x = LEFT + 130 * person
        lines.append('<path d="M%d 26h26" stroke="%s" stroke-width="2"/>' % (x, colour))
        lines.append('<circle cx="%d" cy="26" r="3.2" fill="%s"/>' % (x + 13, colour))
        lines.append(text(x + 34, 30, "%s = %d" % (names.distinguisher, person)))
    lines.append(text(LEFT + 260, 30, "dots: data; lines: fit"))
    for i, dyad in enumerate(dyads):
        lines += panel(dyad, LEFT + i % 2 * (WIDTH + LEFT), TOP + i // 2 * (HEIGHT + GAP), names)
    return "\n".join(lines + ["</svg>", ""])


def median(values):
    """Return the median as text, or - of nothing."""
    values = sorted(value for value in values if value is not None)
    return "%.3f" % ((values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2) if values else "-"


def summary(path, rows, dyads, left_out, names):
    """Return the lines for standard output."""
    missed = sum(row.value is None for row in rows)
    shown = ("frequency", "damping", "eta_partner", "zeta_partner", "noise", "r2")
    lines = ["%s: %d rows, %d of them without a value; %d of %d dyads fitted" % (
        path, len(rows), missed, len(dyads), len(dyads) + len(left_out))]
    lines.append("%-14s" % "medians" + "".join("%14s" % name for name in shown))
    for person in (0, 1):
        label = "%s = %d" % (names.distinguisher, person)
        lines.append("%-14s" % label + "".join("%14s" % median([getattr(d.fits[person], name) for d in dyads]) for name in shown))
    return lines + left_out


def run(options):
    """Read, fit, write; return the lines for standard output. Raises BadInput, OSError, UnicodeDecodeError, csv.Error."""
    names = Columns(options.dyad, options.time, options.observable, options.distinguisher, options.moderator)
    with open(options.data, newline="", encoding="utf-8-sig") as file:
        rows = read_rows(file, names)
    dyads, left_out = fit_all(rows)
    if not dyads:
        raise BadInput("no dyad could be fitted; " + left_out[0])
    write_parameters(options.out, dyads, names)
    with open(options.plot, "w", encoding="utf-8") as file:
        file.write(drawing(dyads[:options.panels], names))
    lines = summary(options.data, rows, dyads, left_out, names)
    return lines + ["parameters in %s, the first curves in %s" % (options.out, options.plot)]


def parse_arguments(argv):
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA.csv")
    parser.add_argument("--out", default="parameters.csv", help="where the parameters go (%(default)s)")
    parser.add_argument("--plot", default="curves.svg", help="where the plot goes (%(default)s)")
    parser.add_argument("--panels", type=int, default=6, help="how many dyads are plotted (%(default)s)")
    parser.add_argument("--moderator", action="append", default=[], metavar="NAME", help="a column to average into the results")
    for role, name in (("dyad", "Dyad"), ("time", "time"), ("observable", "dial"), ("distinguisher", "sexm")):
        parser.add_argument("--" + role, default=name, metavar="NAME", help="the column of that (%(default)s)")
    options = parser.parse_args(argv)
    if options.panels < 1:
        parser.error("--panels must be at least 1")
    return options


def main(argv=None):
    """Do it; return the exit code."""
    options = parse_arguments(argv)
    try:
        lines = run(options)
    except OSError as error:
        problem = "%s: %s" % (error.filename, error.strerror)
    except UnicodeDecodeError:
        problem = "%s: this is not UTF-8 text" % options.data
    except (BadInput, csv.Error) as error:
        problem = "%s: %s" % (options.data, error)
    else:
        charset = sys.stdout.encoding or "ascii"  # in a bare C locale not every name can be printed
        print("\n".join(lines).encode(charset, "backslashreplace").decode(charset))
        return 0
    print("fit_oscillators: " + problem, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
