"""A run's answers to the requests of lm-evaluation-harness, against our own scores. Needs no harness."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import split_of

from tdlm_fast.config import ConfigError
from tdlm_fast.evaluation import accuracy, likelihood, tasks
from tdlm_fast.exchange import harness

OBJECTIVES = ["diffusion", "autoregressive"]


def test_generation_kwargs_are_read_as_the_harness_reads_them():
    greedy = {"temperature": 0.0}
    assert harness.writing({}) == ([], 256, greedy)
    assert harness.writing({"until": "\n", "max_gen_toks": 8}) == (["\n"], 8, greedy)
    assert harness.writing({"until": ["", "a"], "max_new_tokens": "9", "max_tokens": 4}) == (["a"], 9, greedy)
    assert harness.writing({"do_sample": False, "temperature": 0.7})[2] == greedy
    assert harness.writing({"do_sample": True})[2] == {"temperature": 1.0}
    drawn = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    assert harness.writing({"temperature": 0.7, "top_k": "5", "top_p": 0.9, "until": None})[2] == drawn


def test_a_text_ends_before_the_first_stop_string():
    assert harness.until("one. two, three", [",", ". "]) == "one"
    assert harness.until("one", ["two"]) == harness.until("one", []) == "one"


def request(args, doc: int = 0, task: str = "set"):
    return SimpleNamespace(args=args, doc_id=doc, task_name=task)


@pytest.fixture(scope="module", params=OBJECTIVES)
def scorer(request, runs):
    return harness.Scorer(runs[request.param], device="cpu", samples=8)


QUESTIONS = [
    ("the old river runs", [" by the mill and the mill turns", " by", " sleeps"]),
    ("", ["the miller", " the miller sleeps by the old river"]),
    ("and the mill turns by the river while the miller sleeps " * 6, [" the", " runs by the mill"]),
    ("the", [" river runs by the mill and the mill turns by the river while the miller sleeps" * 3]),
]


@pytest.mark.slow
def test_log_likelihoods_are_those_of_our_own_accuracies(scorer):
    """Question by question: the draws are functions of the task and the document, not of the batch."""
    questions = [tasks.Question("", context, tuple(endings), 0) for context, endings in QUESTIONS]
    kw = dict(samples=8, seed=scorer.config.seed, tokens=96, device="cpu")
    with likelihood.scoring(scorer.model, "fp32"):
        own = accuracy.score_part(scorer.model, scorer.tokenizer, scorer.config, questions, 0, task="set", **kw)
    requests = [request((context, ending), i) for i, (context, all_) in enumerate(QUESTIONS) for ending in all_]
    answers = scorer.loglikelihood(requests, disable_tqdm=True)
    assert [a for a, _ in answers] == pytest.approx(list(itertools.chain(*own["log_p"])), rel=1e-5)
    assert scorer.loglikelihood(requests[5:], disable_tqdm=True) == [(pytest.approx(a), g) for a, g in answers[5:]]
    assert scorer.loglikelihood([request(("the", "")), request(("", ""))], disable_tqdm=True) == [(0.0, True)] * 2


@pytest.mark.slow
def test_what_greedy_decoding_writes_is_greedy(scorer):
    written = scorer.generate_until([request(("the old river", {"max_gen_toks": 1}))])[0]
    asked = [request(("the old river", ending)) for ending in (written, written + "q")]
    if scorer.tokenizer.encode("the old river" + written)[:-1] == scorer.tokenizer.encode("the old river"):
        assert [greedy for _, greedy in scorer.loglikelihood(asked)] == [True, False]
    ids = scorer.tokenizer.encode("the old river")
    start, mask = scorer.tokenizer.start_token_id, scorer.model.mask_token_id
    diffusion = scorer.config.objective == "diffusion"
    x = torch.tensor([[*ids, mask] if diffusion else [start, *ids]])
    with torch.no_grad():
        logits = scorer.model(x, causal=not diffusion)[0, -1] @ scorer.model.head.T
    logits[start] = -torch.inf
    assert written == scorer.tokenizer.decode([int(logits.argmax())])


@pytest.mark.slow
def test_the_log_likelihood_of_a_text_is_that_of_its_packed_rows(scorer):
    text = "the old river runs by the mill and the mill turns by the river while the miller sleeps. " * 3
    ids, T = scorer.tokenizer.encode(text), scorer.T
    assert len(ids) > 2 * T and len(ids) % T
    split = split_of([ids[i : i + T] for i in range(0, len(ids), T)], T)
    kw = dict(start_token_id=scorer.tokenizer.start_token_id, max_samples=4000, batch_size=64)
    own = likelihood.likelihood(scorer.model, split, scorer.config.objective, target_stderr=0.02, **kw)
    requests = [request((text,), doc) for doc in range(1 if own.bound == "exact" else 150)]
    answers = torch.tensor(scorer.loglikelihood_rolling(requests, disable_tqdm=True)) / -len(ids)
    error = (answers.std() / len(answers) ** 0.5).item() if len(answers) > 1 else 0.0
    assert abs(answers.mean().item() - own.nats_per_token) < 4 * (error**2 + own.stderr**2) ** 0.5 + 1e-5
    assert (error > 0) == (own.bound == "upper bound") and error < 0.1
    assert scorer.loglikelihood_rolling([request(("",))]) == [0.0]


@pytest.mark.slow
def test_text_is_written_after_the_context_up_to_a_stop_string(scorer, monkeypatch):
    """The context stays as it is; texts longer than the model are written in pieces, each after what fits."""
    seen, of_theirs = [], harness.generate_batch

    def watched(model, objective, prefix, suffix, options, **kw):
        written = of_theirs(model, objective, prefix, suffix, options, **kw)
        seen.append((prefix, options, written.ids[0].tolist()))
        return written

    monkeypatch.setattr(harness, "generate_batch", watched)
    how = {"max_gen_toks": 60, "do_sample": True, "temperature": 1.5}
    context, decode = "the old river", scorer.tokenizer.decode
    whole = scorer.generate_until([request((context, how))], disable_tqdm=True)[0]
    new, ids = [], scorer.tokenizer.encode(context)
    for prefix, options, tokens in seen:
        assert (ids + new)[-len(prefix) :] == prefix and options.temperature == 1.5 and options.tokens == len(tokens)
        assert len(prefix) + len(tokens) == scorer.T or scorer.config.objective == "autoregressive" or not new
        new += tokens
    assert len(seen) > 2 and len(new) == 60 and whole == decode(new)
    stop = next(c for c in whole[8:] if c.isprintable() and whole.index(c) > 4)
    calls = len(seen)
    stopped = scorer.generate_until([request((context, how | {"until": [stop]}))], disable_tqdm=True)[0]
    assert stopped == whole[: whole.index(stop)] and len(seen) - calls <= calls
    if len(decode(seen[0][2])) > whole.index(stop):
        assert len(seen) - calls == 1
    two = scorer.generate_until([request((context, how)), request((context, how))], disable_tqdm=True)
    assert two[0] == whole != two[1]  # each text has its own seed


@pytest.mark.slow
@pytest.mark.parametrize("wrong, named", [
    (dict(samples=3), "--samples is 3"), (dict(steps=10**6), "--steps is 1000000"), (dict(checkpoint="none"), "none"),
])  # fmt: skip
def test_a_wrong_option_is_named(runs, wrong, named):
    with pytest.raises(ConfigError, match=named):
        harness.Scorer(runs["diffusion"], device="cpu", **wrong)


@pytest.mark.slow
def test_wrong_generation_kwargs_are_named(scorer):
    with pytest.raises(ConfigError, match="generation_kwargs of a task: top-p is 2.0"):
        scorer.generate_until([request(("the", {"top_p": 2, "max_gen_toks": 3}))], disable_tqdm=True)


def test_the_missing_package_is_named_with_its_installation(monkeypatch):
    harness.registered.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match="lm-eval needs EleutherAI's harness .*: pip install lm_eval"):
        harness.registered()


def test_a_table_has_a_row_for_each_figure():
    values = {"alias": "set", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1.0, "em_stderr,strict": "N/A"}
    figures = {"results": {"set": values}, "n-samples": {"set": {"original": 9, "effective": 4}}}
    assert harness.lines(figures)[1:] == [
        ["set", "4", "acc", "none", "0.5000", "0.1000"], ["set", "4", "em", "strict", "1.0000", ""],
    ]  # fmt: skip


@pytest.mark.slow
@torch.no_grad()
def test_the_start_token_is_never_written(scorer):
    """Its row of the head is turned towards the last hidden state, so it would be the most probable token."""
    ids, start, mask = scorer.tokenizer.encode("the old"), scorer.tokenizer.start_token_id, scorer.model.mask_token_id
    diffusion = scorer.config.objective == "diffusion"
    h = scorer.model(torch.tensor([[*ids, mask] if diffusion else [start, *ids]]), causal=not diffusion)[0, -1]
    kept = scorer.model.head[start].clone()
    scorer.model.head[start] = 100 * h
    try:
        assert (scorer.model.head @ h).argmax() == start
        [text] = scorer.generate_until([request(("the old", {"max_gen_toks": 1}))], disable_tqdm=True)
    finally:
        scorer.model.head[start] = kept
    assert text and "<|endoftext|>" not in text
