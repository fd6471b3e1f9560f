"""A corpus small enough to train on in seconds."""

import pytest

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
        "optim.lr=3e-3", "device=cpu", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
