"""Rotary positions in one launch against fp64: at most twice the error of rotate in the same dtype."""

import pytest
import torch

from tdlm_fast.kernels.ops.rotary import rotate, rotate_both, turn
from tests.kernels.triton.accuracy import compare
from tests.kernels.triton.machine import DEVICE


def problem(B, H, T, K, dtype):
    """q, k and the gradients of both, with the model's strides."""
    g = torch.Generator().manual_seed(T + K)
    qkv = torch.randn(B, T, 3, H, K, generator=g).to(DEVICE, dtype).permute(2, 0, 3, 1, 4)
    return qkv[:2], [torch.randn(B, H, T, K, generator=g).to(DEVICE, dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 17, 10), (1, 2, 1, 2), (2, 1, 130, 64), (1, 5, 33, 96)])
def test_both_and_their_gradients(shape, dtype):
    (q, k), grads = problem(*shape, dtype)
    compare(rotate_both, lambda q, k: (rotate(q), rotate(k)), (q, k), grads)


def test_turning_back_is_the_inverse_and_heads_lie_row_by_row():
    (q, k), _ = problem(2, 3, 17, 10, torch.float32)
    a, b = turn(q, k, False)
    assert a.transpose(1, 2).is_contiguous() and not torch.equal(a, q)
    for x, y in zip(turn(a, b, True), (q, k), strict=True):
        torch.testing.assert_close(x, y)


def test_pairs_are_needed():
    q = torch.zeros(1, 1, 4, 6, device=DEVICE)
    with pytest.raises(ValueError, match="one shape"):
        turn(q, q[..., :4], False)


def test_opcheck():
    (q, k), _ = problem(1, 2, 5, 8, torch.float32)
    torch.library.opcheck(turn, (q.detach().requires_grad_(), k.detach().requires_grad_(), False))
