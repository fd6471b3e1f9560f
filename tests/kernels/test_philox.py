"""Philox against the known answers of Random123, and what its words must not share."""

import pytest
import torch

from tdlm_fast.kernels.philox import STREAM_TIME, STREAM_TOKEN, philox4x32, random_words

RANDOM123 = [  # kat_vectors of Random123, philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter,key,answer", RANDOM123)
def test_philox_gives_the_published_answers(counter, key, answer):
    out = philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(o) for o in out) == answer


def words(n, first=0, **kw):
    return random_words(torch.arange(first, first + n), **dict(seed=1, step=2, stream=STREAM_TOKEN) | kw)


def test_a_word_is_the_first_of_its_counter_under_the_key_of_seed_and_step():
    index = 5 * 2**32 + 7  # its high word is the second word of the counter
    counter = tuple(torch.tensor([c]) for c in (7, 5, STREAM_TIME, 0))
    expected = philox4x32(counter, (11, 13))[0]
    assert torch.equal(words(1, index, seed=11, step=13, stream=STREAM_TIME), expected)


def test_a_key_is_taken_by_its_lower_32_bits():
    assert torch.equal(words(64, seed=2**32 + 1, step=2**33 + 2), words(64))
    assert torch.equal(words(64, seed=-1), words(64, seed=2**32 - 1))


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 3}, {"stream": STREAM_TIME}, {"first": 2**32}])
def test_another_seed_step_stream_or_place_gives_unrelated_words(change):
    """Of n pairs of unrelated words, one bit in two differs: a mean of 16 of 32, with a deviation of sqrt(8 / n)."""
    n = 4096
    difference = words(n) ^ words(n, **change)
    ones = sum(((difference >> bit) & 1).sum().item() for bit in range(32))
    assert abs(ones / n - 16) < 5 * (8 / n) ** 0.5


def test_words_are_uniform():
    shares = words(1 << 16).double() / 2**32
    assert shares.min() >= 0 and shares.max() < 1
    even = (torch.arange(1 << 16) + 0.5) / (1 << 16)
    assert (shares.sort()[0] - even).abs().max() < 1.95 / (1 << 8)  # Kolmogorov's test at 0.1 %
