"""The tests of this folder run where Triton can: on a GPU, or on CPU tensors in a process with TRITON_INTERPRET=1.

`pytest tests/kernels/triton` on a GPU runs them there; tests/kernels/test_interpreter.py starts the interpreter's.
test_tiles.py is arithmetic, and runs anywhere.
"""

import importlib
import importlib.util
import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
if not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py") if p.name != "test_tiles.py"]
elif INTERPRETED:
    names = ("attention", "batch", "embedding", "next_token", "rms_norm", "stable_sort", "step_scalars", "swiglu")
    for name in ("triton.register", *(f"ops.{n}" for n in names)):
        importlib.import_module(f"tdlm_fast.kernels.{name}").register("cpu")
    torch.set_num_threads(1)


def pytest_configure(config):
    for what in ("divide by zero", "invalid value", "overflow"):  # the interpreter computes lanes that are masked off
        config.addinivalue_line("filterwarnings", f"ignore:{what}:RuntimeWarning")


@pytest.fixture(scope="session")
def device():
    return "cpu" if INTERPRETED else "cuda"
