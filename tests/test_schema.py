"""The keys of a config."""

import pytest

from tdlm_fast.schema import Optim


@pytest.mark.parametrize("decay, begins", [(0.15, 85), (1.0, 0), (0.001, 99), (0.5, 50)])
def test_the_decay_takes_its_share_at_the_end_and_one_step_at_least(decay, begins):
    assert Optim(decay=decay).decay_begins(100) == begins
