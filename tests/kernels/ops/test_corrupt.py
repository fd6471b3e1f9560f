"""What corruption draws: rates, strata, independence. Its kernels have the reference's bits, so this is of them all."""

import pytest
import torch

from tdlm_fast.kernels import corrupt
from tdlm_fast.kernels.ops.corrupt import SAMPLINGS, corrupt_op
from tdlm_fast.kernels.schedules import SCHEDULES, count_weights, inverse, mask_probability

KW = dict(mask_token_id=1)
INDEPENDENT = ("stratified", "antithetic", "independent")


@pytest.mark.parametrize("sampling", INDEPENDENT)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_sequence_is_masked_at_the_rate_of_its_level(schedule, sampling):
    c = corrupt(torch.zeros(256, 400, dtype=torch.long), seed=5, step=6, schedule=schedule, sampling=sampling, **KW)
    m = mask_probability(c.t.double(), schedule)
    z = (c.masked.sum(1) - 400 * m) / (400 * m * (1 - m)).sqrt().clamp(min=1)
    assert z.abs().max() < 4.5 and abs(z.mean()) < 0.25 and abs(z.pow(2).mean() - 1) < 0.35


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_masks_exactly_as_many_and_weighs_them_by_the_bound(schedule):
    valid = torch.rand(64, 50, generator=torch.Generator().manual_seed(1)) < 0.8
    c = corrupt(torch.zeros(64, 50, dtype=torch.long), seed=5, step=6, schedule=schedule, sampling="counts",
                valid=valid, **KW)  # fmt: skip
    n = valid.sum(1)
    count = (mask_probability(c.t.double(), schedule) * n).ceil().clamp(min=1)
    assert torch.equal(c.masked.sum(1), count.long()) and not (c.masked & ~valid).any()
    share = inverse(count / n, schedule) - inverse((count - 1) / n, schedule)
    torch.testing.assert_close(c.weights.sum(1), (1 / share).float(), rtol=1e-5, atol=0)
    assert count_weights(schedule, 50, False)[0].equal(count_weights(schedule, 50, True)[50])


def test_strata_pairs_and_independent_levels():
    x0 = torch.zeros(64, 1, dtype=torch.long)
    for step in range(20):
        t = {s: corrupt(x0, seed=1, step=step, sampling=s, **KW).t.double() for s in SAMPLINGS}
        assert (t["stratified"] * 64).long().tolist() == list(range(64)) and torch.equal(t["counts"], t["stratified"])
        torch.testing.assert_close(t["antithetic"].view(32, 2).sum(1), torch.ones(32).double())
    t = torch.stack([corrupt(x0, seed=1, step=s, sampling="independent", **KW).t for s in range(200)]).double()
    assert (t.flatten().sort()[0] - (torch.arange(12800) + 0.5) / 12800).abs().max() < 1.95 / 12800**0.5  # Kolmogorov
    assert (t.T.corrcoef().fill_diagonal_(0).abs().max()) < 0.35  # between rows, over 200 steps


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_steps_seeds_rows_and_places_are_independent(sampling):
    """Correlation of what is left of the masks when each sequence's rate is taken away, over 128 x 512 tokens."""
    x0 = torch.zeros(128, 512, dtype=torch.long)

    def residual(seed, step):
        masked = corrupt(x0, seed=seed, step=step, sampling=sampling, **KW).masked.double()
        left = masked - masked.mean(1, keepdim=True)
        return left / left.std()

    a = residual(1, 1)
    others = (residual(1, 2), residual(2, 1), residual(2, 2), a.roll(1, 0), a.roll(1, 1), a.roll(64, 1))
    assert all((a * b).mean().abs() < 4.5 / (128 * 512) ** 0.5 for b in others)


def test_a_part_of_a_batch_needs_the_batchs_rows():
    x0 = torch.zeros(2, 4, dtype=torch.long)
    for kw, message in (
        (dict(row_offset=2), "row_offset = 2 needs batch_rows"), (dict(row_offset=2, batch_rows=3), "rows 2 to 4 lie"),
        (dict(row_offset=-1, batch_rows=8), "rows -1 to 1 lie"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            corrupt(x0, seed=0, step=0, **kw, **KW)


def test_seed_and_step_as_tensors_are_the_same_draw():
    x0 = torch.randint(0, 50, (3, 17))
    for sampling in SAMPLINGS:
        ints = corrupt(x0, seed=3_000_000_000, step=9, sampling=sampling, **KW)
        for seed in (3_000_000_000, torch.tensor(3_000_000_000)):
            tensors = corrupt(x0, seed=seed, step=torch.tensor(9), sampling=sampling, **KW)
            assert all(torch.equal(a, b) for a, b in zip(ints, tensors, strict=True))


def test_ops_pass_opcheck():
    x0 = torch.randint(0, 50, (2, 5))
    for sampling in ("stratified", "counts"):
        rest = (50, "cosine", sampling, 0, 2)
        torch.library.opcheck(corrupt_op, (x0, None, 1, 2, None, None, *rest))
        torch.library.opcheck(corrupt_op, (x0, x0 > 9, 1, 0, None, torch.tensor(2), *rest))
