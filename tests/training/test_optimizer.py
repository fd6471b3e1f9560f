"""AdamW and its learning rate."""

import math

import pytest
import torch

from tdlm_fast import config
from tdlm_fast.config import Model as Shape
from tdlm_fast.config import Optim
from tdlm_fast.model import Model
from tdlm_fast.training.optimizer import adamw, learning_rate


def test_a_gradient_that_is_no_number_leaves_the_weights_alone():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for bad in (0.0, 1.0):
        weight.grad = torch.full((3, 3), float("nan") if bad else 1.0)
        before, optimizer.found_inf = weight.detach().clone(), torch.tensor(bad)  # as step.train_step sets it
        optimizer.step()
        assert torch.equal(before, weight) == bool(bad) and weight.isfinite().all()


OPTIM = Optim(lr=0.01, min_lr=0.001, warmup=0.1, weight_decay=0.1)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_minimum():
    rates = [learning_rate(step, 100, OPTIM) for step in range(100)]
    assert rates[:10] == pytest.approx([0.001 * (step + 1) for step in range(10)])  # warm-up: a tenth of the steps
    assert rates[10] == pytest.approx(0.01) and rates[99] == pytest.approx(0.001)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    middle = 0.001 + 0.009 * (1 + math.cos(math.pi * 45 / 89)) / 2
    assert rates[55] == pytest.approx(middle)
    assert learning_rate(1000, 100, OPTIM) == pytest.approx(0.001)  # past the last step it stays


def test_wsd_is_constant_and_falls_at_the_end():
    optim = Optim(lr=0.01, min_lr=0.001, warmup_steps=5, schedule="wsd", decay=0.2)
    rates = [learning_rate(step, 100, optim) for step in range(100)]
    assert rates[4:80] == pytest.approx([0.01] * 76) and rates[0] == pytest.approx(0.002)
    assert rates[84] == pytest.approx(0.001 + 0.009 * (1 - 0.25**0.5)) and rates[99] == pytest.approx(0.001)
    assert all(a > b for a, b in zip(rates[79:], rates[80:], strict=False))
    assert learning_rate(1000, 100, optim) == pytest.approx(0.001)


def test_a_constant_rate_does_not_depend_on_the_steps():
    optim = Optim(lr=0.01, warmup_steps=5, schedule="constant")
    assert [learning_rate(s, 10, optim) for s in range(10)] == [learning_rate(s, 1000, optim) for s in range(10)]
    assert learning_rate(9, 10, optim) == 0.01


def test_the_published_warm_up_takes_six_steps_from_a_thousandth_of_the_rate():
    """torch's LinearLR(start_factor=1e-3, total_iters=6), then the cosine from the peak on."""
    optim = config.load("configs/published.yaml").optim
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    rising, rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=6), []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rising.step()
    assert [learning_rate(step, 1370, optim) for step in range(7)] == pytest.approx(rates)
    assert rates[0] == pytest.approx(3e-7) and rates[6] == pytest.approx(3e-4)
    assert learning_rate(1369, 1370, optim) == pytest.approx(3e-5)


def test_without_warm_up_and_with_one_step_the_first_rate_is_the_peak():
    no_warmup = Optim(lr=0.01, min_lr=0.001, warmup=0.0)
    assert learning_rate(0, 100, no_warmup) == pytest.approx(0.01)
    assert learning_rate(0, 1, no_warmup) == pytest.approx(0.01)
    assert learning_rate(0, 1, OPTIM) == pytest.approx(0.01)


@pytest.mark.parametrize("tied", [False, True])
def test_only_matrices_decay(tied):
    """Without a gradient a decayed weight shrinks by 1 - lr * decay per step, and every other one stays."""
    model = Model(Shape(width=16, layers=1, heads=2, inner=24, positions="learned", seq_len=8, tied=tied), vocab=40)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, OPTIM)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    stay = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert stay == {n for n in before if "norm" in n or n in ("embedding.weight", "positions.weight")}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 if name in stay else 1 - 0.01 * 0.1))
    assert ("_head" in before) == (not tied)


def test_it_has_the_betas_of_the_config_and_every_parameter_once():
    model = Model(Shape(width=16, layers=1, heads=2, inner=24), vocab=40)
    optimizer = adamw(model, Optim(beta1=0.7, beta2=0.8))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, model.parameters()))
    assert all(group["betas"] == (0.7, 0.8) and group["fused"] for group in optimizer.param_groups)


def test_completep_scales_the_rates_of_the_blocks_and_keeps_rate_times_decay():
    model = Model(Shape(width=256, layers=4, heads=2, inner=24), vocab=40, transfer=True)
    optimizer = adamw(model, Optim(weight_decay=0.1, transfer="completep"))
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [
        ({names[id(p)] for p in g["params"]}, g["weight_decay"], g.get("rate", 1)) for g in optimizer.param_groups
    ]
    hidden = {n for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2}
    assert groups[0] == ({"_head"}, 0.1, 1) and groups[2] == (hidden, 0.1 * 4, 1 / 4)
    assert groups[1][1:] == (0, 1) and sorted(n for g in groups for n in g[0]) == sorted(names.values())


def update_of_the_logits(width, layers, transfer):
    """The root mean square by which three steps change the logits of a model."""
    from tdlm_fast.kernels import linear_cross_entropy

    shape = Shape(width=width, layers=layers, heads=4, inner=3 * width, dropout=0.0)
    model = Model(shape, vocab=50, transfer=transfer)
    optimizer = adamw(model, Optim(lr=2e-3, weight_decay=0.0, transfer="completep" if transfer else "none"))
    tokens = torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens, causal=True) @ model.head.T
    for _ in range(3):
        h = model(tokens, causal=True)[:, :-1].flatten(0, 1)
        linear_cross_entropy(h, model.head, tokens[:, 1:].flatten()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * group.get("rate", 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return (model(tokens, causal=True) @ model.head.T - before).square().mean().sqrt().item()


def test_completep_changes_the_logits_alike_at_every_size():
    """The check of coordinates: what a step changes depends on the size without the rule, and little with it."""
    (small, large), (plain, plain_large) = (
        [update_of_the_logits(64, 2, transfer), update_of_the_logits(512, 4, transfer)] for transfer in (True, False)
    )
    assert small == pytest.approx(plain)  # the base of the rule
    assert 0.5 < large / small < 2 and plain_large / plain > 3
