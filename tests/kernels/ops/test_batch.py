"""The rows of a batch drawn from a split in the memory of the device."""

import pytest
import torch

from tdlm_fast.kernels.ops.batch import draw

TOKENS = torch.tensor([10, 11, 12, 20, 30, 31], dtype=torch.int16)
STARTS, LENGTHS, ORDER = torch.tensor([0, 3, 4]), torch.tensor([3, 1, 2]), torch.tensor([2, 0, 1])


def rows(step, *, padded=True, B=1, steps_per_epoch=3, T=3, tokens=TOKENS, mask=0xFFFF):
    return draw(tokens, STARTS, LENGTHS, ORDER, torch.tensor(step), B, steps_per_epoch, T, mask, padded)


@pytest.mark.parametrize("step, row, length", [
    (0, [30, 31, 0], 2), (1, [10, 11, 12], 3), (2, [20, 0, 0], 1),
    (3, [30, 31, 0], 2), (3 * 10**9 + 1, [10, 11, 12], 3),  # later epochs repeat the order
])  # fmt: skip
def test_rows_come_in_the_order_and_padding_is_0(step, row, length):
    x0, valid = rows(step)
    assert x0.tolist() == [row] and x0.dtype == torch.int64
    assert valid.tolist() == [[i < length for i in range(3)]]


def test_a_batch_takes_consecutive_places_of_the_order():
    x0, valid = rows(0, B=2, steps_per_epoch=1)
    assert x0.tolist() == [[30, 31, 0], [10, 11, 12]] and valid.sum(1).tolist() == [2, 3]


def test_rows_without_padding_have_no_mask():
    x0, valid = rows(1, padded=False)
    assert x0.tolist() == [[10, 11, 12]] and valid.shape == (0,) and valid.dtype == torch.bool


@pytest.mark.parametrize("dtype, mask, token", [(torch.int16, 0xFFFF, 50257), (torch.int32, 2**32 - 1, 2**32 - 2)])
def test_unsigned_tokens_stored_as_signed_ones_are_read_back(dtype, mask, token):
    tokens = torch.full((6,), token, dtype=torch.int64).to(dtype)
    assert (tokens < 0).all()
    assert rows(1, tokens=tokens, mask=mask)[0].tolist() == [[token] * 3]


@pytest.mark.parametrize("padded", [True, False])
def test_opcheck(padded):
    torch.library.opcheck(draw, (TOKENS, STARTS, LENGTHS, ORDER, torch.tensor(1), 1, 3, 3, 0xFFFF, padded))
