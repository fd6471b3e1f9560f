"""The tests of this folder run on a GPU, in Triton's interpreter (TRITON_INTERPRET=1), or under ttsem (TDLM_TTSEM=1).

Both must be chosen before Triton is imported, and both take the place of the kernels for CPU tensors, so each needs a
pytest run of its own: `make test` starts the interpreter, `make test-ttsem` the other.
test_tiles.py, test_register.py and test_launch.py run no kernel, so they run anywhere.
"""

import contextlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from tdlm_fast.kernels import hardware
from tdlm_fast.kernels.triton import register
from tests.kernels.triton.machine import DEVICE, INTERPRETED, ON_GPU, RUNS_KERNELS, TTSEM

ANYWHERE = ("test_tiles.py", "test_register.py", "test_launch.py")
UNCHECKED = "launches that were not searched for races"

checked = None  # ttsem's session
if register.missing() or not RUNS_KERNELS:
    collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py") if p.name not in ANYWHERE]
elif not ON_GPU:
    register.register("cpu")
    torch.set_num_threads(1)
if TTSEM:
    from ttsem import _fakedriver, harness, memory, mlir, sanitize

    modules: dict[tuple, str] = {}

    def ir_for_launch(launch, stage, target):
        """Return the IR of a launch. ttsem's own function compiles on to a cubin first, which takes a second."""
        parts = harness._specialize(launch.fn, launch.args, launch.kwargs, target)
        key = launch.fn.cache_key, stage, *map(str, parts)
        if key not in modules:
            modules[key] = mlir.to_generic(harness._stage_text(launch, stage, target), None)
        return modules[key]

    mlir.enable_generic_printing()
    harness.ir_for_launch = ir_for_launch

    memory.ACCESS_BUDGET = 16_000_000  # in a launch that is searched for races: enough for the whole vocabulary
    # It lasts as long as the process. Tensors stay on the CPU for Python code too: cuda_is_cpu would change them all.
    whole_process = contextlib.ExitStack()
    checked = whole_process.enter_context(sanitize.session(90, "<pytest>", cuda_is_cpu=False))
    _fakedriver.unstub_torch_cuda()
    hardware.INTERPRETER = hardware.Card((9, 0), 4)  # the interpreter runs the tiles of sm_86, ttsem those of sm_90
    # Memory that nothing wrote holds NaN, so a kernel that reads it gives NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)


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
