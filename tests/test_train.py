"""The verbs: a run and what it leaves, resuming a killed process, evaluating, sampling."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tdlm_fast import check, evaluate, sample, table, train
from tdlm_fast import config as settings
from tdlm_fast.runs import checkpoint, load
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
    said = [line for line in out.splitlines() if line.startswith("test")]
    error = f" ± {summary['test']['stderr']:.4f}" if objective == "diffusion" else ""
    assert len(said) == 1 and f"{summary['test']['nats_per_token']:.4f}{error} nats/token" in said[0]
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
    again = json.loads(capsys.readouterr().out)
    assert again["nats_per_token"] == summary["test"]["nats_per_token"]  # deterministic given the seed
    args = [str(folder), "--prompt", "the old", "--tokens", "12", "--device", "cpu"]
    assert sample.main(args) == 0
    text = capsys.readouterr().out
    assert text.startswith("the old") and len(text) > 8
    assert sample.main(args) == 0 and capsys.readouterr().out == text
    assert train.main(["configs/tiny.yaml", *tiny, f"objective={objective}"]) == 2  # never overwrites a run
    assert "--resume continues it" in capsys.readouterr().err


@pytest.mark.parametrize("args, message", [
    (["--max-samples", "0"], "--max-samples is 0; it must be at least 2, as one draw shows no error"),
    (["--max-samples", "-5"], "--max-samples is -5; "), (["--max-samples", "1"], "--max-samples is 1; "),
    (["--target-stderr", "nan"], "--target-stderr is nan; it must be at least 0 and finite; with 0 all of "),
    (["--target-stderr", "-1"], "--target-stderr is -1.0; "), (["--target-stderr", "inf"], "--target-stderr is inf; "),
    (["--samples", "0"], "--samples is 0; it must be at least 1"), (["--limit", "-1"], "--limit is -1; "),
    (["--batch-size", "-1"], "--batch-size is -1; it must be at least 0; 0 takes the config's"),
    (["--seed", "-1"], "--seed is -1; it must be at least 0"),
])  # fmt: skip
def test_evaluate_names_the_option_that_is_out_of_range(args, message, capsys):
    assert evaluate.main(["no-such-run", *args]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_evaluate_says_what_text_it_read_and_stops_on_weights_that_are_no_numbers(tiny, tmp_path, corpus, capsys):
    folder = tmp_path / "run"
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "eval.text=0"]) == 0
    command = [str(folder), "--json", "--device", "cpu"]
    capsys.readouterr()
    assert evaluate.main(command) == 0
    assert json.loads(capsys.readouterr().out)["note"] == ""
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text() + "\nmore text\n")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(corpus), str(other)))
    assert evaluate.main(command) == 2  # what one text holds out may be another's training text
    assert f"error: the text is not what {folder} was trained on" in capsys.readouterr().err
    config.write_text(config.read_text().replace(str(other), str(corpus)))
    _, _, model, state = load.load_run(folder, device="cpu")
    with torch.no_grad():
        model.head[3, 3] = float("nan")
    checkpoint.save(folder / "checkpoints" / "best.safetensors", model, None, state)
    assert evaluate.main(command) == 1
    out, err = capsys.readouterr()
    message = f"error: {folder}/checkpoints/best.safetensors: the likelihood is not finite"
    assert not out and err.splitlines()[-1].startswith(message)
    for verb in (table, check):
        assert verb.main([str(folder), "--sequences", "2", "--device", "cpu"]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {folder}: the likelihood is not finite")


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


@pytest.mark.parametrize("objective, how", [("diffusion", signal.SIGKILL), ("autoregressive", signal.SIGINT)])
def test_a_killed_process_resumes_to_the_same_bits(tiny, tmp_path, objective, how):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    args = [*tiny, f"objective={objective}", "train.max_steps=60", "eval.text=0"]
    command = [sys.executable, "-m", "tdlm_fast.train", "configs/tiny.yaml", *args]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"step": 13' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "stopping after this step" in err and "saved" in err
        assert "to resume: " in out and "--resume" in out
        assert json.loads((folder / "summary.json").read_text())["finished"] is False
    assert train.main(["configs/tiny.yaml", *args, "--resume"]) == 0
    assert train.main(["configs/tiny.yaml", *args, f"run.dir={whole}"]) == 0
    assert losses(folder)[0] == losses(whole)[0]
    a, b = _weights(folder), _weights(whole)
    assert all(torch.equal(a[k], b[k]) for k in a)


def _weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "checkpoints" / "last.safetensors")


def test_accumulation_trains_the_same_model(tiny, tmp_path):
    args = [*tiny, "model.dropout=0", "train.max_steps=5", "precision=fp32"]
    for parts in (1, 4):
        where = f"run.dir={tmp_path / str(parts)}"
        assert train.main(["configs/tiny.yaml", *args, f"train.accumulation={parts}", where]) == 0
    a, b = losses(tmp_path / "1")[0], losses(tmp_path / "4")[0]
    assert all(abs(a[s] - b[s]) < 1e-3 for s in a)


def test_a_loss_that_is_no_number_stops_with_its_place(tiny, tmp_path, capsys):
    assert train.main(["configs/tiny.yaml", *tiny, "optim.lr=1e18", "optim.clip=0", "optim.min_lr=0"]) == 1
    error = capsys.readouterr().err
    assert "not finite at step" in error and "noise levels t from" in error
    last = tmp_path / "run" / "checkpoints" / "best.safetensors"
    config, _, model, _ = load.load_run(tmp_path / "run", "best", "cpu")
    assert last.exists() and all(p.isfinite().all() for p in model.parameters())


def test_a_gradient_that_is_no_number_leaves_the_weights_alone():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for bad in (0.0, 1.0):
        weight.grad = torch.full((3, 3), float("nan") if bad else 1.0)
        before, optimizer.found_inf = weight.detach().clone(), torch.tensor(bad)  # as step.train_step sets it
        optimizer.step()
        assert torch.equal(before, weight) == bool(bad) and weight.isfinite().all()


def test_a_run_gives_the_signal_handlers_back(tiny):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=1"]) == 0
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_weights_and_biases_needs_no_account_and_never_stops_a_run(tiny, tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="wandb is an extra: pip install -e .[wandb]")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "run.wandb=offline"]) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(wandb, "init", unreachable)
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for key, says in (("", "no account here"), ("x" * 40, "no route to host")):
        monkeypatch.setenv("WANDB_API_KEY", key)
        other = f"run.dir={tmp_path / says[:4]}"
        assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "run.wandb=online", other]) == 0
        assert f"Weights & Biases is off: {says}" in capsys.readouterr().err


def test_weights_and_biases_gets_the_results_and_cannot_hang_a_run(tiny, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="wandb is an extra: pip install tdlm_fast[wandb]")
    told, over = [], threading.Event()

    class Run:
        summary = {}

        def log(self, entry, step):
            told.append(step)

        def finish(self):
            told.append("finish")
            over.wait(60)

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    monkeypatch.setattr("tdlm_fast.training.logger.WANDB_S", -9.5)
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "run.wandb=online"]) == 0
    over.set()
    assert "has not finished" in capsys.readouterr().err
    assert told == [0, 1, 2, 2, "finish"] and Run.summary["test"]["nats_per_token"] > 0


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    folder = tmp_path / "run"
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2"]) == 0
    best = folder / "checkpoints" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(settings.ConfigError, match="best.safetensors is damaged"):
        load.load_run(folder, "best", "cpu")
    with pytest.raises(settings.ConfigError, match="no such checkpoint"):
        checkpoint.load(folder / "absent", None)


def test_resuming_with_another_config_names_the_key(tiny, tmp_path, capsys):
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2"]) == 0
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "optim.lr=1e-4", "--resume"]) == 2
    assert "optim.lr" in capsys.readouterr().err
    written = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "--resume"]) == 0
    assert "finished already" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == written
