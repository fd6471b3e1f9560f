"""The tests of this folder run where Triton can: on a GPU, or on CPU tensors in a process with TRITON_INTERPRET=1.

`pytest tests/triton` on a GPU runs them there; tests/test_triton.py starts the process of the interpreter.
"""

import importlib
import importlib.util
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
if not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]
elif INTERPRETED:
    for name in ("gpu", "attention", "draw", "embedding", "finish", "next_token", "order", "rms_norm", "swiglu"):
        importlib.import_module(f"tdlm_fast.kernels.{name}").register("cpu")
    torch.set_num_threads(1)


def pytest_configure(config):
    for what in ("divide by zero", "invalid value", "overflow"):  # the interpreter computes lanes that are masked off
        config.addinivalue_line("filterwarnings", f"ignore:{what}:RuntimeWarning")


@pytest.fixture(scope="session")
def device():
    return "cpu" if INTERPRETED else "cuda"
