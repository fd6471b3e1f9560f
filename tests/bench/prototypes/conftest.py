"""The prototypes run where the tests of kernels/triton run: in Triton's interpreter, under ttsem, or on a GPU."""

import pytest

from tests.kernels.triton.machine import DEVICE
from tests.kernels.triton.start import RUNS

if not RUNS:
    WHY = "prototypes run under TRITON_INTERPRET=1, TDLM_TTSEM=1 (make test-ttsem) or on a GPU"


def pytest_configure(config):
    for what in ("divide by zero", "invalid value", "overflow"):  # the interpreter computes lanes that are masked off
        config.addinivalue_line("filterwarnings", f"ignore:{what}:RuntimeWarning")


def pytest_collection_modifyitems(items):
    for item in items:
        if not RUNS and "prototypes" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(scope="session")
def device():
    return DEVICE
