"""The coupled damped oscillator of two persons, and its fit to their data by least squares.

Knows: the mathematics. Must not know: files, columns, plots. Standard library only; Python 3.6 or newer.

For each person with the partner p, and x = observable - level:

    x'' = eta * x + zeta * x' + eta_partner * x_p + zeta_partner * x_p'

Two steps: the equation, integrated twice, is linear in its parameters and is solved by least squares; from there
Levenberg-Marquardt minimises the distance of the whole curve from the data.

In here the parameters of a pair are a list p of 14: eta, zeta, eta_partner, zeta_partner of each; position and speed at the
start of each; the level of each. Time is counted in mean gaps between moments, so that steps and tolerances suit any unit.
"""

import math
from collections import namedtuple
from operator import mul

MIN_MOMENTS = 10  # of each person; fewer do not carry seven parameters each
LEVEL = 12  # where the levels begin in p
WINDOWS = (9, 13, 19, 27, 39)  # moments; a good one holds about one period
STARTS = 2  # from one, three fits in 340 ended in a local minimum; from two, none
SMOOTH = 240  # points of a curve that is drawn

Fit = namedtuple("Fit", "moments frequency damping eta zeta eta_partner zeta_partner level start start_rate noise r2")


class CannotFit(Exception):
    """The data of this pair cannot be fitted; the message says why in a few words."""


def dot(a, b):
    """Return the inner product."""
    return sum(map(mul, a, b))


def solve(matrix, right):
    """Return x with matrix x = right (elimination with pivoting); raise CannotFit if there is no one solution."""
    rows = [list(row) + [value] for row, value in zip(matrix, right)]
    size = len(rows)
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if not abs(rows[i][i]) > 1e-13:
            raise CannotFit("the data do not determine the parameters")
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    x = [0.0] * size
    for i in reversed(range(size)):
        x[i] = (rows[i][size] - dot(rows[i][i + 1:size], x[i + 1:])) / rows[i][i]
    return x


def least_squares(columns, target, ridge=0.0):
    """Return the coefficients of columns that come nearest to target; ridge damps them (Marquardt's lambda)."""
    sizes = [math.sqrt(dot(c, c)) or 1.0 for c in columns]
    normal = [[dot(a, b) / (p * q) + (ridge if a is b else 0) for b, q in zip(columns, sizes)] for a, p in zip(columns, sizes)]
    return [x / p for x, p in zip(solve(normal, [dot(c, target) / p for c, p in zip(columns, sizes)]), sizes)]


def rates(p, state):
    """Return the derivative of (x0, v0, x1, v1)."""
    x0, v0, x1, v1 = state
    return v0, p[0] * x0 + p[1] * v0 + p[2] * x1 + p[3] * v1, v1, p[4] * x1 + p[5] * v1 + p[6] * x0 + p[7] * v0


def transition(p, gap):
    """Return the matrix, by rows, that takes a state a gap further: Taylor's series over a short time, squared up to the gap."""
    size = max(1.0, sum(map(abs, p[0:4])), sum(map(abs, p[4:8])))
    doublings = max(0, math.ceil(math.log(min(gap * size, 1e9), 2)))  # the series needs time * size <= 1; its rest is below 1e-12
    columns = []
    for i in range(4):
        term = state = [float(i == j) for j in range(4)]
        for k in range(1, 15):
            term = [gap / 2 ** doublings / k * rate for rate in rates(p, term)]
            state = [s + t for s, t in zip(state, term)]
        columns.append(state)
    for _ in range(doublings):
        columns = [[dot(row, column) for row in zip(*columns)] for column in columns]
    return list(zip(*columns))


