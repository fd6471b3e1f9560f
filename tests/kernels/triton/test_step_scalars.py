"""The scalars that end a step: the clip and the log."""

import math

import pytest
import torch

from tdlm_fast.kernels.ops.step_scalars import clip_scale, record
from tdlm_fast.kernels.triton import step_scalars
from tests.kernels.triton.machine import DEVICE


@pytest.mark.parametrize("P", [1, 15, 40])
@pytest.mark.parametrize("clip", [1.0, 0.01, math.inf])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_clipping_by_scale_is_clip_grad_norm(P, clip, size):
    grads = [torch.randn(5, device=DEVICE) * size for _ in range(P)]
    loss, steps = torch.tensor(3.0, device=DEVICE), torch.tensor(6.0, device=DEVICE)
    norm, scale, skip = clip_scale(loss, grads, clip, steps)
    scaled = [g / scale for g in grads]
    for p in (leaves := [torch.zeros(5, device=DEVICE, requires_grad=True) for _ in grads]):
        p.grad = grads.pop(0)
    truth = torch.nn.utils.clip_grad_norm_(leaves, clip)
    torch.testing.assert_close(norm, truth)
    assert (
        skip == 0
        and steps == 7
        and all(torch.allclose(a, p.grad, rtol=1e-5) for a, p in zip(scaled, leaves, strict=True))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("programs", [3, step_scalars.PROGRAMS])
def test_every_entry_of_every_gradient_is_in_the_norm_once(programs, dtype, monkeypatch):
    """Blocks that end within a gradient, gradients smaller than a block, rows that lie apart, several launches."""
    monkeypatch.setattr(step_scalars, "PROGRAMS", programs)
    monkeypatch.setattr(step_scalars, "GRADIENTS", 5)
    g = torch.Generator().manual_seed(1)
    shapes = (), (0,), (1,), (1024,), (33, 65), (7, 1025), (4, 1024), (3,), (1025,), (64, 5), (2, 2)
    grads = [(torch.rand(s, generator=g) + 1).to(DEVICE, dtype) for s in shapes]
    grads[4], grads[-1] = grads[4].T, grads[9][:, 1:3]
    truth = sum((a.double() ** 2).sum() for a in grads).sqrt().item()
    one, steps = torch.tensor(1.0, device=DEVICE), torch.tensor(0.0, device=DEVICE)
    runs = [clip_scale(one, grads, 1.0, steps) for _ in range(2)]
    assert runs[0][0].item() == pytest.approx(truth, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)) and steps == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_skipped_and_not_counted(bad):
    one, none = torch.ones(3, device=DEVICE), torch.tensor(0.0, device=DEVICE)
    steps = torch.tensor(6.0, device=DEVICE)
    assert clip_scale(none + bad, [one], 1.0, steps)[2] == 1 and clip_scale(none, [one, one * bad], 1.0, steps)[2] == 1
    assert steps == 6 and clip_scale(none, [one], 1.0, steps)[2] == 0 and steps == 7


def test_the_log_takes_a_line_a_step():
    log, number = torch.zeros(3, 4, dtype=torch.float64, device=DEVICE), torch.tensor(1, device=DEVICE)
    for i in range(1, 5):
        scalars = [torch.tensor(v, device=DEVICE) for v in (i + 0.5, i / 3, 2**40 + i, i)]
        record(log, number, *scalars)
    assert number == 5
    lines = {i % 3: [i + 0.5, float(torch.tensor(i / 3)), 2.0**40 + i, i] for i in (2, 3, 4)}
    assert log.tolist() == [lines[i] for i in range(3)]


def test_opcheck():
    log, one = torch.zeros(3, 4, dtype=torch.float64, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    torch.library.opcheck(clip_scale, (one, [torch.ones(3, device=DEVICE)], 1.0, one.clone()))
    torch.library.opcheck(record, (log, one.long(), one, one, one.long(), one.long()))
