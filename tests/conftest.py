"""What holds for all tests, whoever starts them."""

import os
import random
import signal
import subprocess
import time

import pytest
from hypothesis import settings

# A shell starts what it puts into the background with SIGINT ignored, and whatever the tests start would inherit that: with a
# handler of our own in place, exec gives every program its default again (signal(7)). So does nohup with SIGHUP, which stays
# without effect on the tests themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

settings.register_profile("any machine", deadline=None)  # how long one example takes says nothing where others work beside it
settings.load_profile("any machine")


# ---- the faults: a short version of each in `make test`, the whole in `make faults`; figures are printed at the end ----


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--long", action="store_true", help="the whole of tests/faults, not a sample (an hour or more)")
    group.addoption("--seed", type=int, help="the seed that a failed test of tests/faults has printed")


@pytest.fixture
def long(request):
    """Return whether the whole is asked for, and not a sample."""
    return request.config.getoption("--long")


@pytest.fixture
def seed(request):
    """Return the seed of everything random in a test; it is printed where the test fails."""
    given = request.config.getoption("--seed")
    drawn = random.SystemRandom().randrange(1 << 32) if given is None else given
    print(f"seed {drawn}: the same again with --seed {drawn}")
    return drawn


@pytest.fixture
def figure(record_property):
    """Return a function that notes one figure in words, such as `figure("500 jobs: 0 lost, 0 twice")`."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter):
    """Print what the tests have measured: the lines that faults/RESULTS.md holds."""
    reports = [report for found in terminalreporter.stats.values() for report in found if getattr(report, "when", "") == "call"]
    lines = [(r.nodeid.partition("tests/")[2], text) for r in reports for name, text in r.user_properties if name == "figure"]
    if lines:
        terminalreporter.section("figures")
        terminalreporter.line(f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {machine()}")
        for test, text in sorted(lines):
            terminalreporter.line(f"{test}: {text}")


def commit():
    """Return the commit that is tested, with -dirty if it is not that alone."""
    words = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"


def machine():
    """Return what figures depend on, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{os.cpu_count()} cores, {memory:.0f} GB, Linux {os.uname().release}, load {os.getloadavg()[0]:.1f}"