def curve(p, times):
    """Return the two persons' values at the times, which ascend from 0."""
    state, before, known, path = p[8:12], 0.0, {}, ([], [])
    for time in times:
        gap, before = round(time - before, 9), time
        if gap:
            if gap not in known:
                known[gap] = transition(p, gap)
            x0, v0, x1, v1 = state
            state = [a * x0 + b * v0 + c * x1 + d * v1 for a, b, c, d in known[gap]]
        path[0].append(state[0] + p[LEVEL])
        path[1].append(state[2] + p[LEVEL + 1])
    return path


def integral(times, values):
    """Return the running integral, by trapezoids."""
    total, sums = 0.0, [0.0]
    for i in range(1, len(times)):
        total += (times[i] - times[i - 1]) * (values[i] + values[i - 1]) / 2
        sums.append(total)
    return sums


def on_grid(series, times):
    """Return the values of a series [(time, value)] at times, straight lines between."""
    values, i = [], 0
    for time in times:
        while i < len(series) - 2 and series[i + 1][0] < time:
            i += 1
        (t0, y0), (t1, y1) = series[i], series[i + 1]
        values.append(y0 + (y1 - y0) * min(max((time - t0) / (t1 - t0), 0.0), 1.0))
    return values


def without_trend(times, rows):
    """Return the rows less what a parabola over the times explains of each."""
    basis = []
    for power in range(3):
        column = [time ** power for time in times]
        for unit in basis:
            column = less(column, unit)
        size = math.sqrt(dot(column, column))
        basis.append([x / size for x in column])
    for unit in basis:
        rows = [less(row, unit) for row in rows]
    return rows


def less(row, unit):
    """Return the part of a row at right angles to a unit vector."""
    part = dot(row, unit)
    return [x - part * u for x, u in zip(row, unit)]


