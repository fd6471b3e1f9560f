"""Batches are a function of (seed, step)."""

import numpy as np
import pytest
import torch

from tdlm_fast.config import ConfigError
from tdlm_fast.data import batches

from .conftest import load


def test_batches_are_a_function_of_seed_and_step(folder):
    split = load(folder, layout="paragraphs").splits["train"]
    steps = batches.steps_per_epoch(split, 8)
    kw = dict(seed=3, batch_size=8)
    assert torch.equal(batches.batch(split, step=5, **kw)[0], batches.batch(split, step=5, **kw)[0])
    order = batches._permutation(60, 3, 0)
    assert sorted(order) == list(range(60)) and list(order) != list(range(60))
    assert not np.array_equal(order, batches._permutation(60, 3, 1))
    assert not torch.equal(batches.batch(split, step=0, **kw)[0], batches.batch(split, step=steps, **kw)[0])


def test_one_long_line_trains_packed_and_is_one_paragraph(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 20_000)
    packed = load(tmp_path).splits
    assert batches.steps_per_epoch(packed["train"], 8) == 90_000 // 32 // 8
    assert packed["valid"].bytes == packed["test"].bytes == 5000
    with pytest.raises(
        ConfigError, match="more than the 1 rows of 32 tokens .*; data.layout=packed makes several rows"
    ):
        batches.steps_per_epoch(load(tmp_path, layout="paragraphs").splits["train"], 8)
