"""What an autoregressive model reads and predicts, on rows whose answer is written out."""

import torch

from tdlm_fast.kernels.ops.next_token import next_token, next_token_inputs

START = 9
X0 = torch.tensor([[5, 6, 7], [8, 3, 4]])
VALID = torch.tensor([[True, True, False], [True, False, False]])


def test_a_position_reads_the_token_before_it():
    inputs, seen = next_token_inputs(X0, START, VALID)
    assert inputs.tolist() == [[9, 5, 6], [9, 8, 3]]
    assert seen.tolist() == [[True, True, True], [True, True, False]]  # whether that token is real; the start is
    inputs, seen = next_token_inputs(X0, START, None)
    assert inputs.tolist() == [[9, 5, 6], [9, 8, 3]] and seen is None


def test_real_tokens_come_first_and_in_order():
    read = X0 + 10
    shifted, seen, order, targets, n = next_token(read, X0, VALID, START)
    assert shifted.tolist() == [[9, 15, 16], [9, 18, 13]]  # what is read may differ from what is predicted
    assert seen.tolist() == [[True, True, True], [True, True, False]]
    assert order.tolist() == [0, 1, 3, 2, 4, 5] and n == 3 and n.dtype == torch.int64
    assert targets.tolist() == [5, 6, 8, 7, 3, 4]


def test_all_padding_and_no_padding_keep_every_place_once():
    for valid, count in ((VALID & False, 0), (VALID | True, 6)):
        _, _, order, targets, n = next_token(X0, X0, valid, START)
        assert order.tolist() == list(range(6)) and torch.equal(targets, X0.flatten()) and n == count


def test_opcheck():
    torch.library.opcheck(next_token, (X0, X0, VALID, START))
