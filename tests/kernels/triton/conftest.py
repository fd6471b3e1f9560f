"""The tests of this folder run on a GPU, in Triton's interpreter (TRITON_INTERPRET=1), or under ttsem (TDLM_TTSEM=1).

Both must be chosen before Triton is imported, and both take the place of the kernels for CPU tensors, so each needs a
pytest run of its own: `make test` starts the interpreter, `make test-ttsem` the other.
test_tiles.py, test_register.py and test_launch.py run no kernel, so they run anywhere.
"""

import inspect
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.triton.machine import DEVICE, INTERPRETED, TTSEM
from tests.kernels.triton.start import RUNS, checked

ANYWHERE = ("test_tiles.py", "test_register.py", "test_launch.py")
UNCHECKED = "launches that were not searched for races"

if not RUNS:
    collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py") if p.name not in ANYWHERE]


def numpy_is_too_new() -> bool:
    """Return whether NumPy refuses to make a number of an array, as the interpreter of Triton up to 3.6 asks."""
    if np.lib.NumpyVersion(np.__version__) < "2.4.0":
        return False
    from triton.runtime import interpreter

    return '"__index__", lambda self: int(self.handle.data))' in inspect.getsource(interpreter)


def pytest_configure(config):
    for what in ("divide by zero", "invalid value", "overflow"):  # the interpreter computes lanes that are masked off
        config.addinivalue_line("filterwarnings", f"ignore:{what}:RuntimeWarning")
    if TTSEM:
        config.pluginmanager.register(Unchecked())


class Unchecked:
    """Print how many launches were too large for ttsem to look for races in, of all pytest-xdist's workers."""

    launches = 0

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[UNCHECKED] = count()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.launches += getattr(node, "workeroutput", {}).get(UNCHECKED, 0)

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(f"ttsem: {self.launches + count()} {UNCHECKED}: they are too large")


def count() -> int:
    return checked.races_unchecked if checked else 0


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    for item in items:
        if item.path.parent != folder or item.path.name in ANYWHERE:
            continue
        if TTSEM:
            if "opcheck" in item.name:
                item.add_marker(
                    pytest.mark.skip(reason="it checks how the op is registered; the interpreter's run does")
                )
            continue
        item.add_marker("interpreter" if INTERPRETED else "gpu")
        if INTERPRETED and numpy_is_too_new():
            item.add_marker(pytest.mark.skip(reason='this Triton\'s interpreter needs pip install "numpy<2.4"'))


@pytest.fixture(scope="session")
def device():
    return DEVICE
