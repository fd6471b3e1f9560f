"""A run from its first step to its summary."""

import json
import signal
import time

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast import evaluate, sample, train
from tdlm_fast.runs import load
from tdlm_fast.runs.appended import Appended
from tdlm_fast.training import cuda_graph, logger, trainer
from tdlm_fast.training.cuda_graph import DeviceSteps
from tests.running import TINY, metrics, state_of


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


@pytest.fixture
def with_a_start(monkeypatch):
    """The first four steps pass for those of a GPU, which compile and capture; they are as slow as that."""

    def begin(self):
        real(self)
        self.start_ends = self.progress.step + 4

    def run(self, step):
        time.sleep(0.1 * (step < 4))
        steps(self, step)

    real, steps = trainer.Trainer.begin, DeviceSteps.run
    monkeypatch.setattr(trainer.Trainer, "begin", begin)
    monkeypatch.setattr(DeviceSteps, "run", run)
    monkeypatch.setattr(trainer, "reserved_memory_mb", lambda device: 123.0)
    options = lambda args, kw: dict(kw, window=args[-1].train.log_every)  # noqa: E731
    monkeypatch.setattr(cuda_graph, "start", lambda *args, **kw: DeviceSteps(*args, **options(args, kw)))


@pytest.mark.parametrize("log_every", [1, 3, 10])
def test_the_start_of_a_gpu_is_not_part_of_its_speed(tiny, tmp_path, with_a_start, log_every, capsys):
    args = [*tiny, "data.layout=packed", f"train.log_every={log_every}", "train.save_every=0", "eval.text=0"]
    assert train.main([TINY, *args]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    lines = [e for e in metrics(tmp_path / "run") if "loss" in e]
    of_start = [e for e in lines if e["step"] <= 4]
    assert of_start[-1]["step"] == 4 and of_start[-1]["tokens"] == 4 * 16 * 64  # a line ends with the start
    assert all(e["seconds"] == 0 for e in of_start) and of_start[-1]["startup_seconds"] >= 0.4
    rest = [e for e in lines if e["step"] > 4]
    assert {e["startup_seconds"] for e in rest} == {of_start[-1]["startup_seconds"]}
    assert summary["startup_seconds"] == round(of_start[-1]["startup_seconds"], 3)
    assert summary["seconds"] == round(rest[-1]["seconds"], 3) and summary["tokens"] == 30 * 16 * 64
    assert summary["tokens_per_s"] == pytest.approx(26 * 16 * 64 / rest[-1]["seconds"])
    assert 0 < summary["loss_tokens_per_s"] < summary["tokens_per_s"] and summary["reserved_memory_mb"] == 123.0
    assert "after a start of" in capsys.readouterr().out


def test_a_run_no_longer_than_its_start_has_a_speed(tiny, tmp_path, with_a_start):
    assert train.main([TINY, *tiny, "data.layout=packed", "train.max_steps=3", "eval.text=0"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seconds"] == summary["startup_seconds"] >= 0.3
    assert summary["tokens_per_s"] == pytest.approx(3 * 16 * 64 / summary["seconds"], rel=0.01)


def test_a_checkpoint_keeps_the_start(tiny, tmp_path, with_a_start):
    """So that a run of several processes, each with a start, has the speed of its other steps."""
    args = [*tiny, "data.layout=packed", "eval.text=0"]
    assert train.main([TINY, *args, "train.max_steps=30"]) == 0
    state = state_of(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert state["startup_tokens"] == 4 * 16 * 64
    again = trainer.Progress.of(state)
    beside = ("seed", "settings_hash", "written")
    assert again.state() == {k: v for k, v in state.items() if k not in beside}
    assert again.rates()["tokens_per_s"] == pytest.approx(26 * 1024 / state["seconds"])


def test_the_time_left_is_estimated_without_the_start(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    entry = {"loss": 1.0, "tokens_per_s": 1.0, "loss_tokens_per_s": 1.0}
    with logger.Log(Appended(tmp_path / "metrics.jsonl"), settings.Config(), 1000, 0) as log:
        now[0] = 60.0  # a minute of compiling
        log.starts_here(4)
        now[0] = 80.0
        log.progress(104, entry)  # 0.2 s a step from here on
    assert f"{896 * 0.2 / 60:.1f} min left" in capsys.readouterr().err


def test_a_cpu_has_no_start(tiny, tmp_path):
    assert train.main([TINY, *tiny, "train.max_steps=6", "eval.text=0"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not {"startup_seconds", "reserved_memory_mb"} & summary.keys()
    assert not any("startup_seconds" in e for e in metrics(tmp_path / "run"))
    state = state_of(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert not [key for key in state if key.startswith("startup_")]
    assert logger.reserved_memory_mb(torch.device("cpu")) is None
