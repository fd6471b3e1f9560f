"""The step of plain PyTorch in the race is the same training step as ours; the benchmark and gpu.sh run."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from bench.race import plain
from bench.race import step as race
from tdlm_fast import config as settings
from tdlm_fast.kernels import corrupt
from tdlm_fast.model import build_model
from tdlm_fast.objective import OBJECTIVES
from tdlm_fast.training import memory_estimate, step

SMALL = ["data.tokenizer=bytes", "model.width=32", "model.heads=2", "model.inner=32"]
SMALL += ["model.dropout=0", "precision=fp32"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("padded", [False, True])
def test_plain_pytorch_has_the_same_loss_and_gradients(objective, padded, monkeypatch):
    c = settings.load("configs/tiny.yaml", [*SMALL, f"objective={objective}", "model.seq_len=16"])
    vocabulary = memory_estimate.TOKENIZERS["bytes"]
    ours, theirs = build_model(c, vocabulary), race.plain_model(c, vocabulary)
    x0 = torch.randint(0, 256, (4, 16))
    valid = torch.arange(16) < torch.tensor([[16], [9], [3], [12]]) if padded else None
    draw = corrupt(x0, seed=c.seed, step=3, mask_token_id=257, valid=valid)
    monkeypatch.setattr(plain, "corrupted", lambda model, x0, valid: (draw.xt, draw.masked, draw.weights))
    a, k = step.objective(c, vocabulary)(ours, x0, step=3, valid=valid)
    b, n = plain.loss_of(theirs, objective, x0, valid, vocabulary.start_token_id)
    torch.testing.assert_close(a, b)
    assert int(k) == int(n)
    a.backward(), b.backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_the_benchmark_writes_its_figures(tiny, tmp_path, capsys):
    file = tmp_path / "step.json"
    run = [*(o for o in tiny if not o.startswith("run.")), "--rounds", "2", "--seconds", "0", "--no-compile"]
    assert race.main([*run, "--no-memory", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {"ours", "plain, bf16", "plain, fp32"} <= set(result["sides"])
    assert "liger-kernel, bf16" in result["absent"] and "cut-cross-entropy, bf16" in result["absent"]
    for side in result["sides"].values():
        assert side["fastest_ms"] <= side["step_ms"] <= side["slowest_ms"] and side["loss"] > 1
        assert side["tokens_per_s"] == pytest.approx(16 * 64 / side["step_ms"] * 1e3)
        assert 0 < side["loss_tokens_per_s"] <= side["tokens_per_s"]
    assert 0.5 < sum(row["share"] for row in result["profile"]) <= 1.001
    ops = {row["op"] for row in result["profile"]}
    assert any(op.startswith("tdlm::") for op in ops) and not any("GeneratedBackward" in op for op in ops)
    assert "x ours" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("timeout") is None, reason="bench/gpu.sh needs coreutils' timeout")
def test_gpu_sh_keeps_what_was_computed(tmp_path):
    """With no time for most parts it still ends, lists how each part ended, and clears only its own figures."""
    (tmp_path / "out").mkdir()
    for name in ("kernels.json", "step-cpu-diffusion.json"):
        (tmp_path / "out" / name).write_text("{}")
    env = os.environ | {"OUT": str(tmp_path / "out"), "LIMIT": "4", "PY": sys.executable}
    done = subprocess.run(["bash", "bench/gpu.sh"], env=env, capture_output=True, text=True, timeout=120)
    parts = dict(line.split("\t")[::2] for line in (tmp_path / "out" / "parts.tsv").read_text().splitlines())
    assert done.returncode == 1 and parts["tests"] == "no time left" and "experiment-diffusion" in parts
    assert not (tmp_path / "out" / "kernels.json").exists() and (tmp_path / "out" / "step-cpu-diffusion.json").exists()
