"""Diagnostics against the same quantities computed plainly."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import enumerated_bound, sharp_model, split_of

from tdlm_fast.config import Model as Shape
from tdlm_fast.evaluation.diagnostics import LEVELS, attention_health, diagnose, trained_weight
from tdlm_fast.evaluation.likelihood import likelihood
from tdlm_fast.kernels.schedules import table
from tdlm_fast.model import Model
from tdlm_fast.objective import OBJECTIVES


def rows_of(lengths, vocab=9):
    g = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab, (n,), generator=g).tolist() for n in lengths]


def test_levels_average_to_the_bound_and_to_the_exact_likelihood():
    model, split = sharp_model(9), split_of(rows_of([20] * 200), 20)
    kw = dict(rows=200, start_token_id=0)
    bound = likelihood(model, split, "diffusion", start_token_id=0, max_samples=40)
    result = diagnose(model, split, "diffusion", **kw)
    assert np.mean(result["loss"]) == pytest.approx(bound.nats_per_token, rel=0.03)
    assert sum(result["share"]) == pytest.approx(1, abs=1e-3)
    assert result["tokens"] == [200 * round((k + 0.5) * 2) for k in range(LEVELS)]  # masked tokens of 20
    result = diagnose(model, split, "autoregressive", **kw)
    exact = likelihood(model, split, "autoregressive", start_token_id=0).nats_per_token
    assert np.mean(result["loss"]) == pytest.approx(exact, rel=1e-4)
    assert result["tokens"] == [400] * LEVELS and "weighted_variance" not in result


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_norms_and_accuracy_are_those_of_a_plain_loop(objective):
    model = sharp_model(9, width=12)
    row = rows_of([10])[0]
    result = diagnose(model, split_of([row], 10), objective, rows=1, start_token_id=0)
    x0 = torch.tensor(row)
    seen = []
    hook = model.register_forward_pre_hook(lambda _m, tokens: seen.append(tokens[0].clone()))
    diagnose(model, split_of([row], 10), objective, rows=1, start_token_id=0)
    hook.remove()
    for level in (0, 4, 9):
        if objective == "diffusion":
            logits, here = model(seen[level], causal=False)[0] @ model.head.T, seen[level][0] == 9
            assert here.sum() == max(1, round(level + 0.5))
        else:
            logits = model(torch.tensor([[0, *row[:-1]]]), causal=True)[0] @ model.head.T
            here = torch.arange(10) == 9 - level  # the last token sees the most
        loss = F.cross_entropy(logits[here], x0[here])
        model.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        assert result["grad_norm"][level] == pytest.approx(norm.item(), rel=1e-3)
        assert result["loss"][level] == pytest.approx(loss.item(), rel=1e-3)
        assert result["accuracy"][level] == pytest.approx(
            (logits.argmax(-1) == x0)[here].float().mean().item(), abs=1e-4
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_attention_is_what_the_model_attends_with(causal, positions, monkeypatch, references):
    """Entropy and distance from the probabilities of the very call that the model makes."""
    model = sharp_model(9, positions=positions, seq_len=8)
    tokens = torch.randint(0, 9, (3, 8))
    valid = torch.arange(8) < torch.tensor([[8], [5], [3]])
    probabilities = []

    def attend(q, k, v, attn_mask, is_causal, dropout_p):
        probabilities.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~attn_mask, -1e9).softmax(-1))
        return probabilities[-1] @ v

    result = attention_health(model, tokens, causal=causal, valid=valid)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    with torch.no_grad():
        model(tokens, causal=causal, valid=valid)
    monkeypatch.undo()
    p = probabilities[0].double()
    count = valid[:, None].double()
    entropy = torch.special.entr(p).sum(-1)
    far = (p * (torch.arange(8)[:, None] - torch.arange(8)).abs()).sum(-1)
    for name, value in (("entropy", entropy), ("distance", far)):
        np.testing.assert_allclose(result[name][0], (value * count).sum((0, 2)) / count.sum(), rtol=1e-3, atol=1e-5)
    assert max(result["entropy"][0]) <= result["even_entropy"] + 1e-4
    whole = attention_health(model, tokens, causal=False, valid=None)
    assert whole["even_entropy"] == pytest.approx(np.log(8), abs=1e-4) and whole["even_distance"] == 63 / 24


def test_the_bounds_weight_does_not_depend_on_the_schedule():
    m = table("linear")[0].double() / 2**32
    torch.testing.assert_close(trained_weight(m.double(), "elbo"), table("linear")[1])


@pytest.mark.parametrize("loss_weight", ["elbo", "uniform", "published"])
def test_weights_correlate_with_difficulty_unless_they_are_uniform(loss_weight):
    model, split = sharp_model(9), split_of(rows_of([30] * 40), 30)
    result = diagnose(model, split, "diffusion", rows=40, start_token_id=0, loss_weight=loss_weight)
    assert (result["weight_difficulty"] is None) == (loss_weight == "uniform")
    spread = np.array(result["weighted_variance"])
    assert (spread > 0).all()
    if loss_weight == "elbo":  # one masked token of thirty, weighed by 20: the spread that the bound pays for
        assert spread[0] > spread[-1]


WEIGHTS = {  # of a masked token at mask probability m
    "elbo": lambda m: 1 / m, "uniform": lambda m: 1.0, "published": lambda m: min((1 - m) / m, 5.0),
}  # fmt: skip


@pytest.mark.parametrize("loss_weight", WEIGHTS)
def test_weights_shares_and_spreads_are_those_of_a_plain_loop(loss_weight):
    model, lengths = sharp_model(9), [30, 7, 18, 25, 12, 30]
    rows, seen = rows_of(lengths), []
    hook = model.register_forward_pre_hook(lambda _m, tokens: seen.append(tokens[0].clone()))
    result = diagnose(model, split_of(rows, 30), "diffusion", rows=6, start_token_id=0, loss_weight=loss_weight)
    hook.remove()
    means, variances, weights, difficulty = [], [], [], []
    for k in range(10):
        weight, nats, scored = WEIGHTS[loss_weight]((k + 0.5) / 10), [], []
        for xt in seen[k]:
            # The row is known by its length and the tokens it shows; the rest of the batch's row is padding.
            n, masked = next((len(r), xt[: len(r)] == 9) for r in rows if _shows(xt, r))
            x0 = torch.tensor(next(r for r in rows if _shows(xt, r)))
            with torch.no_grad():
                log_p = (model(xt[None, :n], causal=False)[0] @ model.head.T).double().log_softmax(-1)
            each = -log_p.gather(1, x0[:, None])[masked, 0]
            nats.append(each.tolist())
            scored.append(weight * each.sum().item() / n)
            weights.append(weight)
            difficulty.append(each.mean().item())
        means.append(np.mean(sum(nats, [])))
        variances.append(np.sum((np.array(scored) - np.mean(scored)) ** 2) / 5)
    np.testing.assert_allclose(result["loss"], means, rtol=1e-3)
    np.testing.assert_allclose(result["weighted_variance"], variances, rtol=1e-3)
    np.testing.assert_allclose(result["share"], np.array(means) / sum(means), rtol=1e-3)
    assert max(result["share"]) > 1.1 * min(result["share"])
    if loss_weight == "uniform":
        assert result["weight_difficulty"] is None
    else:
        expected = np.corrcoef(weights, difficulty)[0, 1]
        assert abs(expected) > 0.02 and result["weight_difficulty"] == pytest.approx(expected, rel=0.01)


def _shows(xt, row):
    """Whether xt (T,) is the row with some of it masked and token 0 as padding."""
    n = len(row)
    return all(t in (9, r) for t, r in zip(xt[:n].tolist(), row, strict=True)) and not xt[n:].any() and 9 in xt[:n]


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = Model(Shape(width=16, layers=2, heads=2, inner=24, dropout=0.5), vocab=9).train()
    before = torch.get_rng_state()
    result = diagnose(model, split_of(rows_of([5, 3, 1]), 5), "diffusion", rows=8, start_token_id=0)
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert all(p.grad is None for p in model.parameters()) and not model.blocks[0].qkv._forward_hooks
    assert result == diagnose(model, split_of(rows_of([5, 3, 1]), 5), "diffusion", rows=8, start_token_id=0)
    assert enumerated_bound(model.eval(), [1, 2]) > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_attention_is_of_what_the_objective_reads(objective):
    """Diffusion: 11 of 20 tokens masked, both ways; autoregressive: the text shifted by one, causal."""
    model, lengths = sharp_model(9), [20, 20, 10, 20, 10]
    rows, seen = rows_of(lengths), []
    hook = model.register_forward_pre_hook(lambda _m, args, kw: seen.append((args[0].clone(), kw)), with_kwargs=True)
    result = diagnose(model, split_of(rows, 20), objective, rows=5, start_token_id=0)
    hook.remove()
    tokens, kw = seen[-1]  # the attention's own pass
    if objective == "diffusion":
        masked = (tokens == 9).sum(1).tolist()
        n = [len(next(r for r in rows if _shows(xt, r))) for xt in tokens]
        assert masked == [{20: 11, 10: 6}[i] for i in n] and kw["causal"] is False
        assert torch.equal(tokens, seen[5][0])
    else:
        n = [next(len(r) for r in rows if x[: len(r)].tolist() == [0, *r[:-1]]) for x in tokens]
        assert kw["causal"] is True
    assert sorted(n) == sorted(lengths)
    n = [min(k + kw["causal"], 20) for k in n]  # the start token stands before the row
    assert torch.equal(kw["valid"], torch.arange(20) < torch.tensor(n)[:, None])
    assert result["attention"] == attention_health(model, tokens, causal=kw["causal"], valid=kw["valid"])
    # Of causal attention, even over what it sees, a query at place i is (i / 2) tokens away.
    even = sum(k * (k - 1) / 4 if kw["causal"] else (k * k - 1) / 3 for k in n) / sum(n)
    assert result["attention"]["even_distance"] == pytest.approx(even, rel=1e-4)


def test_levels_mask_subsets_of_their_own():
    """Of 20 tokens 9 and 11 are masked at two levels: 9 x 11 / 20 in common, not all 9 as where one holds the other."""
    model, seen = sharp_model(9), []
    hook = model.register_forward_pre_hook(lambda _m, args: seen.append(args[0] == 9))
    diagnose(model, split_of(rows_of([20] * 200), 20), "diffusion", rows=200, start_token_id=0)
    hook.remove()
    for a, b in itertools.pairwise(seen[:LEVELS]):
        common = (a & b).sum(1).double()
        expected = a[0].sum() * b[0].sum() / 20
        assert abs(common.mean() - expected) < 4.5 * common.std() / 200**0.5 + 1e-9
