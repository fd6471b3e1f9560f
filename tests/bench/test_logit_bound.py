"""bench/studies/logit_bound.py bounds a model's logits, and docs/gpu.md says what it found."""

import json
from pathlib import Path

import torch

import tdlm_fast
from bench.studies import logit_bound

ROOT = Path(__file__).parents[2]


def test_no_logit_is_above_the_bound(trained, tmp_path):
    folder, _ = trained
    assert logit_bound.main([str(folder), "--json", str(tmp_path / "bound.json")]) == 0
    found = json.loads((tmp_path / "bound.json").read_text())[folder.name]["bound"]
    _, _, model, _ = tdlm_fast.load_run(str(folder))
    tokens = torch.arange(64).view(1, 64)
    logits = (model(tokens, causal=False) @ model.head.T).detach()
    assert 0 < logits.abs().max() <= found


def test_the_page_states_the_bound_of_tiny():
    figures = json.loads((ROOT / "bench/results/logit-bound.json").read_text())
    bound = figures["tiny-diffusion-seed42"]["bound"]
    assert f"the bound was {bound:.1f}" in (ROOT / "docs/gpu.md").read_text()
