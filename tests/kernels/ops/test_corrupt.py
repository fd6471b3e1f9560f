"""What corruption draws: rates, strata, independence. Every kernel draws the bits of the reference."""

import math

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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_exact_masks_the_whole_part_of_m_n_tokens_of_each_row(schedule):
    valid = torch.rand(256, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    x0 = torch.randint(2, 50, (256, 9))
    c = corrupt(x0, seed=5, step=6, schedule=schedule, sampling="exact", valid=valid, **KW)
    n, m = valid.sum(1), mask_probability(c.t.double(), schedule)
    assert torch.equal(c.masked.sum(1), (m * n).long()) and not (c.masked & ~valid).any()
    assert (c.masked.sum(1) == 0).any() and (c.masked.sum(1) < n)[n > 0].all()  # never a whole row
    assert torch.equal(c.xt, torch.where(c.masked, 1, x0)) and c.n_masked == c.masked.sum()
    other = corrupt(x0, seed=5, step=6, schedule=schedule, sampling="independent", valid=valid, **KW)
    assert torch.equal(c.t, other.t)
    weights = torch.where(other.masked, other.weights, 0).amax(1)[:, None].expand_as(c.masked)
    here = c.masked & other.masked.any(1)[:, None]
    assert torch.equal(c.weights[here], weights[here]) and not c.weights[~c.masked].any()


def test_a_bound_from_exact_masks_would_be_too_low():
    """The weighted loss of a uniform predictor is sum_l l ln((l+1)/l) over l < n, per ln V, instead of n."""
    c = corrupt(torch.zeros(60_000, 4, dtype=torch.long), seed=1, step=2, sampling="exact", **KW)
    total = c.weights.double().sum(1)
    expected = sum(k * math.log((k + 1) / k) for k in range(1, 4))
    assert abs(total.mean() - expected) < 5 * total.std() / 60_000**0.5 and expected < 0.65 * 4


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


def test_errors_name_what_is_wrong():
    x0 = torch.zeros(2, 4, dtype=torch.long)
    for kw, message in (
        (dict(row_offset=2), "row_offset = 2 needs batch_rows"), (dict(row_offset=2, batch_rows=3), "rows 2 to 4 lie"),
        (dict(row_offset=-1, batch_rows=8), "rows -1 to 1 lie"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            corrupt(x0, seed=0, step=0, **kw, **KW)
    with pytest.raises(ValueError, match="one of linear"):
        corrupt(x0, seed=0, step=0, schedule="lineal", **KW)


def test_seed_and_step_as_tensors_are_the_same_draw():
    x0 = torch.randint(0, 50, (3, 17))
    for sampling in SAMPLINGS:
        ints = corrupt(x0, seed=3_000_000_000, step=9, sampling=sampling, **KW)
        for seed in (3_000_000_000, torch.tensor(3_000_000_000)):
            tensors = corrupt(x0, seed=seed, step=torch.tensor(9), sampling=sampling, **KW)
            assert all(torch.equal(a, b) for a, b in zip(ints, tensors, strict=True))


def test_ops_pass_opcheck():
    x0 = torch.randint(0, 50, (2, 5))
    for sampling in ("stratified", "counts", "exact"):
        rest = (50, "cosine", sampling, 0, 2)
        torch.library.opcheck(corrupt_op, (x0, None, 1, 2, None, None, *rest))
        torch.library.opcheck(corrupt_op, (x0, x0 > 9, 1, 0, None, torch.tensor(2), *rest))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mean_weight_of_a_token_is_one_for_every_schedule(schedule):
    """E[weight] = integral of m'(t) dt = 1, so a uniform predictor scores exactly ln V."""
    c = corrupt(torch.zeros(4096, 64, dtype=torch.long), seed=1, step=2, mask_token_id=9, schedule=schedule)
    per_row = c.weights.double().mean(1)
    assert abs(per_row.mean() - 1) < 5 * per_row.std() / 64


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_split_batch_is_masked_as_the_whole(sampling):
    x0 = torch.randint(0, 50, (8, 33))
    kw = dict(seed=3, step=7, mask_token_id=50, sampling=sampling, batch_rows=8)
    whole = corrupt(x0, **kw)
    parts = [corrupt(x0[i : i + 2], row_offset=i, **kw) for i in range(0, 8, 2)]
    assert torch.equal(whole.xt, torch.cat([p.xt for p in parts]))
    assert torch.equal(whole.weights, torch.cat([p.weights for p in parts]))
    assert not torch.equal(whole.xt, corrupt(x0, **kw | {"step": 8}).xt)


def test_one_level_a_stratum_and_pairs_add_up():
    x0 = torch.zeros(16, 4, dtype=torch.long)
    strata = (corrupt(x0, seed=0, step=0, mask_token_id=1).t * 16).long()
    assert strata.tolist() == list(range(16))
    t = corrupt(x0, seed=0, step=0, mask_token_id=1, sampling="antithetic").t.view(8, 2)
    torch.testing.assert_close(t.sum(1), torch.ones(8))


def test_compaction_lists_the_masked_tokens_in_order():
    x0 = torch.randint(0, 50, (5, 21))
    valid = torch.rand(5, 21) < 0.8
    c = corrupt(x0, seed=5, step=1, mask_token_id=50, valid=valid)
    n = int(c.n_masked)
    assert torch.equal(c.rows[:n], c.masked.view(-1).nonzero()[:, 0])
    assert torch.equal(c.targets[:n], x0[c.masked]) and torch.equal(c.row_weights[:n], c.weights[c.masked])
    assert not (c.masked & ~valid).any() and torch.equal(c.xt[~c.masked], x0[~c.masked])
    assert c.row_weights[n:].abs().sum() == 0
