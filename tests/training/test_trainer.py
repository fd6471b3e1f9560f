"""A run from its first step to its summary."""

import json
import signal

import pytest
import torch

from tdlm_fast import evaluate, sample, train
from tdlm_fast.runs import load
from tdlm_fast.training import trainer


def losses(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {e["step"]: e["loss"] for e in entries if "loss" in e}, [e["valid"] for e in entries if "valid" in e]


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_run_learns_and_leaves_what_scripts_rely_on(tiny, tmp_path, objective, capsys):
    folder = tmp_path / "run"
    assert train.main(["configs/tiny.yaml", *tiny, f"objective={objective}"]) == 0
    out = capsys.readouterr().out
    assert f"run    {folder}" in out and "tdlm_fast.sample" in out
    summary = json.loads((folder / "summary.json").read_text())
    printed = [line for line in out.splitlines() if line.startswith("test")]
    error = f" ± {summary['test']['stderr']:.4f}" if objective == "diffusion" else ""
    assert len(printed) == 1 and f"{summary['test']['nats_per_token']:.4f}{error} nats/token" in printed[0]
    for key in (
        "objective corpus steps tokens seconds tokens_per_s loss_tokens_per_s peak_memory_mb parameters test valid "
        "device versions config_hash corpus_hash"
    ).split():
        assert summary[key] not in (None, "", 0), key
    assert summary["test"]["bound"] == ("exact" if objective == "autoregressive" else "upper bound")
    steps, valids = losses(folder)
    assert list(steps) == list(range(1, 31)) and len(valids) == 4
    assert valids[-1]["nats_per_token"] < valids[0]["nats_per_token"] - 1  # from ln 257 = 5.55
    assert evaluate.main([str(folder), "--json", "--device", "cpu", "--max-samples", "4"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["nats_per_token"] == summary["test"]["nats_per_token"]  # deterministic given the seed
    args = [str(folder), "--prompt", "the old", "--tokens", "12", "--device", "cpu"]
    assert sample.main(args) == 0
    text = capsys.readouterr().out
    assert text.startswith("the old") and len(text) > 8
    assert sample.main(args) == 0 and capsys.readouterr().out == text
    assert train.main(["configs/tiny.yaml", *tiny, f"objective={objective}"]) == 2  # never overwrites a run
    assert "--resume continues it" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_likelihood_that_is_no_number_stops_a_run_with_one_error(tiny, objective, capsys, monkeypatch):
    def broken(*args):
        model = real(*args)
        torch.nn.init.constant_(model.head, float("inf"))
        return model

    real = trainer.build_model
    monkeypatch.setattr(trainer, "build_model", broken)
    assert train.main(["configs/tiny.yaml", *tiny, f"objective={objective}"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the likelihood is not finite (")


def test_accumulation_trains_the_same_model(tiny, tmp_path):
    args = [*tiny, "model.dropout=0", "train.max_steps=5", "precision=fp32"]
    for parts in (1, 4):
        run_dir = f"run.dir={tmp_path / str(parts)}"
        assert train.main(["configs/tiny.yaml", *args, f"train.accumulation={parts}", run_dir]) == 0
    a, b = losses(tmp_path / "1")[0], losses(tmp_path / "4")[0]
    assert all(abs(a[s] - b[s]) < 1e-3 for s in a)


def test_a_loss_that_is_no_number_stops_with_its_place(tiny, tmp_path, capsys):
    assert train.main(["configs/tiny.yaml", *tiny, "optim.lr=1e18", "optim.clip=0", "optim.min_lr=0"]) == 1
    error = capsys.readouterr().err
    assert "not finite at step" in error and "noise levels t from" in error
    last = tmp_path / "run" / "checkpoints" / "best.safetensors"
    config, _, model, _ = load.load_run(tmp_path / "run", "best", "cpu")
    assert last.exists() and all(p.isfinite().all() for p in model.parameters())


def test_a_run_gives_the_signal_handlers_back(tiny):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=1"]) == 0
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
