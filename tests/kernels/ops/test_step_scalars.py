"""The scalars that end a step, on numbers whose answer is known."""

import math

import pytest
import torch

from tdlm_fast.kernels.ops.step_scalars import clip_scale, record

GRADS, LOSS = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [-4.0]])], torch.tensor(2.0)  # a total norm of 5


@pytest.mark.parametrize("clip, expected", [(1.0, 5.0), (2.5, 2.0), (5.0, 1.0), (10.0, 1.0), (math.inf, 1.0)])
def test_gradients_above_the_clip_are_divided_down_to_it(clip, expected):
    norm, scale, skip = clip_scale(LOSS, GRADS, clip, torch.tensor(0.0))
    assert norm == 5 and scale.item() == pytest.approx(expected, rel=1e-6) and skip == 0


@pytest.mark.parametrize("norm, loss", [(math.nan, 2.0), (math.inf, 2.0), (4.0, math.nan), (4.0, -math.inf)])
def test_a_step_that_is_not_finite_is_skipped(norm, loss):
    assert clip_scale(torch.tensor(loss), [torch.tensor([3.0, norm])], 1.0, torch.tensor(0.0))[2] == 1


def test_a_line_of_the_log_is_written_per_step_and_the_oldest_is_overwritten():
    log, step = torch.zeros(2, 4, dtype=torch.float64), torch.tensor(3)
    for i in range(3):
        record(log, step, torch.tensor(0.5 + i), torch.tensor(1.5), torch.tensor(7), torch.tensor(2**40 + i))
    assert step == 6
    assert log.tolist() == [[1.5, 1.5, 7, 2**40 + 1], [2.5, 1.5, 7, 2**40 + 2]]  # of steps 4 and 5; 3 is overwritten


def test_opcheck():
    torch.library.opcheck(clip_scale, (LOSS, GRADS, 1.0, torch.tensor(0.0)))
    tokens = torch.tensor(7)
    torch.library.opcheck(record, (torch.zeros(3, 4, dtype=torch.float64), torch.tensor(1), LOSS, LOSS, tokens, tokens))
