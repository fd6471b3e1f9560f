"""A source of letters whose entropy is known: a Markov chain of order k over LETTERS, data.corpus=markov-K.

    p(letter | the k letters before it) = 1/2, 1/4, 1/8, 1/16, 1/32, 1/64, 1/128, 1/128

Each context has its own order of letters by probability, drawn once. Every context has the same entropy, so the source
has h = (2 - 1/64) ln 2 = 1.3755 nats per letter, whichever contexts are frequent. Contexts and text are made of
integers only, from the words of Philox, so they are the same on every machine. A letter is a byte, one token of
data.tokenizer=bytes.
"""

import functools

import numpy as np
import torch

from ..kernels.philox import STREAM_TOKEN, random_words

LETTERS = "abcdefgh"
SIZES = {"train": 1_000_000, "valid": 50_000, "test": 50_000}  # letters of one chain, cut in this order
SEED, BURN_IN = 20261, 4096  # the letters before the text, after which the first context no longer matters
LAST = len(LETTERS) - 1


def _words(n: int, order: int, use: int) -> np.ndarray:
    return random_words(torch.arange(n), seed=SEED, step=2 * order + use, stream=STREAM_TOKEN).numpy()


@functools.cache
def preferences(order: int) -> np.ndarray:
    """Return the letters of each context by falling probability, (S, A) int64, with A = 8 and S = A**order.

    A context is the number whose digits to base A are its letters, the oldest first.
    """
    A = len(LETTERS)
    return np.argsort(_words(A ** (order + 1), order, 0).reshape(-1, A), axis=1, kind="stable")


@functools.cache
def transitions(order: int) -> np.ndarray:
    """Return p(letter | context), (S, A) float64; every value is a power of 1/2, so it is exact."""
    chosen = preferences(order)
    p = np.empty(chosen.shape)
    np.put_along_axis(p, chosen, np.broadcast_to(0.5 ** np.minimum(np.arange(1, LAST + 2), LAST), chosen.shape), 1)
    return p


@functools.cache
def texts(order: int) -> dict[str, str]:
    """Return {split: text} of the source, always the same."""
    chosen, state, letters = preferences(order).tolist(), 0, []
    S, A = len(chosen), len(LETTERS)
    for word in (_words(BURN_IN + sum(SIZES.values()), order, 1) >> 32 - LAST).tolist():
        letter = chosen[state][LAST - word.bit_length()]  # LAST random bits: half of the words begin with 1, …
        letters.append(letter)
        state = (state * A + letter) % S
    whole = "".join(map(LETTERS.__getitem__, letters[BURN_IN:]))
    ends = np.cumsum([0, *SIZES.values()]).tolist()
    return {s: whole[start:end] for s, start, end in zip(SIZES, ends, ends[1:], strict=False)}
