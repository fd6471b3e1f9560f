"""Noise schedules: their ends, their slopes and inverses, and the weights of the bound."""

import pytest
import torch

from tdlm_fast.kernels import schedules
from tdlm_fast.kernels.schedules import LEVELS, SCHEDULES, count_weights, inverse, mask_probability, table

HALF = {"linear": 0.5, "log-linear": 0.5, "cosine": 0.5, "cosine-maskgit": 0.5**0.5, "polynomial": 0.25}  # m(1/2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_is_masked_at_0_everything_at_1_and_more_with_time(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    m = mask_probability(t, schedule)
    assert m[0] == 0 and m[-1] == pytest.approx(1) and m[500] == pytest.approx(HALF[schedule])
    assert (m.diff() > 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_inverse_gives_the_time_back(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(inverse(mask_probability(t, schedule), schedule), t, rtol=0, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weight_of_a_level_is_the_slope_over_the_probability(schedule):
    threshold, weight = table(schedule)
    assert len(threshold) == len(weight) == LEVELS
    t = ((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).requires_grad_()
    m = mask_probability(t, schedule)
    (slope,) = torch.autograd.grad(m.sum(), t)
    torch.testing.assert_close(threshold.double() / 2**32, m.detach(), rtol=0, atol=2**-32)
    assert threshold.min() >= 1 and threshold.max() <= 2**32
    torch.testing.assert_close(weight * threshold.double() / 2**32, slope)
    # A token is masked with probability m at weight m'/m, so its mean weight is the integral of m', 1.
    assert (weight * threshold.double() / 2**32).mean().item() == pytest.approx(1, abs=1e-6)


def test_an_unknown_schedule_is_an_error_with_the_names():
    with pytest.raises(ValueError, match="schedule is 'lineal'; it must be one of linear, log-linear, cosine, "):
        table("lineal")


def test_log_linear_is_linear_in_the_probability():
    assert all(torch.equal(a, b) for a, b in zip(table("linear"), table("log-linear"), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weights_of_counts_undo_the_share_of_time_that_draws_a_count(schedule):
    """A count l of n is drawn for t in (m^-1((l-1)/n), m^-1(l/n)], and each of its l tokens weighs 1 / (l share)."""
    T = 6
    weights = count_weights(schedule, T, True).double()
    assert weights.shape == (T + 1, T + 1)
    assert torch.equal(count_weights(schedule, T, False), count_weights(schedule, T, True)[-1:])
    for n in range(T + 1):
        assert weights[n, 0] == 0 and weights[n, n + 1 :].eq(0).all()
        share = [1 / (count * weights[n, count].item()) for count in range(1, n + 1)]
        assert n == 0 or sum(share) == pytest.approx(1, rel=1e-5)  # the shares cover (0, 1]
    if schedules.inverse(torch.tensor(0.25), schedule) == 0.25:  # linear: every count has the share 1/n
        assert weights[4, 1:5].tolist() == pytest.approx([4, 2, 4 / 3, 1])
