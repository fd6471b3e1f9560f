"""Runs that cannot fit are refused before anything is built, with the largest sizes that fit."""

import re
from dataclasses import replace

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.model import Model, autocast, build_model
from tdlm_fast.training import limits
from tdlm_fast.training.optimizer import adamw
from tests.conftest import corpus_of
from tests.running import TINY

CPU = torch.device("cpu")
SHAPES = [
    {}, {"tied": True}, {"mlp": "gelu"}, {"positions": "learned", "seq_len": 48},
    {"inner": 40, "layers": 3, "width": 24},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_counted_as_the_model_counts_them(shape):
    shape = settings.Model(**{"width": 16, "heads": 2} | shape)
    assert limits.parameter_count(shape, 257) == sum(Model(shape, vocab=257).count_by_part().values())


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bound_is_below_what_a_training_step_stores(precision, mlp):
    """Counted by autograd and AdamW: what is kept for the backward pass, then weights, gradients and moments."""
    keys = ["data.tokenizer=bytes", "model.width=32", "model.inner=96", "train.batch_size=32", f"model.mlp={mlp}"]
    config = settings.load(TINY, [*keys, f"precision={precision}"])
    model, saved = build_model(config, Bytes()).train(), {}

    def keep(t):
        saved[t.untyped_storage().data_ptr()] = t
        return t

    def size(tensors):
        return sum(t.untyped_storage().nbytes() for t in tensors)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(CPU, precision):
        h = model(torch.zeros(32, config.model.seq_len, dtype=torch.int64), causal=False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = size(t for place, t in saved.items() if place not in weights)
    saved.clear()
    (h.sum() + model.head.sum()).backward()
    optimizer = adamw(model, config.optim)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    stored = size(model.parameters()) + size(p.grad for p in model.parameters()) + size(moments)
    least = limits.least_bytes(config, 257, 64)
    assert 0.5 * (stored + held) < least <= stored + held


@pytest.mark.parametrize("key, value", [
    ("model.width", 2**20), ("train.batch_size", 2**24), ("eval.batch_size", 2**24), ("model.seq_len", 65536),
])  # fmt: skip
def test_a_run_that_cannot_fit_is_refused_with_the_largest_that_does(key, value, monkeypatch):
    monkeypatch.setattr(limits, "available_bytes", lambda device: 10**9)
    extra = ["train.batch_size=4096"] if key == "model.seq_len" else []
    config = settings.load(TINY, ["data.tokenizer=bytes", *extra, f"{key}={value}"])
    with pytest.raises(settings.ConfigError, match="memory") as error:
        limits.check_memory(config, 257, 2**30, CPU)
    fits = int(re.search(rf"{key}=(\d+)", str(error.value))[1])
    best = settings.load(TINY, ["data.tokenizer=bytes", *extra, f"{key}={fits}"])
    limits.check_memory(best, 257, 2**30, CPU)  # fits
    step = 2 * config.model.heads if key == "model.width" else 1
    with pytest.raises(settings.ConfigError):
        limits.check_memory(
            settings.load(TINY, ["data.tokenizer=bytes", *extra, f"{key}={fits + step}"]), 257, 2**30, CPU
        )


def test_nothing_is_left_of_a_run_that_is_refused(tiny, tmp_path, capsys):
    assert train.main([TINY, *tiny, "model.width=1048576"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "GB are free on cpu" in error and "model.width=" in error
    assert not (tmp_path / "run").exists()


def test_a_full_memory_names_the_keys_and_keeps_the_run(tiny, tmp_path, capsys, monkeypatch):
    from tdlm_fast.training import trainer

    def full(self, step):
        if step == 1:
            torch.empty(2**60)

    real = trainer.cuda_graph.start

    def start(*args, **kw):
        runner = real(*args, **kw)
        run = runner.run
        monkeypatch.setattr(runner, "run", lambda step: (full(runner, step), run(step)))
        return runner

    monkeypatch.setattr(trainer.cuda_graph, "start", start)
    assert train.main([TINY, *tiny, "train.save_every=1", "train.max_steps=2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the memory is full (4,611,686,018.4 GB more") and "train.batch_size" in error
    assert "the last checkpoint is intact; to resume: " in error
    monkeypatch.setattr(trainer.cuda_graph, "start", real)
    assert train.main([TINY, *tiny, "train.save_every=1", "train.max_steps=2", "--resume"]) == 0


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_the_estimate_of_time_changes_nothing(tiny, objective):
    config = settings.load(TINY, [*tiny, f"objective={objective}"])
    corpus = corpus_of(config)
    model = build_model(config, corpus.tokenizer).train()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    one = limits.training_seconds(model, corpus.splits["train"], config, 1)
    assert one > 0 and model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))
    small = replace(config, train=replace(config.train, batch_size=1))
    assert limits.training_seconds(model, corpus.splits["train"], small, 1) < 5 * one
