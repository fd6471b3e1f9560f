"""Batches are a function of (seed, step)."""

import numpy as np
import pytest
import torch

from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import batches, dataset, sources

TEXT = "".join(f"Paragraph {i} says {'very ' * (i % 9)}little.\n = Heading = \n\n" for i in range(60))


@pytest.fixture
def folder(tmp_path):
    for split, text in zip(sources.SPLITS, (TEXT, TEXT[:700], TEXT[:900]), strict=True):
        (tmp_path / f"{split}.txt").write_text(text)
    return tmp_path


def load(folder, seq_len=32, **kw):
    return dataset.load(DataConfig(path=str(folder), cache=str(folder / "cache"), tokenizer="bytes", **kw), seq_len)


def test_batches_are_a_function_of_seed_and_step(folder):
    split = load(folder, layout="paragraphs").splits["train"]
    steps = batches.steps_per_epoch(split, 8)
    kw = dict(seed=3, batch_size=8)
    assert torch.equal(batches.batch(split, step=5, **kw)[0], batches.batch(split, step=5, **kw)[0])
    order = batches._permutation(60, 3, 0)
    assert sorted(order) == list(range(60)) and list(order) != list(range(60))
    assert not np.array_equal(order, batches._permutation(60, 3, 1))
    assert not torch.equal(batches.batch(split, step=0, **kw)[0], batches.batch(split, step=steps, **kw)[0])
