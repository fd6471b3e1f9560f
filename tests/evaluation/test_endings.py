"""Log-likelihoods of endings against independent definitions: the harness's, and the bound's enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import sharp_model

from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.evaluation import accuracy, endings
from tdlm_fast.evaluation.tasks import Question

from .conftest import OBJECTIVES, questions_of, score

pytestmark = pytest.mark.slow


def log_softmax(model, ids, causal):
    with torch.no_grad():
        return (model(torch.tensor([ids]), causal=causal)[0] @ model.head.T).double().log_softmax(-1)


def harness_log_p(model, tokenizer, context, ending, T):
    """(sum, greedy) of lm-evaluation-harness's loglikelihood (models/huggingface.py), <|endoftext|> before the text."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, ending = context[:-spaces], context[-spaces:] + ending
    before = tokenizer.encode(context)
    after = tokenizer.encode(context + ending)[len(before) :]
    ids = [tokenizer.start_token_id, *(before + after)[-T:]]
    log_p = log_softmax(model, ids[:-1], True)[-len(after) :]
    greedy = bool((log_p.argmax(-1) == torch.tensor(after)).all())
    return log_p.gather(1, torch.tensor(after)[:, None]).sum().item(), greedy


def test_autoregressive_scores_are_those_of_the_harness():
    """acc and acc_norm by the harness's definitions, computed apart: sums, and sums over a choice's characters."""
    model, tokenizer, T = sharp_model(257), Bytes(), 40
    questions = questions_of(40, words=5)
    rows = endings.rows_of(questions, tokenizer, T)
    assert rows.cut > 5 and rows.pieced == 0 and max(map(len, rows.tokens)) == T
    log_p, noise = endings.log_likelihoods(model, "autoregressive", rows, start_token_id=256, samples=2)
    expected = [[harness_log_p(model, tokenizer, q.context, e, T) for e in q.endings] for q in questions]
    np.testing.assert_allclose(log_p, [s for row in expected for s, _ in row], rtol=1e-5)
    assert not noise.any()
    greedy = endings.greedy(model, "autoregressive", rows, start_token_id=256)
    assert greedy == [g for row in expected for _, g in row]
    ends = np.cumsum([len(q.endings) for q in questions])[:-1]
    result = {"log_p": [a.tolist() for a in np.split(log_p.numpy(), ends)], "greedy": []}
    result |= {"noise": [[0.0] * len(q.endings) for q in questions]}
    result["tokens"] = [a.tolist() for a in np.split(np.array(rows.lengths), ends)]
    out = accuracy.summarise(questions, result)
    acc, norm, gap = 0, 0, []
    for q, row in zip(questions, expected, strict=True):
        sums = np.array([s for s, _ in row])
        acc += int(np.argmax(sums) == q.gold)
        norm += int(np.argmax(sums / np.array([float(len(e.removeprefix(" "))) for e in q.endings])) == q.gold)
        gap.append(np.mean(np.delete(sums, q.gold)) - sums[q.gold])
    assert (out["acc"], out["acc_norm"]) == pytest.approx((acc / 40, norm / 40)) and acc != norm
    assert out["gap"] == pytest.approx(np.mean(gap), rel=1e-4) and out["chance"] == pytest.approx((1 / 4 + 1 / 3) / 2)
    low, high = out["gap_interval"]
    assert high - low == pytest.approx(2 * 2.02 * np.std(gap, ddof=1) / math.sqrt(40), rel=0.01)


def conditional_bound(model, before, after):
    """The bound on log p(after | before), over every subset of the ending."""
    n, total = len(after), 0.0
    for size in range(1, n + 1):
        for subset in itertools.combinations(range(n), size):
            xt = before + [model.mask_token_id if i in subset else t for i, t in enumerate(after)]
            log_p = log_softmax(model, xt, False)[len(before) :]
            total += sum(log_p[i, after[i]].item() for i in subset) / size / math.comb(n, size)
    return total


class Digits:
    """A tokenizer of single digits: 10 ids and the start."""

    vocab, start_token_id = 11, 10

    @staticmethod
    def encode(text):
        return [int(c) for c in text if c.isdigit()]


