"""Damaged and foreign input of every kind ends in what it holds or in one line; `make test-fuzz` tries 100,000."""

import pytest

from .run import fuzz
from .targets import TARGETS

INPUTS = 40  # of each kind, the same each time


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_ends_in_a_traceback_a_hang_or_gigabytes(name, tmp_path):
    figures = fuzz(name, INPUTS, None, tmp_path)
    assert figures["inputs"] >= INPUTS
