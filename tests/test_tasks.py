"""Evaluation sets: their texts, the scores of endings against independent definitions, and what is kept of a run."""

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sharp_model

from bench.lm_harness.hub import inside, lay_out
from tdlm_fast import evaluate, train
from tdlm_fast.config import ConfigError
from tdlm_fast.data.tokenizer import GPT2, Bytes
from tdlm_fast.evaluation import accuracy, endings, tasks
from tdlm_fast.evaluation.tasks import Question
from tdlm_fast.evaluation.unigram import Unigram

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
OBJECTIVES = ("autoregressive", "diffusion")

# Rows of each set as the Hub has them: {repository: {config: rows}}, and the columns' types from the datasets' cards.
# Configs and splits that no task reads are there too, as on the Hub, and configs are in no order.
BLIMP = [
    {"sentence_good": f"The mills turn{i}.", "sentence_bad": f"The mills turns{i}.", "field": "syntax",
     "linguistics_term": "t", "UID": uid, "simple_LM_method": True, "one_prefix_method": False,
     "two_prefix_method": False, "lexically_identical": False, "pair_id": i}
    for uid in ("a_first", "b_second") for i in range(3)
]  # fmt: skip
MMLU = {"question": " How many? ", "subject": "high_school_maths", "choices": ["1", "2", "3, or\n4", "5"], "answer": 1}
ARC = {"id": "x", "question": "Which?", "choices": {"text": ["ice", "fire", "air"], "label": ["1", "2", "3"]},
       "answerKey": "3"}  # fmt: skip
HUB = {
    "Rowan/hellaswag": {"default": [{
        "ind": 4, "activity_label": "Making tea", "ctx_a": "A  pot [step] boils.", "ctx_b": "the woman",
        "endings": ["pours it. [title] Then drinks", "eats the pot.", "sings [x] low.", "é sleeps."],
        "ctx": "unused", "source_id": "s", "split": "val", "split_type": "indomain", "label": "2",
    }]},
    "cais/mmlu": {"abstract_algebra": [MMLU | {"question": "another"}], "all": [MMLU]},
    "allenai/ai2_arc": {"ARC-Challenge": [ARC | {"question": "another"}], "ARC-Easy": [ARC]},
    "baber/piqa": {"default": [{"goal": "Boil water", "sol1": "Heat it.", "sol2": "Cool it.", "label": 0}]},
    "EleutherAI/lambada_openai": {
        "de": [{"text": "der alte Müller"}], "default": [{"text": "the old\n\nmiller sleeps by the river"}]
    },
    "nyu-mll/blimp": {uid: [r for r in BLIMP if r["UID"] == uid] for uid in ("b_second", "a_first")},
}  # fmt: skip


def columns_of(repo):
    from datasets import ClassLabel, Features, Sequence, Value

    text, texts, yes = Value("string"), Sequence(Value("string")), Value("bool")
    return Features({
        "Rowan/hellaswag": {"ind": Value("int32")} | dict.fromkeys(
            ("activity_label", "ctx_a", "ctx_b", "ctx", "source_id", "split", "split_type", "label"), text
        ) | {"endings": texts},
        "cais/mmlu": {"question": text, "subject": text, "choices": texts, "answer": ClassLabel(names=list("ABCD"))},
        "allenai/ai2_arc": dict.fromkeys(("id", "question", "answerKey"), text)
        | {"choices": Sequence({"text": text, "label": text})},
        "baber/piqa": dict.fromkeys(("goal", "sol1", "sol2"), text) | {"label": ClassLabel(names=["0", "1"])},
        "EleutherAI/lambada_openai": {"text": text},
        "nyu-mll/blimp": {k: text if isinstance(v, str) else yes for k, v in BLIMP[0].items()}
        | {"pair_id": Value("int32")},
    }[repo])  # fmt: skip


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A folder that holds HUB as `datasets` finds it on the Hub; the split that a task reads, and another one."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("hub")
    for task in tasks.TASKS.values():
        repo, _, split = task.hub
        tables = {c: Dataset.from_list(rows, features=columns_of(repo)) for c, rows in HUB[repo].items()}
        other = "test" if split == "train" else "train"
        lay_out(folder, repo, {c: {other: rows.select([0, 0]), split: rows} for c, rows in tables.items()})
    return folder


