"""The unigram baseline, counted by hand and scored by the code that scores models."""

import math

import numpy as np
import pytest
from conftest import split_of

from tdlm_fast.evaluation.likelihood import likelihood
from tdlm_fast.evaluation.unigram import Unigram, log_probabilities, unigram


def test_unigram_counts_once_and_scores_alike_under_both_objectives():
    train, split = split_of([[0, 0, 1], [2, 0]], 3), split_of([[0, 3], [1, 1, 1]] * 30, 3)
    p = (np.array([3, 1, 1, 0, 0]) + 1) / 10
    np.testing.assert_allclose(log_probabilities(train, 5).exp(), p)
    result = unigram(train, split, 5)
    assert result.nats_per_token == pytest.approx(-(math.log(p[0]) + math.log(p[3]) + 3 * math.log(p[1])) / 5)
    model = Unigram(log_probabilities(train, 5))
    for objective in ("autoregressive", "diffusion"):
        other = likelihood(model, split, objective, start_token_id=0, max_samples=64)
        assert abs(other.nats_per_token - result.nats_per_token) < 5 * other.stderr + 1e-6, objective
