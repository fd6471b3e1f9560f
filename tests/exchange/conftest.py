"""Finished runs of both objectives whose weights are far from uniform: an untrained model would test nothing."""

import json

import pytest
import torch
from conftest import corpus_of

SHAPE = [
    "model.width=16", "model.inner=24", "model.heads=2", "model.layers=2", "model.seq_len=24", "train.batch_size=8",
    "train.max_steps=2", "train.log_every=1", "eval.every=2", "eval.samples=2", "eval.max_samples=4",
    "eval.published=0", "eval.probe=0", "eval.text=0", "device=cpu", "precision=fp32",
]  # fmt: skip


def make(folder, corpus, objective, *keys):
    """Train two steps, sharpen the best weights, and score the test split with them."""
    from tdlm_fast import train
    from tdlm_fast.evaluation.likelihood import final_scoring, likelihood
    from tdlm_fast.runs import checkpoint, files, load

    text = [f"data.path={corpus}", f"data.cache={folder / 'cache'}", f"run.dir={folder / 'run'}"]
    args = ["configs/tiny.yaml", f"objective={objective}", *SHAPE, "data.tokenizer=gpt2-1024", *text, *keys]
    assert train.main(args) == 0
    run = folder / "run"
    config, tokenizer, model, state = load.load_run(run, "best", "cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(25) if p.dim() == 2 else p.add_(0.3 * torch.randn_like(p))
    checkpoint.save(run / "checkpoints" / "best.safetensors", model, None, state)
    summary = json.loads((run / "summary.json").read_text())
    del summary["sha256"]
    test = likelihood(model, corpus_of(config).splits["test"], objective, **final_scoring(config, tokenizer))
    files.write_figures(run / "summary.json", summary | {"test": test.asdict()})
    return run


@pytest.fixture(scope="session")
def runs(corpus, tmp_path_factory):
    """{objective: run folder}."""
    return {o: make(tmp_path_factory.mktemp(o), corpus, o) for o in ("diffusion", "autoregressive")}


@pytest.fixture(scope="session")
def exported(runs, tmp_path_factory):
    """{objective: folder for transformers}."""
    from tdlm_fast import export

    folders = {}
    for objective, run in runs.items():
        folders[objective] = tmp_path_factory.mktemp("hf") / objective
        assert export.main([str(run), "--to", "hf", "--out", str(folders[objective])]) == 0
    return folders


@pytest.fixture(scope="session")
def transformers():
    """The package; the tests that need it are skipped where it is missing or before EuroBERT."""
    pytest.importorskip("transformers", minversion="5.0", reason="needs transformers 5: pip install tdlm_fast[export]")
    from tdlm_fast.exchange.foreign import transformers

    return transformers()
