"""A corpus small enough to train on in seconds."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` is imported: no test depends on a network


def pytest_collection_modifyitems(items):
    """TDLM_EXAMPLES=N: hypothesis draws at most N examples and shrinks none, for a GPU, which compiles every shape."""
    if not (most := int(os.environ.get("TDLM_EXAMPLES", "0"))):
        return
    import hypothesis

    for test in {item.obj for item in items if hasattr(getattr(item, "obj", None), "hypothesis")}:
        own = getattr(test, "_hypothesis_internal_use_settings", None) or hypothesis.settings()
        phases = [p for p in own.phases if p not in (hypothesis.Phase.shrink, hypothesis.Phase.explain)]
        fewer = hypothesis.settings(own, max_examples=min(most, own.max_examples), phases=phases)
        test._hypothesis_internal_use_settings = fewer


@pytest.fixture
def start():
    """Start processes that end with the test, with all that they started: `process = start(command, **popen)`."""
    import contextlib

    from tests.running import started

    with contextlib.ExitStack() as stack:
        yield lambda command, **kw: stack.enter_context(started(command, **kw))


WORDS = "the old river runs by the mill and the mill turns by the river while the miller sleeps".split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [" ".join(WORDS[(i * 7 + j * (1 + i % 3)) % len(WORDS)] for j in range(12)) + "." for i in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))
    return folder / "text.txt"


@pytest.fixture
def tiny(corpus, tmp_path):
    """Overrides of configs/tiny.yaml that make a run of seconds."""
    return [
        f"data.path={corpus}", "data.tokenizer=bytes", f"data.cache={tmp_path / 'cache'}", "model.width=32",
        "model.inner=64", "model.heads=2", "model.seq_len=64", "train.batch_size=16", "train.max_steps=30",
        "train.log_every=1", "train.save_every=5", "eval.every=10", "eval.samples=2", "eval.max_samples=4",
        "eval.probe=4", "eval.published=2",
        "optim.lr=3e-3", "device=cpu", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip


@pytest.fixture
def trained(tiny, tmp_path):
    """A finished run of two steps: its folder and its keys."""
    from tdlm_fast import train

    args = [*tiny, "train.max_steps=2", "eval.text=0"]
    assert train.main(["configs/tiny.yaml", *args]) == 0
    return tmp_path / "run", args


def split_of(rows, T):
    """A padded Split of these rows of token ids; every token counts as a byte."""
    import numpy as np

    from tdlm_fast.data.dataset import Split

    tokens = np.concatenate([np.asarray(r) for r in rows]).astype(np.uint16)
    lengths = np.array([len(r) for r in rows])
    return Split(tokens, lengths, T, True, np.cumsum(lengths) - lengths, len(tokens), len(tokens))


def sharp_model(vocab, width=16, **kw):
    """A model far from uniform: an untrained one is nearly uniform, which would test nothing."""
    import torch

    from tdlm_fast.config import Model as Shape
    from tdlm_fast.model import Model

    model = Model(Shape(width=width, layers=1, heads=2, inner=24, dropout=0.1, **kw), vocab=vocab)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(25)
    return model.eval()


def enumerated_bound(model, row):
    """The bound on the nats of one row, over every mask: sum_l (1/l) mean_{|S|=l} sum_{i in S} -log p, times n / n."""
    import itertools
    import math

    import torch
    import torch.nn.functional as F

    n, x0, total = len(row), torch.tensor([row]), 0.0
    with torch.no_grad():
        for size in range(1, n + 1):
            for subset in itertools.combinations(range(n), size):
                xt = x0.clone()
                xt[0, list(subset)] = model.mask_token_id
                nll = F.cross_entropy(model(xt, causal=False)[0] @ model.head.T, x0[0], reduction="none")
                total += nll[list(subset)].mean().item() / math.comb(n, size)
    return total


def torch_free(verb: str, *args: str) -> str:
    """What a verb prints with these arguments, in a new interpreter that must not load torch."""
    import subprocess
    import sys

    code = f"import sys\nfrom tdlm_fast import {verb}\ntry: {verb}.main(sys.argv[1:])\n"
    code += "except SystemExit: pass\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, f"{verb} {args} loads torch: {done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def references():
    """The torch references and PyTorch's own attention instead of the native CPU kernels."""
    from tdlm_fast.kernels import use_backend

    with use_backend("reference"):
        yield


@pytest.fixture(scope="module")
def sharp_run(corpus, tmp_path_factory):
    """A finished diffusion run of paragraphs whose best weights are far from uniform, and not its last."""
    import json

    import torch

    from tdlm_fast import train
    from tdlm_fast.evaluation import likelihood
    from tdlm_fast.runs import checkpoint, files, load

    folder = tmp_path_factory.mktemp("sharp")
    keys = [
        f"data.path={corpus}", "data.tokenizer=bytes", f"data.cache={folder / 'cache'}", "model.width=16",
        "model.inner=24", "model.heads=2", "model.layers=1", "model.seq_len=24", "train.batch_size=8",
        "train.max_steps=6", "train.log_every=1", "eval.every=6", "eval.early=", "eval.samples=2", "eval.max_samples=4",
        "eval.published=0", "eval.probe=0", "eval.text=0", "device=cpu", "precision=bf16", f"run.dir={folder / 'run'}",
    ]  # fmt: skip
    assert train.main(["configs/tiny.yaml", *keys]) == 0
    folder = folder / "run"
    config, tokenizer, model, state = load.load_run(folder, "best", "cpu")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(4)
    checkpoint.save(folder / "checkpoints" / "best.safetensors", model, None, state)
    summary = json.loads((folder / "summary.json").read_text())
    result = likelihood.likelihood(
        model, corpus_of(config).splits["test"], config.objective, start_token_id=tokenizer.start_token_id,
        seed=config.seed, target_stderr=config.eval.target_stderr, max_samples=config.eval.max_samples,
        precision=config.precision,
    )  # fmt: skip
    del summary["sha256"]
    files.write_figures(folder / "summary.json", summary | {"test": result.asdict()})
    return folder


def corpus_of(config):
    from tdlm_fast.data import dataset

    return dataset.load(config.data, config.model.seq_len)