@pytest.fixture
def hub(repositories):
    """The current folder holds the repositories: `datasets` itself reads them, and nothing of it is replaced."""
    with inside(repositories):
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The rows of HUB as local files."""
    folder = tmp_path_factory.mktemp("sets")
    for sub in ("mmlu/test", "blimp", "eval_extra"):
        (folder / sub).mkdir(parents=True)

    def lines(name, rows):
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    rows = [r | {"label": int(r["label"])} for r in HUB["Rowan/hellaswag"]["default"]]
    lines("hellaswag_val.jsonl", rows)
    lines("eval_extra/arc_easy.jsonl", [{"query": "Question: Which?", "choices": ["ice", "fire", "air"], "gold": 2}])
    lines("eval_extra/piqa.jsonl", [
        {"query": "Question: Boil water\n", "choices": ["Heat it.", "Cool it."], "gold": 0}
    ])  # fmt: skip
    lines("eval_extra/lambada_openai.jsonl", [
        {"context": "the old\n\nmiller sleeps by the", "continuation": "river"}
    ])  # fmt: skip
    with open(folder / "mmlu/test/high_school_maths_test.csv", "w", newline="") as f:
        csv.writer(f).writerow([" How many? ", "1", "2", "3, or\n4", "5", "B"])
    pairs = [f"{r['UID']}\t{r['pair_id']}\t{r['sentence_good']}\t{r['sentence_bad']}" for r in BLIMP]
    (folder / "blimp/pairs.tsv").write_text("\n".join(["uid\tpair_id\tgood\tbad", *pairs]) + "\n")
    return folder


def test_the_hub_and_local_files_give_the_questions_that_the_harness_asks(hub, local):
    for name in tasks.TASKS:
        assert tasks.load(name)[1] == tasks.load(name, local)[1], name
    assert tasks.load("hellaswag")[1] == [Question(
        "", "Making tea: A pot boils. The woman",
        (" pours it.. Then drinks", " eats the pot.", " sings low.", " é sleeps."), 2,
    )]  # fmt: skip
    about = "The following are multiple choice questions (with answers) about high school maths.\n\n"
    context = about + "How many?\nA. 1\nB. 2\nC. 3, or\n4\nD. 5\nAnswer:"
    assert tasks.load("mmlu")[1] == [Question("high_school_maths", context, (" A", " B", " C", " D"), 1)]
    about = "The following are questions (with answers) about high school maths.\n\n"
    options = (" 1", " 2", " 3, or\n4", " 5")
    assert tasks.load("mmlu_text")[1] == [
        Question("high_school_maths", f"{about}Question: How many?\nAnswer:", options, 1)
    ]
    assert tasks.load("arc_easy")[1] == [Question("", "Question: Which?\nAnswer:", (" ice", " fire", " air"), 2)]
    assert tasks.load("lambada")[1] == [Question("", "the old\n\nmiller sleeps by the", (" river",), 0)]
    blimp = tasks.load("blimp")[1]
    assert tasks.load("piqa")[1] == [Question("", "Question: Boil water\nAnswer:", (" Heat it.", " Cool it."), 0)]
    assert [q.group for q in blimp] == ["a_first"] * 3 + ["b_second"] * 3
    assert [q.endings[0] for q in tasks.first(blimp, 1)] == [" The mills turn0."] * 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real sets in ../shared/data")
def test_the_real_sets_are_complete():
    sizes = {"hellaswag": 10042, "mmlu": 14042, "mmlu_text": 14042, "arc_easy": 2376, "piqa": 1838, "lambada": 5153,
             "blimp": 67000}  # fmt: skip
    for name, size in sizes.items():
        questions = tasks.load(name, SHARED)[1]
        assert len(questions) == size, name
        assert all(0 <= q.gold < len(q.endings) and all(e[0] == " " for e in q.endings) for q in questions), name
        assert len({q.group for q in questions}) == {"blimp": 67, "mmlu": 57, "mmlu_text": 57}.get(name, 1)
        assert all(q.context and q.context == q.context.rstrip() for q in questions) or name in ("blimp", "lambada")


# ---- scores ----------------------------------------------------------------------------------------------------


def score(model, questions, objective, tokenizer=None, T=64, **kw):
    rows = endings.rows_of(questions, tokenizer or Bytes(), T)
    kw = {"samples": 16, "start_token_id": (tokenizer or Bytes()).start_token_id} | kw
    return endings.log_likelihoods(model, objective, rows, **kw)


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


WORDS = "the old river runs by a mill and its miller sleeps".split()


def questions_of(n, endings=4, seed=0, group="", words=3, context=8):
    g = np.random.default_rng(seed)

    def text(k):
        return " ".join(g.choice(WORDS, size=k))

    return [
        Question(group, text(g.integers(0, context)) + "  " * (i % 5 == 0), tuple(f" {text(g.integers(1, words + 1))}"
                 for _ in range(endings - i % 2)), i % (endings - 1))
        for i in range(n)
    ]  # fmt: skip


def test_next_token_scores_are_those_of_the_harness():
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
    found = {"log_p": [a.tolist() for a in np.split(log_p.numpy(), ends)], "greedy": []}
    found |= {"noise": [[0.0] * len(q.endings) for q in questions]}
    found["tokens"] = [a.tolist() for a in np.split(np.array(rows.lengths), ends)]
    out = accuracy.summarise(questions, found)
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


# ---- accuracy --------------------------------------------------------------------------------------------------


def summary(model, questions, objective, tokenizer=None, T=64, **kw):
    log_p, noise = score(model, questions, objective, tokenizer, T, **kw)
    rows = endings.rows_of(questions, tokenizer or Bytes(), T)
    ends = np.cumsum([len(q.endings) for q in questions])[:-1]
    columns = {"log_p": log_p.numpy(), "noise": noise.numpy(), "tokens": np.array(rows.lengths)}
    found = {k: [a.tolist() for a in np.split(v, ends)] for k, v in columns.items()}
    return accuracy.summarise(questions, found | {"greedy": []})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_model_that_knows_the_answer_scores_everything(objective):
    """Letters a to m are likely, the rest are not; right endings are of the former."""
    log_p = torch.full((257,), -20.0)
    log_p[[ord(c) for c in " abcdefghijklm"]] = 0.0
    model = Unigram(log_p.log_softmax(0))
    g = np.random.default_rng(0)

    def text(letters):
        return " " + "".join(g.choice(list(letters), size=9))

    questions = []
    for i in range(60):
        endings = [text("nopqrstuvwxyz") for _ in range(4)]
        endings[i % 4] = text("abcdefghijklm")
        questions.append(Question("", "which", tuple(endings), i % 4))
    out = summary(model, questions, objective)
    assert out["acc"] == out["acc_norm"] == out["acc_token"] == 1.0 and out["gap"] < -100
    wrong = [Question(q.group, q.context, q.endings, (q.gold + 1) % 4) for q in questions]
    assert summary(model, wrong, objective)["acc"] == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_uniform_model_prefers_short_endings_unless_divided_by_tokens(objective):
    """acc: the fewest tokens. acc_norm: the fewest tokens a character, here the longest. acc_token: chance, by ties."""
    model = Unigram(torch.zeros(257))
    questions = [Question("", "x", (" abcdefg", " ab", " abcd", " éé"), gold) for gold in range(4)]
    right = [summary(model, [q], objective) for q in questions]
    assert [r["acc"] for r in right] == [0.0, 1.0, 0.0, 0.0] == [r["shortest"] for r in right]
    per_character = [(len(e.encode()) / (len(e) - 1)) for e in questions[0].endings]
    assert [r["acc_norm"] for r in right] == [float(i == int(np.argmin(per_character))) for i in range(4)]
    assert [r["acc_token"] for r in right] == [0.25] * 4
    even = [Question("", "x", (" ab", " cd"), 0)]
    assert summary(model, even, objective)["acc"] == 0.5  # a tie is no answer


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real sets in ../shared/data")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_untrained_model_is_at_chance(objective):
    from tdlm_fast.model import Model

    tokenizer = GPT2()
    model = Model(vocab=50257, width=16, layers=1, heads=2, inner=24, dropout=0.0).eval()
    for name, limit, chance in (("hellaswag", 100, 0.25), ("blimp", 3, 0.5)):
        questions = tasks.first(tasks.load(name, SHARED)[1], limit)
        out = summary(model, questions, objective, tokenizer, 128, samples=2)
        low, high = out["acc_interval"]
        assert low < chance < high and out["chance"] == chance, (name, out["acc"])


def test_noise_and_halves_by_hand():
    """The second question goes to its right ending with one half of the draws only; the third has three endings."""
    found = {
        "log_p": [[-1.0, -2.0], [-1.0, -1.5], [-3.0, -1.0, -2.0]], "tokens": [[1, 1], [1, 1], [1, 1, 1]],
        "noise": [[0.2, 0.1], [0.4, -0.3], [0.0, 0.1, 0.5]], "greedy": [],
    }  # fmt: skip
    questions = [Question("", "x", (" a",) * n, gold) for n, gold in ((2, 0), (2, 1), (3, 1))]
    out = accuracy.summarise(questions, found)
    assert out["halves_agree"] == pytest.approx(2 / 3) and out["acc"] == pytest.approx(2 / 3)
    assert out["noise"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.16 + 0.09 + 0.01 + 0.25) / 7))
    assert out["gap"] == pytest.approx(((-2 + 1) + (-1 + 1.5) + (-2.5 + 1)) / 3)
    assert out["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


# ---- a run folder ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny, tmp_path):
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "eval.probe=0", "eval.text=0"]) == 0
    return tmp_path / "run"


def test_a_run_keeps_finished_parts_and_prints_a_table(run, local, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "PART", 2)
    command = [str(run), "--tasks", ",".join(tasks.TASKS), "--data", str(local), "--json"]
    real, count = accuracy._compute, []

    def stop(*a, **k):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(accuracy, "_compute", stop)
    capsys.readouterr()
    assert evaluate.main(command) == 130
    assert set(json.loads((run / "tasks.json").read_text())) == {"hellaswag", "mmlu", "mmlu_text", "arc_easy"}
    assert evaluate.main(command) == 0
    assert len(count) == 5 + 2 + 4  # piqa, lambada, and two parts of each paradigm
    first = json.loads(capsys.readouterr().out)
    results = json.loads((run / "tasks.json").read_text())
    assert {"run": "run"} | results == first and set(results) == set(tasks.TASKS)
    blimp = results["blimp"]
    assert blimp["n"] == 6 and set(blimp["groups"]) == {"a_first", "b_second"} and blimp["groups"]["a_first"]["n"] == 3
    assert blimp["acc"] == pytest.approx(np.mean([g["acc"] for g in blimp["groups"].values()]))
    assert results["lambada"]["ppl"] == pytest.approx(math.exp(results["lambada"]["nats_per_word"]))
    assert results["piqa"]["samples"] == 16 and "draws" in results["piqa"]["estimator"]

    assert evaluate.main(command) == 0 and len(count) == 11  # nothing again
    file = run / "tasks" / "blimp.jsonl"
    file.write_text(file.read_text()[:-30])  # a line cut short by a power failure
    assert evaluate.main(command) == 0 and len(count) == 12
    assert json.loads((run / "tasks.json").read_text())["blimp"]["acc"] == blimp["acc"]
    assert evaluate.main(command) == 0 and len(count) == 12
    sentences = local / "blimp" / "pairs.tsv"
    as_it_was = sentences.read_text()
    sentences.write_text(as_it_was.replace("turns2", "turned"))
    assert as_it_was != sentences.read_text()
    try:
        assert evaluate.main(command) == 0 and len(count) > 12  # another text is asked anew
        del count[12:]
    finally:
        sentences.write_text(as_it_was)
    blimp_only = [str(run), "--tasks", "blimp", "--data", str(local)]
    assert evaluate.main([*blimp_only, "--limit", "2"]) == 0 and len(count) == 12  # whole parts of before
    capsys.readouterr()
    assert evaluate.main([*blimp_only, "--samples", "4", "--limit", "2"]) == 0 and len(count) == 14
    assert evaluate.main([*blimp_only, "--samples", "4", "--limit", "2", "--seed", "7"]) == 0 and len(count) == 16
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("a_first") for line in table) and table[0].startswith("task  ")
    assert json.loads((run / "tasks.json").read_text())["piqa"] == results["piqa"]  # other tasks stay


def test_figures_of_other_weights_are_not_taken_for_these(run, local):
    """The same step of the same config, trained elsewhere or by other code, need not have the same weights."""
    from tdlm_fast.evaluation import table
    from tdlm_fast.runs import checkpoint
    from tdlm_fast.runs.load import load_run

    def figures():
        found = accuracy.evaluate(run, ["blimp"], data=local, samples=4)["blimp"]
        return found["gap"], table.likelihoods(run, sequences=2, draws=2)["rows"][0]["nats_per_token"]

    first = figures()
    kept = run / "tasks" / "blimp.jsonl", run / "likelihoods.json"
    before = [f.stat().st_mtime_ns for f in kept]
    assert figures() == first and [f.stat().st_mtime_ns for f in kept] == before
    _, _, model, state = load_run(run)
    with torch.no_grad():
        model.head.neg_()
    checkpoint.save(run / "checkpoints" / "best.safetensors", model, None, state)
    second = figures()
    assert second[0] != first[0] and second[1] != first[1]


def test_damaged_figures_are_named_and_options_without_effect_refused(run, local, capsys):
    from tdlm_fast.evaluation import table

    asked = [str(run), "--tasks", "piqa", "--data", str(local)]
    for name, verb, command in (("tasks.json", evaluate, asked), ("likelihoods.json", table, [str(run)])):
        for text in ("{", "[]"):
            (run / name).write_text(text)
            capsys.readouterr()
            assert verb.main(command) == 2
            error = capsys.readouterr().err
            assert f"error: {run / name} is damaged" in error and "remove it, and it is made again" in error
            (run / name).unlink()
    for command, message in (
        ([*asked, "--split", "valid", "--max-samples", "4"], "--split, --max-samples: only without --tasks"),
        ([*asked, "--layout", "packed"], "--layout: only without --tasks"),
        ([str(run), "--limit", "2"], "--limit: only with --tasks"),
        ([str(run), "--samples", "4", "--batch-size", "1"], "--samples, --batch-size: only with --tasks"),
        ([str(run), "--data", str(local)], "--data: only with --tasks"),
    ):  # fmt: skip
        assert evaluate.main(command) == 2 and f"error: {message}" in capsys.readouterr().err


def test_a_run_is_asked_from_the_hub(run, local, hub, monkeypatch, capsys):
    """The answers from repositories are those from local files, so what one has computed serves the other."""
    count, real = [], accuracy._compute
    monkeypatch.setattr(accuracy, "_compute", lambda *a, **k: count.append(1) or real(*a, **k))
    command = [str(run), "--tasks", ",".join(tasks.TASKS), "--json"]
    capsys.readouterr()
    assert evaluate.main(command) == 0 and len(count) == 8
    found = json.loads(capsys.readouterr().out)
    assert {found[name]["source"] for name in tasks.TASKS} == set(HUB)
    assert evaluate.main([*command, "--data", str(local)]) == 0 and len(count) == 8
    again = json.loads(capsys.readouterr().out)
    assert {name: found[name] | {"source": str(local)} for name in tasks.TASKS} == {k: again[k] for k in tasks.TASKS}


def test_one_error_names_the_task_and_the_fix(run, local, tmp_path, capsys):
    """With no network (conftest.py), and with repositories that cannot be read."""
    with inside(tmp_path):
        capsys.readouterr()
        assert evaluate.main([str(run), "--tasks", "piqa", "--data", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "error: task piqa: " in error and "piqa.jsonl is not there" in error
        assert "baber/piqa cannot be read from the Hub" in error and "ffline" in error and error.count("\n") == 1
        assert "give --data FOLDER with FOLDER/eval_extra/piqa.jsonl in it" in error
        with pytest.raises(ConfigError, match="task blimp: nyu-mll/blimp cannot be read .*ffline"):
            tasks.load("blimp")
        (tmp_path / "baber/piqa").mkdir(parents=True)
        (tmp_path / "baber/piqa/piqa.py").write_text("")
        with pytest.raises(ConfigError, match="task piqa: .*scripts are no longer supported"):
            tasks.load("piqa")
        from datasets import Dataset

        for repo, config, split in (task.hub for task in tasks.TASKS.values()):
            lay_out(tmp_path, repo, {config or "default": {split: Dataset.from_list([{"some": "column"}])}})
        (tmp_path / "baber/piqa/piqa.py").unlink()
        for file in (tmp_path / "EleutherAI/lambada_openai").rglob("*.parquet"):
            file.write_bytes(file.read_bytes()[:40])
        for name in tasks.TASKS:
            with pytest.raises(ConfigError, match=f"task {name}: .* cannot be read from the Hub .*; give --data"):
                tasks.load(name)
    with pytest.raises(ConfigError, match="no task 'swag'; the tasks are hellaswag"):
        tasks.load("swag")
    (tmp_path / "eval_extra").mkdir()
    (tmp_path / "eval_extra" / "piqa.jsonl").write_text('{"query": "Question: x\\n"}\n')
    with pytest.raises(ConfigError, match="task piqa: .*is damaged"):
        tasks.load("piqa", tmp_path)
    for option in (["--samples", "3"], ["--limit", "-1"]):
        assert evaluate.main([str(run), "--tasks", "piqa", "--data", str(local), *option]) == 2


HELLASWAG = HUB["Rowan/hellaswag"]["default"][0]
ARC_LINE = {"query": "Question: Which?", "choices": ["ice", "fire"], "gold": 1}
PIQA_LINE = {"query": "Question: Boil water\n", "choices": ["Heat it.", "Cool it."], "gold": 0}
LAMBADA_LINE = {"context": "the old", "continuation": "river"}
TSV, CSV = "uid\tpair_id\tgood\tbad\n", "How many?,1,2,3,4,"
DAMAGED = [
    *[(name, "" if name != "blimp" else TSV) for name in tasks.TASKS],
    ("hellaswag", HELLASWAG | {"label": 4}), ("hellaswag", HELLASWAG | {"label": -1}),
    ("hellaswag", HELLASWAG | {"endings": []}), ("hellaswag", HELLASWAG | {"label": 0, "endings": ["pours it."]}),
    ("hellaswag", HELLASWAG | {"ctx_a": None}), ("hellaswag", HELLASWAG | {"ctx_b": None}),
    ("hellaswag", HELLASWAG | {"activity_label": 3}), ("hellaswag", HELLASWAG | {"endings": ["a", "b", None, "d"]}),
    ("hellaswag", HELLASWAG | {"endings": ["a", "b", "[x]", "d"]}), ("hellaswag", [1]),
    ("mmlu", CSV), ("mmlu", CSV + "E"), ("mmlu", "How many?,1,2,3,A"), ("mmlu_text", "How many?,1,A"),
    ("mmlu_text", "How many?,1,2,D"), ("mmlu_text", "How many?,1,,A"),
    ("arc_easy", ARC_LINE | {"gold": 2}), ("arc_easy", ARC_LINE | {"query": None}),
    ("arc_easy", ARC_LINE | {"choices": ["ice", 3]}), ("arc_easy", ARC_LINE | {"choices": ["ice"], "gold": 0}),
    ("piqa", PIQA_LINE | {"gold": 2}), ("piqa", PIQA_LINE | {"gold": None}), ("piqa", PIQA_LINE | {"gold": 1.0}),
    ("piqa", PIQA_LINE | {"choices": ["Heat it."]}), ("piqa", PIQA_LINE | {"choices": ["Heat it.", ""]}),
    ("lambada", LAMBADA_LINE | {"continuation": ""}), ("lambada", LAMBADA_LINE | {"continuation": None}),
    ("lambada", LAMBADA_LINE | {"context": None}), ("blimp", TSV + "a\t0\tone\n"), ("blimp", TSV + "a\t0\tone\t\n"),
]  # fmt: skip


@pytest.mark.parametrize("name, content", DAMAGED)
def test_a_question_that_cannot_be_asked_is_a_damaged_file(name, content, tmp_path):
    file = tmp_path / tasks.TASKS[name].files.replace("SUBJECT", "maths")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
    with pytest.raises(ConfigError, match=f"task {name}: .*{tasks.TASKS[name].files} is damaged .*; fetch it again"):
        tasks.load(name, tmp_path)


def test_a_question_of_the_hub_that_cannot_be_asked_is_one_error(monkeypatch):
    from tdlm_fast.data import sources

    for name, repo, changed in (
        ("hellaswag", "Rowan/hellaswag", {"label": ""}), ("hellaswag", "Rowan/hellaswag", {"ctx_b": None}),
        ("mmlu", "cais/mmlu", {"choices": ["1", "2", None, "4"]}), ("mmlu_text", "cais/mmlu", {"answer": 4}),
        ("arc_easy", "allenai/ai2_arc", {"answerKey": "4"}), ("piqa", "baber/piqa", {"label": -1}),
        ("lambada", "EleutherAI/lambada_openai", {"text": "ends in a space "}), ("piqa", "baber/piqa", None),
    ):  # fmt: skip
        row = list(HUB[repo].values())[-1][0]
        monkeypatch.setattr(sources, "from_hub", lambda *a, r=row, c=changed, **k: [] if c is None else [r | c])
        with pytest.raises(ConfigError, match=f"task {name}: {repo} cannot be read from the Hub .*; give --data"):
            tasks.load(name)


def test_what_is_no_folder_and_no_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data .*/file is a file; give the folder that holds blimp/pairs.tsv"):
        tasks.load("blimp", tmp_path / "file")
    (tmp_path / "blimp" / "pairs.tsv").mkdir(parents=True)
    (tmp_path / "eval_extra").write_text("")
    for name in ("blimp", "piqa"):
        with pytest.raises(ConfigError, match=f"task {name}: .*{tasks.TASKS[name].files} is damaged"):
            tasks.load(name, tmp_path)


def test_parts_that_are_no_utf_8_are_computed_again(tmp_path):
    file = tmp_path / "tasks" / "piqa.jsonl"
    kept = accuracy.Parts(file)
    for key in ("first", "second", "third"):
        kept.add({"key": key, "log_p": [[1.0]]})
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], lines[1].replace(b"log_p", b"log_\xff"), b"\xff\xfe\x00", lines[2]]) + b"\n")
    assert set(accuracy.Parts(file).kept) == {"first", "third"}
