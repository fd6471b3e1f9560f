"""The tests of this folder run on a GPU, or in Triton's interpreter with TRITON_INTERPRET=1; not elsewhere.

The interpreter must be chosen before Triton is imported, and it takes the place of the kernels for CPU tensors, so it
needs a pytest run of its own: `make test` starts it.
test_tiles.py and test_register.py run no kernel, so they run anywhere.
"""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tdlm_fast.kernels.triton import register

ANYWHERE = ("test_tiles.py", "test_register.py")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if register.missing() or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py") if p.name not in ANYWHERE]
elif INTERPRETED:
    register.register("cpu")
    torch.set_num_threads(1)


def numpy_is_too_new() -> bool:
    """Return whether NumPy refuses to make a number of an array, as the interpreter of Triton up to 3.6 asks."""
    if np.lib.NumpyVersion(np.__version__) < "2.4.0":
        return False
    from triton.runtime import interpreter

    return '"__index__", lambda self: int(self.handle.data))' in inspect.getsource(interpreter)


def pytest_configure(config):
    for what in ("divide by zero", "invalid value", "overflow"):  # the interpreter computes lanes that are masked off
        config.addinivalue_line("filterwarnings", f"ignore:{what}:RuntimeWarning")


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    for item in items:
        if item.path.parent != folder or item.path.name in ANYWHERE:
            continue
        item.add_marker("interpreter" if INTERPRETED else "gpu")
        if INTERPRETED and numpy_is_too_new():
            item.add_marker(pytest.mark.skip(reason='this Triton\'s interpreter needs pip install "numpy<2.4"'))


@pytest.fixture(scope="session")
def device():
    return "cpu" if INTERPRETED else "cuda"
