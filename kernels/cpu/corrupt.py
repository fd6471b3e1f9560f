"""Corruption of csrc/cpu/corrupt.cpp: the bits of the reference in one pass."""

import torch

from ..dispatch import implement
from ..ops.corrupt import BY_COUNT, SAMPLINGS, check_inputs, corrupt_op, empty_outputs
from ..philox import UINT32_MASK
from ..schedules import table
from . import library


def _serves(x0, valid, seed, step, seed_at, step_at, mask_token_id, schedule, sampling, row_offset, batch_rows) -> str:
    return library.serves() or (f"sampling={sampling} has no kernel" if sampling in BY_COUNT else "")


def corrupt(x0, valid, seed, step, seed_at, step_at, mask_token_id, schedule, sampling, row_offset, batch_rows):
    seed, step = seed if seed_at is None else int(seed_at), step if step_at is None else int(step_at)
    check_inputs(x0, valid)
    (B, T), x0 = x0.shape, x0.contiguous()
    if not 0 <= row_offset <= batch_rows - B:
        raise ValueError(f"rows {row_offset} to {row_offset + B} lie outside batch_rows = {batch_rows}")
    valid = None if valid is None else valid.contiguous()
    outputs = empty_outputs(x0)[:-1]
    threshold, weight = table(schedule)
    n = library.handle.tdlm_corrupt(
        x0.data_ptr(), None if valid is None else valid.data_ptr(), B, T, seed & UINT32_MASK, step & UINT32_MASK,
        mask_token_id, threshold.data_ptr(), weight.data_ptr(), SAMPLINGS.index(sampling), row_offset, batch_rows,
        *(a.data_ptr() for a in outputs),
    )  # fmt: skip
    return [*outputs, torch.tensor(n)]


implement(corrupt_op, "cpu", "cpu", _serves, corrupt)
