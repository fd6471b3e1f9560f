"""Tokens from logits: filters, Gumbel noise, certainty and the token that is never written."""

import itertools
import math

import pytest
import torch

from tdlm_fast.sampling.draws import draw, filtered
from tdlm_fast.sampling.options import METHODS

from .conftest import CODE, MASK, STATES, Rigged, T, V, arbitrary, fits, written

pytestmark = pytest.mark.slow


def test_top_k_top_p_and_temperature_shape_what_is_written():
    model = Rigged(torch.tensor([2.0, 1.0, 0.0]).expand(len(STATES), T, V).clone())  # 0.665, 0.245, 0.090
    for kw, logits in (
        (dict(temperature=0.5), [4.0, 2.0, 0.0]), (dict(temperature=3), [2 / 3, 1 / 3, 0.0]),
        (dict(top_k=2), [2.0, 1.0, -math.inf]), (dict(top_p=0.9), [2.0, 1.0, -math.inf]),
        (dict(top_p=0.6), [0.0, -math.inf, -math.inf]), (dict(temperature=0), [0.0, -math.inf, -math.inf]),
        (dict(top_p=0.92), [2.0, 1.0, 0.0]),
    ):  # fmt: skip
        q = torch.tensor(logits).double().softmax(0)
        p = torch.stack([q[list(x)].prod() for x in itertools.product(range(V), repeat=T)])
        for method, steps in (("ancestral", 2), ("margin", 2), ("confidence", 1)):
            assert fits(written(model, steps=steps, method=method, **kw).ids, p), (kw, method)
    z = filtered(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 0.5, 0, 1.0)
    assert z.dtype == torch.float64
    u = torch.rand(40000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share = draw(z.expand(40000, 4), u).bincount(minlength=4) / 40000
    assert (share - z[0].softmax(0)).abs().max() < 0.01


@pytest.mark.parametrize("method", METHODS[2:])
@pytest.mark.parametrize("sharpened", [dict(temperature=0), dict(top_k=1), dict(temperature=0.01)])
def test_certainty_is_that_of_temperature_1(method, sharpened):
    """Sharpened to one token all places would be equally certain, and the order would be from left to right."""
    value = {"margin": lambda p: p[-1] - p[-2], "entropy": lambda p: (p * p.log()).sum()}
    orders = []
    for seed in range(12):
        model, shown, state, expected = arbitrary(seed), [], [MASK] * T, []
        written(model, texts=1, method=method, **sharpened, on_step=lambda x, to=shown: to.append(x[0].tolist()))
        for _ in range(T):
            P = model.logits[CODE[tuple(state)]].detach().double().softmax(-1)
            masked = [i for i in range(T) if state[i] == MASK]
            best = max(masked, key=lambda i: value.get(method, lambda p: p[-1])(P[i].sort().values))
            state[best] = int(P[best].argmax())
            expected.append(list(state))
            orders.append(best)
        assert shown == expected, seed
    assert orders[:T] != list(range(T)) and len(set(orders[::T])) == T  # any place may come first


@pytest.mark.parametrize("method", METHODS)
def test_a_forbidden_token_is_never_written_and_the_others_share_its_probability(method):
    model = Rigged(torch.tensor([2.0, 1.0, 0.0]).expand(len(STATES), T, V).clone())
    q = torch.tensor([-math.inf, 1.0, 0.0]).double().softmax(0)
    p = torch.stack([q[list(x)].prod() for x in itertools.product(range(V), repeat=T)])
    result = written(model, steps=1 if method == "confidence" else 3, method=method, forbidden=0)
    assert fits(result.ids, p)
    assert (written(model, texts=5, method=method, forbidden=0, temperature=0).ids == 1).all()
    assert (written(model, texts=5, method=method, temperature=0).ids == 0).all()


def test_the_nucleus_ends_where_its_mass_is_reached():
    z = filtered(torch.zeros(1, 4), 1.0, 0, 0.5)
    assert torch.isfinite(z).sum() == 2  # the mass before the third of four equal tokens is 0.5 already


def test_gumbel_noise_keeps_its_tail():
    """u near 1 gives the large noise that lets an improbable token win; fp32 has none above 16.6."""
    u = torch.full((1, 2), 0.5, dtype=torch.float64)
    u[0, 1] = 1 - 2.0**-50
    assert draw(torch.tensor([[30.0, 0.0]]).double(), u).item() == 1  # 34.7 against 30.4
    assert torch.isfinite(torch.log(-torch.log(torch.tensor([0.0, 1.0]).double().clamp(1e-300, 1 - 1e-16)))).all()
