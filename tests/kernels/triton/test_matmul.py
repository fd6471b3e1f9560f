"""The stored form's own products against fp64, by a count on the device; what lies past it may hold anything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdlm_fast.kernels.triton import matmul as product_triton
from tdlm_fast.kernels.triton import tiles
from tests.kernels.triton.guard import guarded
from tests.kernels.triton.machine import DEVICE, DTYPES

SMALL = tiles.Product(32, 32, 16, 4, 2)


def close(found, truth, dtype):
    assert found.dtype == torch.float32 and found.shape == truth.shape
    largest = truth.abs().max().item() if truth.numel() else 0
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=3e-6 * (1 + largest))


def check(rows, D, V, count, first, dtype, processors, plan=SMALL):
    g = torch.Generator().manual_seed(rows + D + V)
    x, w = torch.randn(rows, D, generator=g).to(DEVICE, dtype), torch.randn(V, D, generator=g).to(DEVICE, dtype)
    n_rows, live = torch.tensor(count, device=DEVICE), min(max(count - first, 0), rows)
    z = product_triton.logits(x, w, n_rows, first, plan)
    assert z.shape == (rows, V) and z.stride(0) == tiles.padded(V) and z.dtype == dtype
    truth = x[:live].double() @ w.double().T
    error = (z[:live].double() - truth).abs().max() if live else 0
    assert error <= torch.finfo(dtype).eps * (truth.abs().max() if live else 0) + 1e-5
    p = torch.randn(rows, V, generator=g).to(DEVICE, dtype)
    z.copy_(p)
    z[live:] = float("nan")
    dh = product_triton.towards_h(z, w, n_rows, first, plan, processors)
    close(dh[:live], p[:live].double() @ w.double(), dtype)
    assert dh[live:].eq(0).all()
    once = p[:live].double().T @ x[:live].double()
    x[live:] = 0  # as lce_stored has it: 0 times NaN is not read, for z's tile ends at the count
    dw = torch.full((V + 3, D), 7.0, device=DEVICE)
    product_triton.towards_w(z, x, n_rows, first, plan, dw[:V], add=False)
    close(dw[:V], once, dtype)
    product_triton.towards_w(z, x, n_rows, first, plan, dw[:V], add=True)
    close(dw[:V], 2 * once, dtype)
    assert dw[V:].eq(7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count, first", [(0, 0), (1, 0), (40, 0), (70, 0), (90, 70), (70, 70), (5, 70), (1000, 0)])
def test_counts(count, first, dtype):
    check(70, 48, 133, count, first, dtype, processors=4)


@pytest.mark.parametrize("of", tiles.PRODUCTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("card", tiles.SHARED_KB)
def test_the_tiles_of_every_card(card, dtype, of):
    if DEVICE == "cuda":
        card = tiles.card(torch.cuda.get_device_capability())
    check(150, 80, 300, 140, 0, dtype, processors=8, plan=tiles.product(card, dtype, of))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 90), st.integers(1, 5), st.integers(1, 300), st.integers(-3, 120), st.integers(0, 40),
    st.sampled_from(DTYPES), st.integers(1, 30),
)  # fmt: skip
def test_any_shape(rows, widths, V, count, first, dtype, processors):
    check(rows, 16 * widths, V, count, first, dtype, processors)


def test_two_runs_give_the_same_bits():
    x, w = torch.randn(90, 64, device=DEVICE), torch.randn(700, 64, device=DEVICE)
    count = torch.tensor(80, device=DEVICE)
    runs = []
    for _ in range(2):
        z = product_triton.logits(x, w, count, 0, SMALL)
        runs.append(product_triton.towards_h(z, w, count, 0, SMALL, 30))
    assert torch.equal(*runs)


@pytest.mark.skipif(DEVICE == "cuda", reason="compute-sanitizer looks for that on a GPU (make test-gpu)")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [40, 70])
def test_nothing_past_the_end_of_an_input_is_read_or_written(count, dtype):
    g = torch.Generator().manual_seed(0)
    x, w = (guarded(torch.randn(n, 48, generator=g).to(dtype)) for n in (70, 133))
    n_rows, dw = guarded(torch.tensor([count]))[0], guarded(torch.zeros(133, 48))
    z = product_triton.logits(x, w, n_rows, 0, SMALL)
    dh = product_triton.towards_h(z, w, n_rows, 0, SMALL, 4)
    for add in (False, True):
        product_triton.towards_w(z, x, n_rows, 0, SMALL, dw, add)
    close(dw, 2 * z[:count].double().T @ x[:count].double(), dtype)
    close(dh[:count], z[:count].double() @ w.double(), dtype)
