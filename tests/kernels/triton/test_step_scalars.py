"""The scalars that end a step: the clip and the log."""

import math

import pytest
import torch

from tdlm_fast.kernels.ops.step_scalars import clip_scale, record
from tests.kernels.triton.machine import DEVICE


@pytest.mark.parametrize("P", [1, 15, 300])
@pytest.mark.parametrize("clip", [1.0, 0.01, math.inf])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_clipping_by_scale_is_clip_grad_norm(P, clip, size):
    grads = [torch.randn(5, device=DEVICE) * size for _ in range(P)]
    norms, loss = torch.stack(torch._foreach_norm(grads)), torch.tensor(3.0, device=DEVICE)
    norm, scale, skip = clip_scale(norms, loss, clip)
    scaled = [g / scale for g in grads]
    for p in (leaves := [torch.zeros(5, device=DEVICE, requires_grad=True) for _ in grads]):
        p.grad = grads.pop(0)
    truth = torch.nn.utils.clip_grad_norm_(leaves, clip)
    torch.testing.assert_close(norm, truth)
    assert skip == 0 and all(torch.allclose(a, p.grad, rtol=1e-5) for a, p in zip(scaled, leaves, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_skipped(bad):
    one, none = torch.ones(3, device=DEVICE), torch.tensor(0.0, device=DEVICE)
    assert clip_scale(one, none + bad, 1.0)[2] == 1 and clip_scale(one * bad, none, 1.0)[2] == 1
    assert clip_scale(one, none, 1.0)[2] == 0


def test_the_log_takes_a_line_a_step():
    log, number = torch.zeros(3, 4, dtype=torch.float64, device=DEVICE), torch.tensor(1, device=DEVICE)
    for i in range(1, 5):
        scalars = [torch.tensor(v, device=DEVICE) for v in (i + 0.5, i / 3, 2**40 + i, i)]
        record(log, number, *scalars)
    assert number == 5
    lines = {i % 3: [i + 0.5, float(torch.tensor(i / 3)), 2.0**40 + i, i] for i in (2, 3, 4)}
    assert log.tolist() == [lines[i] for i in range(3)]
