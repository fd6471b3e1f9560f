"""The check of every op that a GPU's first run starts with (bench/race/smoke.py), where its kernels run."""

import pytest
import torch

from bench.race import smoke
from bench.race.calls import calls
from tests.kernels.triton.machine import DEVICE, INTERPRETED

DTYPES = (torch.float32,) if INTERPRETED else (torch.float32, torch.bfloat16)
CALLS = [(dtype, i) for dtype in DTYPES for i in range(len(list(calls(dtype, "cpu", True))))]


@pytest.mark.parametrize("dtype, place", CALLS)
def test_every_call_runs_in_triton_and_passes(dtype, place):
    name, args = list(calls(dtype, DEVICE, True))[place]
    row = smoke.check_op(name, args, torch.device(DEVICE))
    assert (row["backend"], row["why"]) == ("triton", ""), name
