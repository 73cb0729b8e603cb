#!/usr/bin/env python3
"""Writes a CSV of dyads that are coupled oscillators with known parameters, and those parameters as a second CSV.

    python3 make_dyads.py --dyads 20 --moments 60 --noise 2 --seed 1 --out data.csv

The data have one row per person and moment: Dyad, time, dial (a rating between about 0 and 100), sexm (0 or 1) and one
moderator, closeness. The same seed gives the same files. Standard library only; Python 3.6 or newer.

Knows: the model, and a plain Runge-Kutta integration of it.
Must not know: how it is fitted; a mistake made in both places would hide itself.
"""

import argparse
import csv
import math
import os
import random
import shutil
import sys
from collections import namedtuple

DATA = ("Dyad", "time", "dial", "sexm", "closeness")
PROGRAM = ("command", "fit_oscillators.py", "oscillators.py")  # what a job directory needs besides its data
PERIODS = ((8, 11), (12, 16))  # moments, of sexm 0 and 1: at one common period own pull and partner's could not be told apart
SUBSTEPS = 20  # Runge-Kutta steps from one moment to the next

# x'' = eta * x + zeta * x' + eta_partner * (partner's x) + zeta_partner * (partner's x'), with x = dial - level
Person = namedtuple("Person", "eta zeta eta_partner zeta_partner level start start_rate")


def draw_person(rng, shortest, longest):
    """Return one person's parameters: a period between these, a slow decay, a moderate pull by the partner."""
    omega = 2 * math.pi / rng.uniform(shortest, longest)
    phase, amplitude = rng.uniform(0, 2 * math.pi), rng.uniform(10, 20)
    return Person(
        eta=-omega ** 2,
        zeta=-rng.uniform(0.01, 0.06),
        eta_partner=rng.choice((-1, 1)) * rng.uniform(0.02, 0.08),
        zeta_partner=rng.choice((-1, 1)) * rng.uniform(0.02, 0.08),
        level=rng.uniform(40, 60),
        start=amplitude * math.cos(phase),
        start_rate=-amplitude * omega * math.sin(phase),
    )


def rates(pair, state):
    """Return the derivative of (x0, v0, x1, v1)."""
    x0, v0, x1, v1 = state
    one, two = pair
    return (
        v0, one.eta * x0 + one.zeta * v0 + one.eta_partner * x1 + one.zeta_partner * v1,
        v1, two.eta * x1 + two.zeta * v1 + two.eta_partner * x0 + two.zeta_partner * v0,
    )


def runge_kutta(pair, state, step):
    """Return the state one step later (the classical method of fourth order)."""
    def moved(slope, by):
        return tuple(s + by * k for s, k in zip(state, slope))

    a = rates(pair, state)
    b = rates(pair, moved(a, step / 2))
    c = rates(pair, moved(b, step / 2))
    d = rates(pair, moved(c, step))
    return tuple(s + step / 6 * (p + 2 * q + 2 * r + t) for s, p, q, r, t in zip(state, a, b, c, d))


def simulate(pair, moments):
    """Return two lists, what each of the pair shows at the times 0, 1, 2 ... without noise."""
    state = (pair[0].start, pair[0].start_rate, pair[1].start, pair[1].start_rate)
    shown = ([], [])
    for _ in range(moments):
        for person, position, values in zip(pair, state[::2], shown):
            values.append(person.level + position)
        for _ in range(SUBSTEPS):
            state = runge_kutta(pair, state, 1 / SUBSTEPS)
    return shown


def is_lively(pair, shown):
    """Tell whether both still swing at the end and neither has run away, as a dial between 0 and 100 would be."""
    for person, values in zip(pair, shown):
        swings = [abs(value - person.level) for value in values]
        last = max(swings[-len(swings) // 4:])
        if not (0.15 * max(swings) < last and max(swings) < 40):
            return False
    return True


def draw_pair(rng, moments):
    """Return a lively pair and what it shows."""
    while True:
        pair = tuple(draw_person(rng, *period) for period in PERIODS)
        shown = simulate(pair, moments)
        if is_lively(pair, shown):
            return pair, shown


def make(dyads, moments, noise, seed):
    """Return the rows of the data (as in DATA) and of the truth (dyad, sexm, and the fields of Person)."""
    rng = random.Random(seed)
    data, truth = [], []
    for dyad in range(1, dyads + 1):
        pair, shown = draw_pair(rng, moments)
        for sexm in (0, 1):
            closeness = rng.randint(1, 7)
            truth.append((dyad, sexm) + tuple(repr(value) for value in pair[sexm]))
            for time, value in enumerate(shown[sexm]):
                data.append((dyad, time, "%.6f" % (value + rng.gauss(0, noise)), sexm, closeness))
    return data, truth


def write(path, header, rows):
    """Write a CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def make_job(directory, dyads=20, moments=60, noise=2, seed=1):
    """Make a job directory, all but its PENDING: the data, the program that fits them, the command; return the truth."""
    here = os.path.dirname(os.path.abspath(__file__))
    os.makedirs(directory, exist_ok=True)
    for name in PROGRAM:
        shutil.copy(os.path.join(here, name), directory)
    data, truth = make(dyads, moments, noise, seed)
    write(os.path.join(directory, "data.csv"), DATA, data)
    return truth


def parse_arguments(argv):
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dyads", type=int, default=20, help="how many pairs (%(default)s)")
    parser.add_argument("--moments", type=int, default=60, help="how many moments each (%(default)s)")
    parser.add_argument("--noise", type=float, default=2, help="standard deviation of the noise, in units of the dial (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same data (%(default)s)")
    parser.add_argument("--out", default="data.csv", help="where the data go (%(default)s)")
    parser.add_argument("--truth", help="where the parameters go (truth.csv beside the data)")
    options = parser.parse_args(argv)
    if options.dyads < 1 or options.moments < 1 or options.noise < 0:
        parser.error("--dyads and --moments must be at least 1, --noise at least 0")
    return options


def main(argv=None):
    """Write both files; return the exit code."""
    options = parse_arguments(argv)
    data, truth = make(options.dyads, options.moments, options.noise, options.seed)
    truth_path = options.truth or os.path.join(os.path.dirname(options.out), "truth.csv")
    try:
        write(options.out, DATA, data)
        write(truth_path, ("dyad", "sexm") + Person._fields, truth)
    except OSError as error:
        print("make_dyads: cannot write %s: %s" % (error.filename, error.strerror), file=sys.stderr)
        return 1
    print("%d dyads, %d rows in %s, their parameters in %s" % (options.dyads, len(data), options.out, truth_path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
