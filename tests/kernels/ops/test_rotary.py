"""Rotary positions: known turns, the inverse, and what a score of two turned vectors depends on."""

import math

import pytest
import torch

from tdlm_fast.kernels.ops.rotary import kept_rotation, rotate, rotation


def heads(T=7, K=8, dtype=torch.float64):
    return torch.randn(2, 3, T, K, generator=torch.Generator().manual_seed(K), dtype=torch.float64).to(dtype)


def test_a_head_of_one_pair_turns_by_its_position_in_radians():
    x = torch.tensor([1.0, 0.0]).expand(1, 1, 4, 2)
    expected = [[math.cos(p), math.sin(p)] for p in range(4)]
    torch.testing.assert_close(rotate(x)[0, 0], torch.tensor(expected))


@pytest.mark.parametrize("first", [0, 5])
def test_it_is_a_product_of_complex_numbers(first):
    """Pairs (i, i + K/2) as complex numbers a + b i, times exp(i position 10000^(-2i/K)), in fp64."""
    x, K = heads(), 8
    rate = 10000.0 ** (-torch.arange(K // 2, dtype=torch.float64) * 2 / K)
    angle = torch.arange(first, first + 7, dtype=torch.float64)[:, None] * rate
    turned = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(rotate(x, first), torch.cat([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-5)


def test_position_0_stays_and_lengths_stay():
    x = heads()
    assert torch.equal(rotate(x)[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(rotate(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("first", [0, 100])
def test_turning_back_is_the_inverse_and_the_gradient(first):
    x = heads().requires_grad_()
    torch.testing.assert_close(rotate(rotate(x, first), first, back=True), x, rtol=1e-6, atol=1e-6)
    dy = heads().flip(-1)
    (dx,) = torch.autograd.grad(rotate(x, first), x, dy)
    torch.testing.assert_close(dx, rotate(dy, first, back=True))


def test_a_score_depends_on_the_distance_only():
    q, k = heads(1).expand(2, 3, 40, 8), heads(1, 8).flip(-1).expand(2, 3, 40, 8)  # the same vectors everywhere
    scores = rotate(q) @ rotate(k).mT
    for shift in (1, 17):
        torch.testing.assert_close(scores[..., shift:, shift:], scores[..., :-shift, :-shift], rtol=1e-5, atol=1e-5)
    assert (scores[..., 0, 0] - scores[..., 0, 9]).abs().min() > 1e-3  # and it does depend on it


def test_a_later_start_is_the_end_of_a_longer_row():
    x = heads(12)
    torch.testing.assert_close(rotate(x[:, :, 9:], 9), rotate(x)[:, :, 9:])
    assert torch.equal(rotation(3, 8, "cpu", 9), rotation(12, 8, "cpu")[9:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_kept_and_the_error_is_its_rounding(dtype):
    x = heads(dtype=dtype)
    error = (rotate(x) - rotate(x.double())).abs().max()
    assert rotate(x).dtype == dtype and error <= 4 * torch.finfo(dtype).eps * x.abs().max()


def test_the_kept_table_is_the_table():
    table = kept_rotation(5, 8, torch.device("cpu"))
    assert torch.equal(table, rotation(5, 8, "cpu")) and table.shape == (5, 8) and table.dtype == torch.float32
    assert kept_rotation(7, 8, torch.device("cpu")).data_ptr() == table.data_ptr()  # a captured graph reads it there
