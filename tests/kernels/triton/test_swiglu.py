"""The SwiGLU gate, against fp64."""

import pytest
import torch
import torch.nn.functional as F

from bench.race.cases import GATE
from tdlm_fast.kernels.ops.swiglu import swiglu_forward
from tests.kernels.triton.accuracy import compare
from tests.kernels.triton.machine import DEVICE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def gate(x):
    g, u = x.chunk(2, -1)
    return [F.silu(g) * u]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GATE, ids=str)
def test_gate(case, dtype):
    x, dy = case.inputs(dtype, DEVICE)
    compare(lambda x: [swiglu_forward(x)], gate, [x], [dy])
