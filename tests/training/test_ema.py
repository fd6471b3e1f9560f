"""The average of the weights against one written plainly, what holds it, and runs that are taken up again."""

import json
import signal

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.evaluation.likelihood import final_scoring, likelihood
from tdlm_fast.model import build_model
from tdlm_fast.runs import load
from tdlm_fast.training import ema, limits, memory_estimate, step
from tdlm_fast.training.cuda_graph import DeviceSteps
from tdlm_fast.training.optimizer import adamw
from tdlm_fast.training.step import EagerSteps
from tests.conftest import corpus_of
from tests.running import TINY, metrics, small_config
from tests.training.test_cuda_graph import split
from tests.training.weights import same_tensors, tensors_of

pytestmark = pytest.mark.slow
SHORT = ["optim.warmup_steps=4", "eval.text=0", "eval.probe=0", "eval.published=0", "eval.every=5", "optim.ema=0.8"]


def trained(kind, c, steps):
    """(model, optimizer, [weights after each step as lists of numbers])."""
    model, after = build_model(c, Bytes()).train(), []
    optimizer = adamw(model, c.optim)
    runner = kind(model, optimizer, step.objective(c, Bytes()), split(c.data.padded), c, steps=steps)
    for i in range(steps):
        runner.run(i)
        after.append([p.flatten()[:3].tolist() for p in model.parameters()])
    return model, optimizer, after


@pytest.mark.parametrize("kind", [EagerSteps, DeviceSteps])
def test_the_average_is_that_of_the_formula(kind):
    c = small_config("optim.ema=0.75", "data.layout=packed")  # from step 31 on a constant decay
    model, optimizer, after = trained(kind, c, 40)
    for place, p in enumerate(model.parameters()):
        for i in range(3):
            average = 0.0
            for k, weights in enumerate(after, 1):
                average += max(0.25, 10 / (9 + k)) * (weights[place][i] - average)
            assert optimizer.state[p]["average"].flatten()[i].item() == pytest.approx(average, abs=2e-6)
    assert not torch.allclose(optimizer.state[p]["average"], p, atol=1e-5)


def test_training_is_the_same_with_an_average_and_without():
    with_it, _, _ = trained(EagerSteps, small_config("optim.ema=0.9", "data.layout=packed"), 6)
    without, optimizer, _ = trained(EagerSteps, small_config("data.layout=packed"), 6)
    assert all(torch.equal(p, q) for p, q in zip(with_it.parameters(), without.parameters(), strict=True))
    assert not any("average" in held for held in optimizer.state.values())


def test_averages_stand_in_for_the_weights_only_inside():
    model, optimizer, _ = trained(EagerSteps, small_config("optim.ema=0.9", "data.layout=packed"), 6)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyError), ema.averaged(model, optimizer):
        assert all(torch.equal(p, optimizer.state[p]["average"]) for p in model.parameters())
        raise KeyError
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_graph_could_hold_the_average_and_memory_counts_it():
    c = small_config("optim.ema=0.9", "data.layout=packed")
    plain = small_config("data.layout=packed")
    numbers = limits.parameter_count(c.model, 257)
    assert memory_estimate.estimate(c) - memory_estimate.estimate(plain) > 3.5e-6 * numbers  # raises if it waits
    at_large = [settings.load(TINY, ["model.width=512", "train.batch_size=2", *k]) for k in (["optim.ema=0.9"], [])]
    with_it, without = (limits.least_bytes(x, 50257) for x in at_large)
    assert with_it - without == 4 * limits.parameter_count(at_large[0].model, 50257)


def test_a_run_taken_up_again_has_the_same_average_and_scores(tiny, tmp_path):
    keys = [*tiny, *SHORT, "optim.schedule=constant"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train.main([TINY, *keys, "train.max_steps=12"]) == 0
    assert train.main([TINY, *keys, "train.max_steps=12", "--extend", "20"]) == 0
    assert train.main([TINY, *keys, "train.max_steps=20", f"run.dir={whole}"]) == 0
    assert same_tensors(run, whole) and "average.norm.weight" in tensors_of(run)
    scores = [{e["step"]: e["valid"] for e in metrics(f) if "valid" in e} for f in (run, whole)]
    assert scores[0] == {**scores[1], 12: scores[0][12]}
    summaries = [json.loads((f / "summary.json").read_text()) for f in (run, whole)]
    assert all(summaries[0][k] == summaries[1][k] for k in ("test", "weights", "best_step"))


def test_a_stopped_run_is_scored_by_its_average(tiny, tmp_path, monkeypatch):
    run_step = EagerSteps.run

    def stopping(self, i):
        if i == 6:
            signal.raise_signal(signal.SIGTERM)
        return run_step(self, i)

    monkeypatch.setattr(EagerSteps, "run", stopping)
    assert train.main([TINY, *tiny, *SHORT, "train.max_steps=10", "optim.lr=3e-3"]) == 130
    config, tokenizer, model, state = load.load_run(tmp_path / "run", "last")
    score = likelihood(model, corpus_of(config).splits["test"], config.objective, **final_scoring(config, tokenizer))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert state["step"] == summary["steps"] == 7
    assert score.nats_per_token == summary["test"]["nats_per_token"]


def test_best_and_last_are_read_as_the_average_that_was_evaluated(tiny, tmp_path):
    assert train.main([TINY, *tiny, *SHORT, "train.max_steps=10", "optim.lr=3e-4"]) == 0
    run = tmp_path / "run"
    tensors, summary = tensors_of(run), json.loads((run / "summary.json").read_text())
    assert summary["best_step"] == 10
    for which in ("best", "last"):
        config, tokenizer, model, _ = load.load_run(run, which)
        for name, p in model.named_parameters():
            assert torch.equal(p, tensors[f"average.{name}"])
            assert not torch.equal(p, tensors[f"model.{name}"])
    score = likelihood(model, corpus_of(config).splits["test"], config.objective, **final_scoring(config, tokenizer))
    assert score.nats_per_token == summary["test"]["nats_per_token"]
