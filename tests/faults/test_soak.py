"""A short soak: the code of `make soak`, so that it cannot rot, and its promises for a few hundred jobs."""

import pytest
from soak_kit import Soak


@pytest.mark.slow
def test_faults_all_the_while_lose_nothing_and_repeat_nothing(tmp_path, seed, figure):
    soak = Soak(tmp_path, 200, seed, at_once=30, each=50)
    assert soak.run() == []
    assert soak.faults.total() >= 5, soak.faults
    figure(f"200 jobs, {soak.faults.total()} faults: 0 lost, 0 twice, nothing left over")