def test_the_diffusion_bound_is_its_enumeration():
    model = sharp_model(11)
    questions = [Question("", "314", (" 1", " 592", " 6535", " 897932"), 0), Question("", "", (" 27182", " 8182"), 1)]
    pairs = [(Digits.encode(q.context), Digits.encode(e)) for q in questions for e in q.endings]
    expected = [conditional_bound(model, *p) for p in pairs]
    log_p, noise = score(model, questions, "diffusion", Digits, samples=64)
    np.testing.assert_allclose(log_p, expected, rtol=1e-5)  # 2^6 - 1 subsets are enumerated
    assert not noise.any()
    draws = [score(model, questions, "diffusion", Digits, samples=12, seed=s) for s in range(300)]
    each, noise = (torch.stack(a) for a in zip(*draws, strict=True))
    error = each.std(0) / 300**0.5
    exact = torch.tensor([len(e) - 1 <= 3 for q in questions for e in q.endings])
    assert ((each.mean(0) - torch.tensor(expected)).abs() < 4.5 * error + 1e-5).all()
    assert (each.std(0)[exact] < 1e-5).all() and (each.std(0)[~exact] > 1e-2).all()
    ratio = (noise**2).mean(0).sqrt()[~exact] / each.std(0)[~exact]
    assert ((ratio > 0.9) & (ratio < 2)).all(), ratio
    assert not torch.equal(*(score(model, questions, "diffusion", Digits, samples=12, key=k)[0] for k in (0, 1)))


def test_counts_are_spread_evenly_and_shared_by_the_endings_of_a_question():
    n, k = torch.full((24,), 12), torch.arange(24)
    for draw in range(20):
        kw = dict(samples=24, seed=3, key=5)
        S, weight, half = endings.masks(n, k, torch.full_like(n, draw), **kw)
        assert torch.equal(S.sum(1).bincount(minlength=13)[1:], torch.full((12,), 2))  # exact over the counts
        assert half.sum() == 0 and torch.equal(weight, 12 / 24 / S.sum(1).double())
        assert torch.equal(S, endings.masks(n, k, torch.full_like(n, draw), **kw)[0])
        S = endings.masks(n[:12], k[:12], torch.full((12,), draw), samples=12, seed=3, key=5)[0]
        assert S.sum(1).sort().values.tolist() == list(range(1, 13))  # both halves are one grid
    share = torch.stack([
        endings.masks(n, k, torch.full_like(n, d), samples=24, seed=0, key=0)[0] for d in range(200)
    ])  # fmt: skip
    assert (share.double().mean((0, 1)) - 6.5 / 12).abs().max() < 0.03  # every place alike


def test_questions_and_groups_draw_apart():
    """Another question or group has other places at the same count, and other counts where they are not exact."""
    k = torch.arange(24)

    def drawn(n, draw, key):
        return endings.masks(torch.full_like(k, n), k, torch.full_like(k, draw), samples=24, seed=3, key=key)[0]

    first = drawn(12, 0, 0)
    for draw, key in ((1, 0), (0, 1)):
        S = drawn(12, draw, key)
        assert torch.equal(S.sum(1), first.sum(1)) and (S != first).any(1).double().mean() > 0.7
    for others in ([drawn(7, draw, 0) for draw in range(6)], [drawn(7, 0, key) for key in range(6)]):
        assert len({tuple(S.sum(1).tolist()) for S in others}) > 3


