"""A figure: what was measured, beside the bare commands, and whether what was promised holds.

Knows: how figures are printed.
Must not know: what any of them means.
"""

import os
import platform
import statistics
from dataclasses import dataclass

HEADS = ("figure", "measured", "bare", "ratio", "target", "holds")


@dataclass
class Figure:
    """One line. measured, bare: numbers in `unit` (bare may be None); target: the most that `judged` may be.

    judged: "measured" or "ratio", whichever the promise is about.
    """

    name: str
    measured: float
    unit: str
    bare: float | None
    target: float
    judged: str = "measured"

    @property
    def ratio(self):
        return self.measured / self.bare if self.bare else None

    @property
    def holds(self):
        return (self.ratio if self.judged == "ratio" else self.measured) <= self.target

    def cells(self):
        """Return the line's cells as text."""
        of = "x" if self.judged == "ratio" else f" {self.unit}"
        bare = "-" if self.bare is None else f"{number(self.bare)} {self.unit}"
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}x"
        return self.name, f"{number(self.measured)} {self.unit}", bare, ratio, f"<= {self.target:g}{of}", "holds" if self.holds else "DOES NOT HOLD"


def number(value):
    """Return a number with three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def show(found):
    """Print all figures, one a line."""
    print()
    for line in columns([HEADS, *(figure.cells() for figure in found)]):
        print(line)


def columns(rows):
    """Return lines with the cells of each column one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def show_machine(folder):
    """Print what the figures were measured on."""
    load = ", ".join(f"{n:.2f}" for n in os.getloadavg())
    print(f"Linux {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}, load {load}, in {folder}")


def spread(values):
    """Return median, least and greatest of some numbers as text."""
    return f"median {number(statistics.median(values))}, {number(min(values))} to {number(max(values))}"
