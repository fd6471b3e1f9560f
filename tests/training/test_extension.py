"""A finished run that is trained further is the longer run, bit for bit, or is refused."""

import json

import pytest

from tdlm_fast import train
from tdlm_fast.runs import checkpoint
from tests.running import TINY, metrics, state_of
from tests.training.weights import same_tensors

pytestmark = pytest.mark.slow
SHORT = ["optim.warmup_steps=4", "eval.text=0", "eval.probe=0", "eval.published=0", "eval.every=5"]


def losses(folder):
    return [(e["step"], e["loss"]) for e in metrics(folder) if "loss" in e]


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_an_extended_run_is_the_longer_run(tiny, tmp_path, schedule, capsys):
    keys = [*tiny, *SHORT, f"optim.schedule={schedule}", "optim.decay=0.3"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train.main([TINY, *keys, "train.max_steps=12"]) == 0
    capsys.readouterr()
    assert train.main([TINY, *keys, "train.max_steps=12", "--extend", "20"]) == 0
    said = capsys.readouterr().err
    assert "missing or damaged" not in said and ("are sought again" in said) == (schedule == "wsd")
    assert train.main([TINY, *keys, "train.max_steps=20", f"run.dir={whole}"]) == 0
    assert same_tensors(run, whole) and losses(run) == losses(whole)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (run, whole)]
    same = ("steps", "tokens", "settings_hash", "test", "weights", "best_step", "config_hash")
    assert all(summaries[0][k] == summaries[1][k] for k in same)
    capsys.readouterr()
    assert train.main([TINY, *keys, "--extend", "20"]) == 0  # the same command again
    assert "finished already" in capsys.readouterr().err
    assert train.main([TINY, *keys, "--extend", "16"]) == 2
    assert "has 20 steps already; give more" in capsys.readouterr().err
    assert train.main([TINY, *keys, "train.max_steps=20", "--resume"]) == 0


def test_a_cosine_is_not_extended(tiny, tmp_path, capsys):
    assert train.main([TINY, *tiny, *SHORT, "train.max_steps=3"]) == 0
    before = (tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes()
    assert train.main([TINY, *tiny, *SHORT, "train.max_steps=3", "--extend", "9"]) == 2
    assert "has optim.schedule=cosine, which ends with its steps; train a longer run" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes() == before


def test_what_cannot_be_extended_is_named(tiny, tmp_path, capsys):
    keys = [*tiny, *SHORT, "optim.schedule=constant", "train.max_steps=3"]
    assert train.main([TINY, *keys, "--extend", "9"]) == 2
    assert "holds no run; train it first" in capsys.readouterr().err
    assert train.main([TINY, *keys]) == 0
    assert train.main([TINY, *keys, "optim.lr=1e-4", "--extend", "9"]) == 2
    assert "optim.lr was 0.003, now 0.0001; extend with those" in capsys.readouterr().err
    (tmp_path / "run" / "summary.json").unlink()
    assert train.main([TINY, *keys, "--extend", "9"]) == 2
    assert "is not finished; --resume finishes it first" in capsys.readouterr().err


@pytest.mark.parametrize("writes", [2, 3, 4])
def test_an_extension_that_is_cut_short_is_repeated(tiny, tmp_path, writes, monkeypatch):
    """The process ends before one of its writes."""
    keys = [*tiny, *SHORT, "optim.schedule=wsd", "optim.decay=0.3"]
    assert train.main([TINY, *keys, "train.max_steps=8"]) == 0
    whole, calls = checkpoint.write_beside, []

    def cut(path, write):
        calls.append(path)
        if len(calls) == writes:
            raise KeyboardInterrupt
        whole(path, write)

    with monkeypatch.context() as patch:
        for module in ("tdlm_fast.runs.checkpoint", "tdlm_fast.training.extension"):
            patch.setattr(f"{module}.write_beside", cut)
        train.main([TINY, *keys, "--extend", "14"])
    assert train.main([TINY, *keys, "--extend", "14"]) == 0
    assert state_of(tmp_path / "run" / "checkpoints" / "last.safetensors")["step"] == 14
    assert train.main([TINY, *keys, "train.max_steps=14", f"run.dir={tmp_path / 'whole'}"]) == 0
    assert same_tensors(tmp_path / "run", tmp_path / "whole")