def test_shared_draws_lower_the_variance_of_a_difference():
    model = sharp_model(11)
    with torch.no_grad():  # a token's neighbours matter less than the token itself, as in language
        model.blocks[0].out.weight.mul_(0.1)
    good, bad = " 314159265", " 314129265"
    together = [Question("", "", (good, bad), 0)]
    draws = [score(model, together, "diffusion", Digits, seed=s)[0] for s in range(60)]
    shared = torch.stack([d[0] - d[1] for d in draws]).std()
    apart = torch.stack([a[0] - b[1] for a, b in zip(draws, draws[1:] + draws[:1], strict=True)]).std()
    assert shared < 0.7 * apart


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_scores_depend_on_no_batch_order_or_limit(objective):
    model, questions = sharp_model(257), questions_of(9)
    whole, noise = score(model, questions, objective)
    small, _ = score(model, questions, objective, tokens=1)
    np.testing.assert_allclose(small, whole, rtol=1e-5)
    rest = endings.rows_of(questions[4:], Bytes(), 64, offset=4)
    part, _ = endings.log_likelihoods(model, objective, rest, start_token_id=256, samples=16)
    np.testing.assert_allclose(part, whole[-len(part) :], rtol=1e-5)
    other, _ = score(model, questions, objective, seed=1)
    assert torch.equal(other, whole) == (objective == "autoregressive")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_is_padded_and_the_head_sees_what_bears_loss(objective, monkeypatch):
    model, rows = sharp_model(257), endings.rows_of(questions_of(12), Bytes(), 64)
    seen, heads = [], []
    real = endings.linear_cross_entropy
    monkeypatch.setattr(endings, "linear_cross_entropy", lambda h, *a, **k: heads.append(len(h)) or real(h, *a, **k))
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, **k: seen.append(x.numel()) or forward(x, **k))
    endings.log_likelihoods(model, objective, rows, start_token_id=256, samples=8, tokens=512)
    times = [1 if objective == "autoregressive" else min(8, 2**n - 1) for n in rows.n]
    assert sum(seen) == sum(len(t) * d for t, d in zip(rows.tokens, times, strict=True)) and max(seen) <= 512
    most = sum(n * d for n, d in zip(rows.n, times, strict=True))
    assert sum(heads) == most if objective == "autoregressive" else 0.4 * most < sum(heads) < 0.75 * most


def test_an_ending_longer_than_the_model_is_scored_in_pieces():
    model, tokenizer = sharp_model(257), Bytes()
    ids = tokenizer.encode(" the miller sleeps")
    question = Question("", "mill", (" the miller sleeps", " so"), 0)
    rows = endings.rows_of([question], tokenizer, 12)
    assert rows.pieced == 1 and rows.cut == 1 and rows.n == [6, 6, 6, 3] and rows.lengths == [18, 3]
    keys = endings.rows_of([question] * 2, tokenizer, 12, offset=5).draw
    assert len(set(keys)) == 6 and keys[0] == keys[3] != keys[4] == keys[7]  # pieces and questions apart, not endings
    before = tokenizer.encode("mill")
    expected = 0.0
    for i in range(0, 18, 6):
        read = [256, *(before + ids[: i + 6])[-12:]]
        log_p = log_softmax(model, read[:-1], True)[-6:]
        expected += sum(log_p[j, ids[i + j]].item() for j in range(6))
    assert score(model, [question], "autoregressive", T=12)[0][0] == pytest.approx(expected, rel=1e-5)
    a, b = (score(model, [question], "diffusion", T=12, seed=s)[0] for s in (0, 1))
    assert a[0] != b[0] and a[1] == b[1]


def test_greedy_diffusion_unmasks_from_left_to_right():
    model = sharp_model(11)
    contexts = ["", "3", "14", "159", "2653", "58979"] * 4
    answers = []
    for c in contexts:  # what greedy decoding of two tokens writes
        ids = [*Digits.encode(c), 11, 11]
        for i in (-2, -1):
            ids[i] = int(log_softmax(model, ids, False)[i].argmax())
        answers.append(ids[-2:])
    questions = []
    for i, (c, a) in enumerate(zip(contexts, answers, strict=True)):
        last = a if i % 3 == 0 else [(a[0] + 1) % 10, a[1]] if i % 3 == 1 else [a[0], (a[1] + 1) % 10]
        questions.append((c, last, i % 3 == 0))
    rows = endings.Rows()
    for c, last, _ in questions:
        rows.tokens.append(Digits.encode(c) + last)
        rows.n.append(2), rows.slot.append(len(rows.lengths)), rows.draw.append(0), rows.lengths.append(2)
    assert endings.greedy(model, "diffusion", rows, start_token_id=10) == [right for *_, right in questions]
