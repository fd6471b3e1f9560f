"""A killed process resumes to the same bits."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from tdlm_fast import train
from tests.running import HANG_S, holds, wait_until

pytestmark = pytest.mark.slow


def losses(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {e["step"]: e["loss"] for e in entries if "loss" in e}, [e["valid"] for e in entries if "valid" in e]


@pytest.mark.parametrize("objective, how", [("diffusion", signal.SIGKILL), ("autoregressive", signal.SIGINT)])
def test_a_killed_process_resumes_to_the_same_bits(tiny, tmp_path, start, objective, how):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    args = [*tiny, f"objective={objective}", "train.max_steps=60", "eval.text=0"]
    command = [sys.executable, "-m", "tdlm_fast.train", "configs/tiny.yaml", *args]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    wait_until(lambda: holds(folder / "metrics.jsonl", '"step": 13'), process)
    process.send_signal(how)
    out, err = process.communicate(timeout=HANG_S)
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


def test_resuming_with_another_config_names_the_key(tiny, tmp_path, capsys):
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2"]) == 0
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "optim.lr=1e-4", "--resume"]) == 2
    assert "optim.lr" in capsys.readouterr().err
    written = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "--resume"]) == 0
    assert "finished already" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == written
