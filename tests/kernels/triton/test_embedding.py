"""The embedding's backward pass in Triton against fp64, where one row takes all, none, or most gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdlm_fast.kernels.dispatch import reference
from tdlm_fast.kernels.ops import embedding as E
from tdlm_fast.kernels.ops.rows import put_rows
from tests.kernels.triton.machine import DEVICE, DTYPES

embedding_backward_ref = reference(E.embedding_backward)


def tokens_of(kind: str, N: int, V: int, g) -> torch.Tensor:
    tokens = torch.randint(0, V - 1, (N,), generator=g)
    if kind == "half hot":
        tokens[torch.rand(N, generator=g) < 0.5] = V - 1
    elif kind == "all hot":
        tokens[:] = V - 1
    elif kind == "two hot":
        tokens = (torch.arange(N) % 2) * (V - 1)
    elif kind == "all different":
        tokens = torch.randperm(N, generator=g)
    elif kind == "runs of chunks":  # runs that begin and end where chunks do
        tokens = torch.arange(N) // 32
    return tokens


@pytest.mark.parametrize("kind", ["half hot", "all hot", "two hot", "all different", "runs of chunks"])
@pytest.mark.parametrize("N, D", [(1, 64), (31, 16), (32, 64), (65, 20), (1500, 16), (260, 80)])
def test_every_row_gets_its_sum(kind, N, D):
    V, g = 1601, torch.Generator().manual_seed(N + D)
    tokens, dx = tokens_of(kind, N, V, g).to(DEVICE), torch.randn(N, D, generator=g).to(DEVICE)
    truth = embedding_backward_ref(dx.double(), tokens, V)
    mine, theirs = E.embedding_backward(dx, tokens, V), embedding_backward_ref(dx, tokens, V)
    assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 1e-6
    assert torch.equal(mine, E.embedding_backward(dx, tokens, V))
    absent = torch.ones(V, dtype=torch.bool, device=DEVICE).index_fill_(0, tokens, False)
    assert (mine[absent] == 0).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 200), st.integers(1, 40), st.integers(1, 70), st.floats(0, 1),
    st.sampled_from(DTYPES),
)  # fmt: skip
def test_any_tokens_give_their_rows_the_sum(N, V, D, hot, dtype):
    g = torch.Generator().manual_seed(N + V + D)
    tokens, dx = torch.randint(0, V, (N,), generator=g), torch.randn(N, D, generator=g).to(DEVICE, dtype)
    tokens[torch.rand(N, generator=g) < hot] = V - 1
    truth = embedding_backward_ref(dx.double(), tokens.to(DEVICE), V)
    error = (E.embedding_backward(dx, tokens.to(DEVICE), V) - truth).abs().max()
    theirs = (embedding_backward_ref(dx, tokens.to(DEVICE), V) - truth).abs().max()
    assert error <= 2 * theirs + 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [5, 64, 1030])
@pytest.mark.parametrize("n", [0, 1, 30, 33, None])
def test_rows_are_put_where_they_were_taken(n, D, dtype):
    """Rows past the count repeat a row, and what they hold goes nowhere."""
    rows = torch.randperm(50, device=DEVICE)[:33]
    dx, count = torch.randn(33, D, device=DEVICE).to(dtype), None
    if n is not None:
        rows[n:], dx[n:], count = rows[0], float("nan"), torch.tensor(n, device=DEVICE)
    dh = put_rows(dx, rows, count, 50)
    truth = torch.zeros(50, D, device=DEVICE, dtype=dtype)
    truth[rows[:n]] = dx[:n]
    assert torch.equal(dh, truth) and torch.equal(reference(put_rows)(dx, rows, count, 50), truth)
    torch.library.opcheck(put_rows, (dx, rows, count, 50))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_and_dtype(dtype):
    args = torch.randn(40, 16, device=DEVICE).to(dtype), torch.randint(0, 9, (40,), device=DEVICE), 9
    torch.library.opcheck(E.embedding_backward, args)
    assert E.embedding_backward(*args).dtype == dtype