def equation_by_windows(times, values, width):
    """Return the eight parameters of the equation, from the equation integrated twice within windows of so many moments.

    x = a + b t + c t^2 + eta II(x) + zeta I(x) + the same of the partner: linear, with a parabola (start, speed, level) that
    each window has for itself. Noise adds up in an integral, so that one window over all the data would drown in it.
    """
    pooled = [[[] for _ in range(5)] for _ in values]
    for begin in range(0, max(len(times) - width, 0) + 1, max(width // 2, 1)):
        span = slice(begin, begin + width)
        local = [time - times[begin] for time in times[span]]
        once = [integral(local, v[span]) for v in values]
        twice = [integral(local, v) for v in once]
        for i in (0, 1):
            rows = without_trend(local, [twice[i], once[i], twice[1 - i], once[1 - i], values[i][span]])
            for column, row in zip(pooled[i], rows):
                column.extend(row)
    return [x for columns in pooled for x in least_squares(columns[:4], columns[4])]


def first_guesses(pair, times):
    """Return parameters to refine, best first: each width of window gives one equation, and that its best starts and levels."""
    values = [on_grid(series, times) for series in pair]
    target = values[0] + values[1]
    guesses = []
    for width in WINDOWS:
        equation = equation_by_windows(times, values, min(width, len(times)))
        columns = []
        for k in range(6):  # the curve is linear in starts and levels
            line = curve(equation + [float(k == j) for j in range(6)], times)
            columns.append(line[0] + line[1])
        if not all(abs(line[-1]) < 1e6 for line in columns):
            continue  # has run away
        rest = least_squares(columns, target, 1e-9)
        misfit = [y - sum(c[n] * x for c, x in zip(columns, rest)) for n, y in enumerate(target)]
        guesses.append((dot(misfit, misfit), equation + rest))
    if not guesses:
        raise CannotFit("no oscillation is near these data")
    return [guess for _, guess in sorted(guesses)]


def refine(pair, times, p):
    """Return the least sum of squares and the parameters that have it, searched from p on (Levenberg-Marquardt)."""
    places = {time: i for i, time in enumerate(times)}
    picks = [[places[time] for time, _ in series] for series in pair]
    data = [value for series in pair for _, value in series]

    def fitted(q):
        return [line[i] for line, pick in zip(curve(q, times), picks) for i in pick]

    def misfit(line):
        return [a - b for a, b in zip(data, line)]

    line, ridge = fitted(p), 1e-3
    for _ in range(100):
        columns = [[(b - a) * 1e6 for a, b in zip(line, fitted(p[:k] + [p[k] + 1e-6] + p[k + 1:]))] for k in range(len(p))]
        rest = misfit(line)
        step = least_squares(columns, rest, ridge)
        tried = [a + b for a, b in zip(p, step)]
        better = fitted(tried)
        gain = dot(rest, rest) - dot(misfit(better), misfit(better))
        if gain > 0:
            p, line, ridge = tried, better, ridge / 10
        else:
            ridge *= 10
        if abs(gain) < 1e-9 * dot(rest, rest) or dot(rest, rest) < 1e-13 * len(data) or ridge > 1e6:
            break
    rest = misfit(line)
    return dot(rest, rest), p


def scaled(pair):
    """Return the pair's series in units of the fit, and the units: start, length of time, middle and spread of each person."""
    moments = sorted({time for series in pair for time, _ in series})
    begin, gap = moments[0], (moments[-1] - moments[0]) / (len(moments) - 1)
    values = [[value for _, value in series] for series in pair]
    means = [sum(v) / len(v) for v in values]
    spreads = [math.sqrt(sum((x - mean) ** 2 for x in v) / len(v)) for v, mean in zip(values, means)]
    if not min(spreads) > 0:
        raise CannotFit("one of the two never changes")
    unit = max(spreads)  # one for both: a coupling is then the same number in any unit
    shifted = [[((time - begin) / gap, (value - mean) / unit) for time, value in series] for series, mean in zip(pair, means)]
    return shifted, (begin, gap, means, unit)


def result(i, p, units, series, line):
    """Return the Fit of person i in the units of the data, with line the fitted values at the series' times."""
    _, gap, means, unit = units
    eta, zeta, eta_partner, zeta_partner = (value / gap ** power for value, power in zip(p[4 * i:4 * i + 4], (2, 1, 2, 1)))
    rest = sum((value - fitted) ** 2 for (_, value), fitted in zip(series, line))
    middle = sum(value for _, value in series) / len(series)
    total = sum((value - middle) ** 2 for _, value in series)
    return Fit(
        moments=len(series),
        frequency=math.sqrt(-eta) / (2 * math.pi) if eta < 0 else None,
        damping=-zeta / 2,
        eta=eta, zeta=zeta, eta_partner=eta_partner, zeta_partner=zeta_partner,
        level=means[i] + unit * p[LEVEL + i],
        start=unit * p[8 + 2 * i], start_rate=unit / gap * p[9 + 2 * i],
        noise=unit * math.sqrt(rest / len(series)),
        r2=1 - rest / total,
    )


def fit_pair(pair):
    """Return two Fits and two smooth curves [(time, value)] for two series [(time, value)] that ascend in time.

    Raises CannotFit. A frequency is None where eta is not negative: that person alone would not swing.
    """
    if min(map(len, pair)) < MIN_MOMENTS:
        raise CannotFit("%d and %d moments, at least %d each are needed" % (len(pair[0]), len(pair[1]), MIN_MOMENTS))
    series, units = scaled(pair)
    times = sorted({time for one in series for time, _ in one})
    p = min(refine(series, times, guess) for guess in first_guesses(series, times)[:STARTS])[1]
    known = [dict(zip(times, line)) for line in curve(p, times)]
    fits = [result(i, p, units, series[i], [known[i][time] for time, _ in series[i]]) for i in (0, 1)]
    grid = [times[-1] * k / (SMOOTH - 1) for k in range(SMOOTH)]
    begin, gap, means, unit = units
    drawn = [[(begin + gap * t, mean + unit * x) for t, x in zip(grid, line)] for line, mean in zip(curve(p, grid), means)]
    return fits, drawn
