"""No kernel reads past the end of what it is given: there a page begins that nobody may touch."""

import ctypes
import faulthandler
import os
import signal

import pytest
import torch

from tests.kernels.triton.guard import guarded
from tests.kernels.triton.machine import INTERPRETED

if not INTERPRETED:
    pytest.skip("compute-sanitizer looks for that on a GPU (make test-gpu)", allow_module_level=True)

from tests.kernels.triton.test_launches import calls, run


def test_a_read_past_the_end_is_a_fault():
    a = guarded(torch.arange(5.0))
    assert torch.equal(a, torch.arange(5.0))
    child = os.fork()
    if not child:
        faulthandler.disable()
        within = ctypes.string_at(a.data_ptr(), 20)
        os._exit(len(within + ctypes.string_at(a.data_ptr() + 20, 1)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


@pytest.mark.parametrize("op, args", [pytest.param(*c, id=f"{c[0]} {i}") for i, c in enumerate(calls())])
def test_nothing_past_the_end_of_an_input_is_read(op, args):
    truth = run(op, args)
    found = run(op, [guarded(a) if isinstance(a, torch.Tensor) and a.numel() else a for a in args])
    found, truth = (x if isinstance(x, (tuple, list)) else [x] for x in (found, truth))
    for a, b in zip(found, truth, strict=True):
        assert a is None or torch.equal(a.nan_to_num(), b.nan_to_num())
