"""The lab's hosts, switched on once for all tests of a process: a test that breaks something mends it."""

import pytest
from lab_kit import Lab, why_not


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with Lab(tmp_path_factory.mktemp("lab")) as up:
        yield up
