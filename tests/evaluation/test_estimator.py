"""The estimator's bias, its stated error and its cost, and agreement with the public formulas of MDLM and LLaDA."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import enumerated_bound, sharp_model, split_of

from bench.studies.estimator import ESTIMATORS, estimate
from tdlm_fast.evaluation.likelihood import draw_counts, likelihood, masked_sums, row_lengths, total_variance
from tdlm_fast.evaluation.published_metric import draw_shares
from tdlm_fast.kernels import corrupt
from tdlm_fast.objective import diffusion_loss

pytestmark = pytest.mark.slow

T = 4
ROWS = [[0, 2, 1, 2], [1, 0], [2, 2, 0], [0, 1, 2, 0], [2, 0, 1, 1], [1, 1, 0]] * 8


@pytest.fixture(scope="module")
def known():
    model = sharp_model(3)
    each = {tuple(row): enumerated_bound(model, row) for row in ROWS}
    return model, split_of(ROWS, T), sum(each[tuple(row)] for row in ROWS) / sum(map(len, ROWS))


def stated(model, split, truth, repeats, **kw):
    """Mean and root mean square error of repeated estimates, their mean stated error, and how often they cover."""
    kw = dict(start_token_id=0, batch_size=len(split)) | kw
    runs = [likelihood(model, split, "diffusion", seed=seed, **kw) for seed in range(repeats)]
    means = np.array([r.nats_per_token for r in runs])
    covered = np.mean([r.interval[0] <= truth <= r.interval[1] for r in runs])
    return means.mean(), ((means - truth) ** 2).mean() ** 0.5, np.mean([r.stderr for r in runs]), covered, runs


@pytest.mark.parametrize("samples", [2, 6])
def test_the_mean_is_the_enumeration_and_the_stated_interval_covers_95_percent(known, samples):
    model, split, truth = known
    mean, rmse, stderr, covered, _ = stated(model, split, truth, 200, min_samples=samples, max_samples=samples)
    assert abs(mean - truth) < 3 * rmse / 200**0.5
    assert 0.92 <= covered <= 0.98
    assert stderr == pytest.approx(rmse, rel=0.15)


def test_the_interval_covers_95_percent_where_the_target_stops_the_draws(known, target=0.055, repeats=250):
    """The budget of a run's last evaluation: from 4 draws, to 64 at most, stopped by the target."""
    model, _, truth = known
    mean, rmse, stderr, covered, runs = stated(
        model, split_of(ROWS[:6] * 20, T), truth, repeats, target_stderr=target, max_samples=64
    )
    assert 0.92 <= covered <= 0.98
    assert stderr == pytest.approx(rmse, rel=0.1)
    assert abs(mean - truth) < 3 * rmse / repeats**0.5
    samples = [r.samples for r in runs]
    assert 5 < np.mean(samples) < 16 and len(set(samples)) > 2 and max(samples) < 64  # the rule is what stops
    assert all(r.half_width <= 1.96 * target and not r.missed_target for r in runs)


@pytest.mark.parametrize("R", [12, 300])
def test_the_variance_of_a_total_is_that_of_its_definition(R, D=3):
    """Rows that differ in how they answer to their strata and in their noise: the mean estimate is the variance."""
    g = torch.Generator().manual_seed(0)
    k = (torch.arange(R) + 0.5) / R
    answer = torch.rand(R, 1, generator=g) * 10 * k**2 + torch.randn(R, 1, generator=g) * k  # a_r(k)
    noise, truth, old, result = 0.2 + torch.rand(R, generator=g), [], [], []
    for _ in range(2000):
        order = torch.stack([torch.randperm(R, generator=g) for _ in range(D)])
        y = answer[torch.arange(R), order.argsort(1)] + noise * torch.randn(D, R, generator=g)
        truth += y.sum(1).tolist()
        result.append(total_variance(y.double(), order))
        old.append(y.sum(1).var().item())
    variance = np.var(truth)
    ours = np.array([v for v, _ in result])
    assert np.mean(old) == pytest.approx(variance, rel=0.08)
    saved = R * answer.mean(0).var().item()  # what strata save; few rows get too little credit for it
    assert 0.95 * variance < ours.mean() < 1.05 * variance + 3 / (R - 1) * saved
    assert 2 * ours.mean() ** 2 / ours.var() >= 0.9 * np.median([f for _, f in result])  # freedom is not overstated
    if R == 300:
        assert ours.var() < np.var(old) / 30  # that is what the rows are for


