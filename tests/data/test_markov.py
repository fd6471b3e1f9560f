"""The Markov source: the same letters everywhere, with the probabilities that they are said to have."""

import hashlib

import numpy as np
import pytest

from tdlm_fast import config as settings
from tdlm_fast.config import Data
from tdlm_fast.data import dataset, markov

ORDERS = (1, 2, 3)
# SHA-256 of all three splits, joined. They are the text itself: a change of one letter is another corpus.
TEXTS = {
    1: "6924be734595365ad11c65593d8b9245c03cc0fc4341b523766a5da882d9749e",
    2: "a1b3784acfe297da5de79c5c21b6e2b56296588a137c7f8d34f4f1cb383d2cb5",
    3: "211cedec31f47b70df6b3935f39679fe6b03eb3617a21de6cbf120dd05546399",
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_the_text_is_the_same_on_every_machine(order):
    parts = markov.texts(order)
    assert {s: len(t) for s, t in parts.items()} == markov.SIZES
    assert hashlib.sha256("".join(parts.values()).encode()).hexdigest() == TEXTS[order]


@pytest.mark.parametrize("order", ORDERS)
def test_every_context_has_each_probability_once(order):
    p = markov.transitions(order)
    assert (
        p.shape == (8**order, 8)
        and (np.sort(p, 1)[:, ::-1] == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 128]).all()
    )
    assert len(np.unique(p, axis=0)) > 0.9 * len(p)  # contexts differ


@pytest.mark.parametrize("order", ORDERS)
def test_letters_follow_their_contexts_with_these_probabilities(order):
    """Pearson's statistic over all contexts, against its mean and standard deviation of a true source."""
    letters = np.frombuffer("".join(markov.texts(order).values()).encode(), np.uint8).astype(np.int64) - ord("a")
    context = sum(letters[i : len(letters) - order + i] * 8 ** (order - 1 - i) for i in range(order))
    counts = np.bincount(context * 8 + letters[order:], minlength=8 ** (order + 1)).reshape(-1, 8)
    expected = counts.sum(1, keepdims=True) * markov.transitions(order)
    freedom = 7 * 8**order
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_its_rows_are_letters_and_not_text(tmp_path):
    config = Data(corpus="markov-1", tokenizer="bytes", cache=str(tmp_path), unique_tokens=4096)
    corpus = dataset.load(config, 16)
    assert corpus.name == "markov-1" and corpus.splits["train"].scored == 4096
    assert [(split.bytes, split.words) for split in corpus.splits.values()] == [(0, None)] * 3
    test = corpus.splits["test"]
    assert bytes(test.tokens.tolist()).decode() == markov.texts(1)["test"]


@pytest.mark.parametrize("keys", [["data.tokenizer=gpt2"], ["data.layout=paragraphs"]])
def test_tokens_or_rows_of_unknown_entropy_are_refused(keys):
    with pytest.raises(settings.ConfigError, match="data.corpus=markov-1 is one line of letters; take data.tokenizer"):
        settings.load("configs/markov.yaml", keys)


def test_other_names_are_not_sources():
    with pytest.raises(settings.ConfigError, match="data.corpus is 'markov-4'; it must be .*markov-3"):
        settings.load("configs/markov.yaml", ["data.corpus=markov-4"])
    assert [Data(corpus=name).markov_order for name in ("markov-1", "markov-3", "sotu", "owner/markov-1")] == [
        1,
        3,
        0,
        0,
    ]
    assert Data(corpus="markov-1", path="folder").markov_order == 0
