"""Corruption and Philox in Triton: the same bits as the references."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.race.cases import CORRUPT
from tdlm_fast.kernels import corrupt
from tdlm_fast.kernels import philox as reference
from tdlm_fast.kernels.ops.corrupt import BY_COUNT, SAMPLINGS, corrupt_op, corrupt_ref
from tdlm_fast.kernels.schedules import SCHEDULES
from tdlm_fast.kernels.triton import corrupt as corrupt_triton
from tdlm_fast.kernels.triton import tiles
from tdlm_fast.kernels.triton.corrupt import random_words
from tests.kernels.triton.machine import DEVICE, ON_GPU

SMALL = [c for c in CORRUPT if c.B * c.T < 2000 or ON_GPU]


@triton.jit
def words_kernel(INDEX, KEY, OUT, N: tl.constexpr, STREAM: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(OUT + i, random_words(tl.load(INDEX + i), tl.load(KEY), tl.load(KEY + 1), STREAM))


@pytest.mark.parametrize("seed,step", [(0, 0), (1, 2), (2**32 - 1, 2**31), (0xA4093822, 0x299F31D0)])
def test_philox_gives_the_references_words(seed, step, device):
    g = torch.Generator().manual_seed(3)
    index = torch.randint(0, 2**48, (64,), generator=g).to(device)
    index[:3] = torch.tensor([0, 2**32 - 1, 2**32], device=device)
    out = torch.empty_like(index)
    words_kernel[(1,)](index, torch.tensor([seed, step], device=device), out, N=64, STREAM=3)
    assert torch.equal(out, reference.random_words(index, seed=seed, step=step, stream=3))


def same(result, truth):
    for name, a, b in zip(result._fields, result, truth, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name


def both(x0, valid, seed, step, schedule, sampling, row_offset=0, batch_rows=None):
    batch_rows = batch_rows or row_offset + len(x0)
    result = corrupt(x0, valid=valid, seed=seed, step=step, mask_token_id=999, schedule=schedule, sampling=sampling,
                    row_offset=row_offset, batch_rows=batch_rows)  # fmt: skip
    same(result, corrupt_ref(x0, valid, seed, step, None, None, 999, schedule, sampling, row_offset, batch_rows))
    return result


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_bit_is_the_references(case, sampling, device):
    x0, valid = case.inputs(device)
    for schedule in SCHEDULES:
        both(x0, valid, 7, 2**31 + 5, schedule, sampling, case.row_offset, case.batch_rows)


@pytest.mark.parametrize("sampling", BY_COUNT)
def test_rows_too_long_for_a_program_that_counts_take_the_reference(sampling, device, monkeypatch):
    def refuse(*args):
        raise AssertionError("a program of the kernels would spill")

    monkeypatch.setattr(corrupt_triton, "corrupt", refuse)
    x0 = torch.randint(0, 50, (2, tiles.MAX_T + 1), device=device)
    result = both(x0, x0 > 4, 3, 4, "cosine", sampling)
    assert 0 < result.n_masked < (x0 > 4).sum()
    step = torch.tensor(4, device=device)
    same(corrupt(x0, valid=x0 > 4, seed=3, step=step, mask_token_id=999, schedule="cosine", sampling=sampling), result)
    for kw in (dict(x0=x0[:, :-1], sampling=sampling), dict(x0=x0)):
        with pytest.raises(AssertionError, match="spill"):
            corrupt(seed=3, step=4, mask_token_id=999, **kw)


@pytest.mark.parametrize("sampling", [s for s in SAMPLINGS if s not in BY_COUNT])
@pytest.mark.parametrize("T", [1, 255, 256, 257, 700])
def test_a_sequence_of_several_chunks(sampling, T, device):
    x0 = torch.randint(0, 50, (3, T), device=device)
    for valid in (None, x0 > 9):
        both(x0, valid, 5, 6, "linear", sampling)


def test_a_sequence_longer_than_a_program_can_hold(device):
    x0 = torch.randint(0, 50, (2, tiles.MAX_T + 9), device=device)
    both(x0, None, 5, 6, "cosine", "stratified")


def test_counts_are_added_up_in_blocks(device, monkeypatch):
    monkeypatch.setattr(corrupt_triton, "BLOCK_C", 4)
    both(torch.randint(0, 50, (11, 6), device=device), None, 1, 2, "linear", "independent")


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_seed_and_step_on_the_device_give_the_same_bits(sampling, device):
    x0 = torch.randint(0, 50, (3, 17), device=device)
    kw = dict(mask_token_id=50, sampling=sampling)
    truth = corrupt(x0, seed=3_000_000_000, step=9, **kw)
    step = torch.tensor(8, device=device)
    step += 1
    same(corrupt(x0, seed=3_000_000_000, step=step, **kw), truth)
    same(corrupt(x0, seed=torch.tensor(3_000_000_000, device=device), step=step, **kw), truth)
    assert not torch.equal(corrupt(x0, seed=3_000_000_000, step=step + 1, **kw).xt, truth.xt)


def test_nothing_masked_and_everything_masked(device):
    x0 = torch.randint(0, 50, (4, 33), device=device)
    none = both(x0, torch.zeros_like(x0, dtype=torch.bool), 1, 1, "linear", "stratified")
    assert none.n_masked == 0 and none.rows.eq(0).all() and torch.equal(none.xt, x0)
    # One stratum of many: the last rows of a large batch are masked almost surely.
    all_ = both(x0, None, 1, 1, "linear", "stratified", row_offset=2**20 - 4, batch_rows=2**20)
    assert all_.n_masked == x0.numel() and torch.equal(all_.targets, x0.flatten())


def test_ops_pass_opcheck(device):
    x0 = torch.randint(0, 50, (2, 5), device=device)
    rest = (50, "cosine", "stratified", 0, 2)
    torch.library.opcheck(corrupt_op, (x0, None, 1, 2, None, None, *rest))
    torch.library.opcheck(corrupt_op, (x0, x0 > 9, 1, 0, None, torch.tensor(2, device=device), *rest))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**33), st.integers(0, 2**33), st.integers(0, 5),
    st.sampled_from(SCHEDULES), st.sampled_from(SAMPLINGS), st.booleans(),
)  # fmt: skip
def test_any_batch_has_the_references_bits(B, T, seed, step, offset, schedule, sampling, padding):
    g = torch.Generator().manual_seed(B * T)
    x0 = torch.randint(0, 900, (B, T), generator=g).to(DEVICE)
    valid = (torch.rand(B, T, generator=g) < 0.7).to(DEVICE) if padding else None
    both(x0, valid, seed, step, schedule, sampling, offset, offset + B + 2)
