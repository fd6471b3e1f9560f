"""The model and its two objectives against cases whose answer is known."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.config import Model as Shape
from tdlm_fast.kernels import corrupt
from tdlm_fast.kernels.schedules import SCHEDULES
from tdlm_fast.model import Model
from tdlm_fast.objective import OBJECTIVES, Part, autoregressive_loss, diffusion_loss

SMALL = dict(width=16, layers=2, heads=2, inner=24, dropout=0.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_changes_nothing(objective):
    model, x = Model(Shape(**SMALL), vocab=40), torch.randint(0, 40, (2, 12))
    valid = torch.arange(12).expand(2, 12) < 7
    y = torch.where(valid, x, 3)
    kw = dict(seed=0, step=0, start_token_id=0, valid=valid)
    torch.testing.assert_close(OBJECTIVES[objective](model, x, **kw)[0], OBJECTIVES[objective](model, y, **kw)[0])


def test_uniform_predictor_scores_ln_v():
    model, x = Model(Shape(**SMALL), vocab=40), torch.randint(0, 40, (512, 32))
    torch.nn.init.zeros_(model.head)
    kw = dict(seed=0, start_token_id=0)
    assert autoregressive_loss(model, x, step=0, **kw)[0].item() == pytest.approx(math.log(40), rel=1e-5)
    draws = torch.stack([diffusion_loss(model, x, step=s, **kw)[0].detach() for s in range(30)])
    assert abs(draws.mean() - math.log(40)) < 5 * draws.std() / 30**0.5


@pytest.mark.parametrize("sampling", ["stratified", "counts"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_equals_its_enumeration_over_every_mask(schedule, sampling):
    """V = 3, T = 4: T E_l E_S [mean CE over S] over all 15 subsets, the count-stratified form of the bound."""
    torch.manual_seed(0)
    model = Model(Shape(width=16, layers=1, heads=2, inner=24, dropout=0.0), vocab=3)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(25)  # an untrained model is nearly uniform, which would test nothing
        x0 = torch.tensor([[0, 2, 1, 2]])
        exact = 0.0
        for size in range(1, 5):
            for subset in itertools.combinations(range(4), size):
                xt = x0.clone()
                xt[0, list(subset)] = 3
                logits = model(xt, causal=False)[0] @ model.head.T
                nll = F.cross_entropy(logits, x0[0], reduction="none")[list(subset)].mean()
                exact += nll / math.comb(4, size)
        exact = exact / 4
        kw = dict(seed=1, start_token_id=0, schedule=schedule, sampling=sampling)
        draws = torch.stack([diffusion_loss(model, x0.expand(2048, 4), step=s, **kw)[0] for s in range(40)])
    assert abs(draws.mean() - exact) < 5 * draws.std() / 40**0.5
    assert abs(exact - math.log(3)) > 0.02


def test_exact_masks_train_on_the_published_loss_and_refuse_the_bound():
    """Mean over the masked tokens of min((1 - r) / r, 5) times cross-entropy, with int(r n) tokens masked."""
    model, x = Model(Shape(**SMALL), vocab=40), torch.randint(0, 40, (8, 12))
    valid = torch.arange(12) < torch.randint(1, 13, (8, 1))
    kw = dict(seed=3, step=5, start_token_id=0, sampling="exact", valid=valid)
    loss, n = diffusion_loss(model, x, loss_weight="published", **kw)
    c = corrupt(x, seed=3, step=5, mask_token_id=40, sampling="exact", valid=valid)
    assert torch.equal(c.masked.sum(1), (c.t * valid.sum(1)).long()) and n == c.masked.sum()
    logits = (model(c.xt, causal=False, valid=valid) @ model.head.T)[c.masked]
    nll = F.cross_entropy(logits, x[c.masked], reduction="none")
    weight = ((1 - c.t) / c.t).clamp(max=5)[:, None].expand_as(x)[c.masked]
    torch.testing.assert_close(loss, (weight * nll).mean())
    none = diffusion_loss(model, x[:, :1], loss_weight="published", seed=3, step=5, start_token_id=0, sampling="exact")
    assert none[0] == 0 and none[1] == 0  # int(r) of one token
    with pytest.raises(ValueError, match='take sampling="counts", or another loss_weight'):
        diffusion_loss(model, x, **kw)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampling", ["stratified", "counts"])
def test_micro_batches_add_up_to_the_batch(objective, sampling):
    model, x = Model(Shape(**SMALL), vocab=40), torch.randint(0, 40, (8, 12))
    valid = torch.arange(12) < torch.randint(1, 13, (8, 1))
    kw = dict(seed=3, step=5, start_token_id=0) | (dict(sampling=sampling) if objective == "diffusion" else {})
    whole = OBJECTIVES[objective](model, x, valid=valid, **kw)
    parts = [
        OBJECTIVES[objective](model, x[i : i + 2], valid=valid[i : i + 2], part=Part(i, 8, valid.sum()), **kw)
        for i in range(0, 8, 2)
    ]
    for a, b in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(sum(b), a)


def test_a_part_of_a_batch_needs_the_divisor_of_the_whole():
    with pytest.raises(ValueError, match="2 of batch_rows = 8 need the divisor of the whole batch"):
        kw = dict(seed=0, step=0, start_token_id=0, part=Part(batch_rows=8), loss_weight="uniform")
        diffusion_loss(Model(Shape(**SMALL), vocab=40), torch.zeros(2, 12, dtype=torch.long), **kw)


def test_loss_weights_are_their_formulas():
    model, x = Model(Shape(**SMALL), vocab=40), torch.randint(0, 40, (8, 12))
    kw = dict(seed=0, step=0, start_token_id=0)
    c = corrupt(x, seed=0, step=0, mask_token_id=40)
    logits = model(c.xt, causal=False) @ model.head.T
    nll = F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view_as(x) * c.masked
    expected = {
        "elbo": (nll / c.t[:, None]).sum() / x.numel(),
        "uniform": nll.sum() / c.masked.sum(),
        "published": (nll * ((1 - c.t) / c.t).clamp(max=5)[:, None]).sum() / c.masked.sum(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(diffusion_loss(model, x, loss_weight=name, **kw)[0], value, rtol=1e-4, atol=0)


def test_input_masking_hides_what_is_read_never_what_is_predicted():
    model = Model(Shape(width=16, layers=1, heads=2, inner=24, dropout=0.0), vocab=40)
    x0, read = torch.randint(0, 40, (64, 32)), []
    hook = model.register_forward_pre_hook(lambda _m, tokens: read.append(tokens[0]))
    kw = dict(seed=3, start_token_id=7, input_masking=0.25)
    loss, n = autoregressive_loss(model, x0, step=0, **kw)
    assert n == x0.numel()  # every token is predicted
    hidden = read[0] == 40
    assert read[0][:, 0].eq(7).all() and abs(hidden[:, 1:].float().mean() - 0.25) < 0.03
    shown = read[0][:, 1:][~hidden[:, 1:]]
    assert torch.equal(shown, x0[:, :-1][~hidden[:, 1:]])
    logits = model(read[0], causal=True) @ model.head.T
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x0.flatten())
    torch.testing.assert_close(loss, expected)
    read.clear()
    autoregressive_loss(model, x0[:16], step=0, **kw)
    autoregressive_loss(model, x0[16:], step=0, part=Part(row_offset=16), **kw)
    autoregressive_loss(model, x0, step=1, **kw)
    assert torch.equal(torch.cat(read[:2]) == 40, hidden)  # micro-batches hide what the batch would
    assert not torch.equal(read[2] == 40, hidden)
    read.clear()
    autoregressive_loss(model, x0, step=0, seed=3, start_token_id=7)
    hook.remove()
    assert not (read[0] == 40).any()