def test_a_target_that_is_not_reached_is_printed(known):
    model, split, _ = known
    kw = dict(start_token_id=0, max_samples=5, batch_size=len(ROWS))
    missed = likelihood(model, split, "diffusion", target_stderr=0.001, **kw)
    assert (missed.missed_target, missed.samples) == (0.001, 5)
    assert str(missed).endswith("; target 0.001 not reached in 5 samples")
    assert missed.asdict()["missed_target"] == 0.001 and missed.asdict()["freedom"] == missed.freedom > 4
    for target in (0.0, 1.0):  # none was set, or it was reached
        assert "target" not in str(likelihood(model, split, "diffusion", target_stderr=target, **kw))


def test_counts_in_strata_need_a_third_of_the_samples_of_plain_monte_carlo(known):
    """Samples for a given error go with the variance of one draw."""
    model, split, truth = known
    variance = {}
    for name in ESTIMATORS:
        draws = np.array([estimate(model, split, name, seed=0, draw=d) for d in range(250)])
        assert abs(draws.mean() - truth) < 4 * draws.std(ddof=1) / 250**0.5, name
        variance[name] = draws.var(ddof=1)
    assert variance["counts-stratified"] < variance["plain"] / 3


def subs(logits, xt, mask):
    """MDLM's SUBS parametrisation (Sahoo et al. 2024, section 3.2.3; `_subs_parameterization` of its code): [MASK] has
    probability 0, and a token that is not masked is carried over."""
    log_p = torch.cat([logits, torch.full_like(logits[..., :1], -torch.inf)], -1).log_softmax(-1)
    delta = torch.full_like(log_p, -torch.inf).scatter(-1, xt[..., None], 0.0)
    return torch.where((xt == mask)[..., None], log_p, delta)


def test_the_training_loss_is_mdlms(known):
    """MDLM: mean over tokens of -log p(x0 | xt) dsigma / expm1(sigma), sigma = -log1p(-(1 - eps) t), eps -> 0."""
    model = known[0]
    x0 = torch.randint(0, 3, (64, T))
    c = corrupt(x0, seed=5, step=2, mask_token_id=3, schedule="log-linear")
    with torch.no_grad():
        log_p = subs((model(c.xt, causal=False) @ model.head.T).double(), c.xt, 3)
        nll = -log_p.gather(-1, x0[..., None])[..., 0]
        ours, _ = diffusion_loss(model, x0, seed=5, step=2, start_token_id=0, schedule="log-linear")
    for eps in (0.0, 1e-5):
        t = c.t.double() / (1 - eps)  # the time at which MDLM's noise masks with our probability
        sigma, dsigma = -torch.log1p(-(1 - eps) * t), (1 - eps) / (1 - (1 - eps) * t)
        theirs = (nll * (dsigma / torch.expm1(sigma))[:, None]).mean()
        assert ours.item() == pytest.approx(theirs.item() / (1 - eps), rel=1e-4)


def test_the_evaluation_is_lladas(known):
    """LLaDA (Nie et al. 2025, Eq. 14; `get_log_likelihood` of its code, with no prompt): l tokens masked, the loss of a
    masked token over p_mask = l / L, summed over the sequence."""
    model, split, _ = known
    counts = draw_counts(row_lengths(split), seed=1, draw=0)
    seen = []
    hook = model.register_forward_pre_hook(lambda _m, tokens: seen.append(tokens[0]))
    sums = masked_sums(model, split, counts, seed=1, draw=0, batch_size=5, device="cpu")
    hook.remove()
    noisy, theirs = torch.cat(seen), []
    for row, xt, l in zip(ROWS, noisy, counts.tolist(), strict=True):  # noqa: E741
        seq, xt = torch.tensor(row), xt[: len(row)]
        mask_index, p_mask = xt == 3, l / len(row)
        with torch.no_grad():
            logits = (model(xt[None], causal=False)[0] @ model.head.T).double()
        theirs.append((F.cross_entropy(logits[mask_index], seq[mask_index], reduction="none") / p_mask).sum().item())
        assert mask_index.sum() == l
    ours = sums * row_lengths(split) / counts
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_the_published_draws_are_the_bounds_with_none_masked_for_all_masked():
    """int(m n) of 0 .. n - 1 against l of 1 .. n: the same subsets, but never all tokens."""
    lengths = torch.full((30_000,), 5)
    a = draw_shares(lengths, seed=0, draw=0)[0].bincount(minlength=6)
    b = draw_counts(lengths, seed=0, draw=0).bincount(minlength=6)
    assert a[5] == 0 and b[0] == 0 and (a[1:5] - b[1:5]).abs().max() < 300
