"""Batches are a function of (seed, step)."""

import numpy as np
import torch

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
