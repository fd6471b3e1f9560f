"""Runs the tests of tests/kernels/triton under Triton's interpreter, each file in a process of its own.

The interpreter must be chosen before triton is imported, and it replaces the kernels that serve CPU tensors.
"""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "triton"


def too_new_numpy() -> bool:
    """Triton's interpreter up to 3.6 makes a number of an array of one element, which NumPy refuses from 2.4 on."""
    if np.lib.NumpyVersion(np.__version__) < "2.4.0":
        return False
    from triton.runtime import interpreter

    return '"__index__", lambda self: int(self.handle.data))' in inspect.getsource(interpreter)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
@pytest.mark.parametrize("file", sorted(p.name for p in FOLDER.glob("test_*.py") if p.name != "test_tiles.py"))
def test_under_the_interpreter(file):
    if too_new_numpy():
        pytest.skip('this Triton\'s interpreter needs pip install "numpy<2.4"')
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout)
