"""Corrupt a batch: one noise level per sequence, one Philox word per token, and a list of the masked tokens.

    masked[b, i] = philox(seed, step, global token index) < m(t_b) 2^32
    xt           = where(masked, mask_token_id, x0)
    weights      = masked * m'(t_b) / m(t_b)

The comparison is between integers, so the same (seed, step) gives the same masks bit for bit on every device.

With sampling="counts" exactly l = ceil(m(t) n) of a sequence's n tokens are masked, a uniform subset, and the weight is
1 / (l P(l)), P(l) = m^-1(l/n) - m^-1((l-1)/n): the bound by counts (Nie et al. 2025, Eq. 14) under any schedule.

With sampling="exact" exactly l = floor(m(t) n) of them are masked, with t independent for each sequence, as the
published code does (TDLM v1.2). l may be 0 and is never n, so the term of the bound in which every token is masked is
never drawn. The weight is m'(t) / m(t) as without counts, and the weighted sum is not a bound: on average it lies below
it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import op, reference
from ..philox import STREAM_SUBSET, STREAM_TIME, STREAM_TOKEN, UINT32_MASK, random_words
from ..schedules import LEVELS, SCHEDULES, count_weights, table

SAMPLINGS = ("stratified", "antithetic", "independent", "counts", "exact")
BY_COUNT = ("counts", "exact")  # the number of masked tokens of a sequence follows from its level


class Corruption(NamedTuple):
    xt: Tensor  # (B, T) int64, mask_token_id where masked
    masked: Tensor  # (B, T) bool
    weights: Tensor  # (B, T) fp32, 0 where not masked
    t: Tensor  # (B,) fp32, in (0, 1)
    rows: Tensor  # (N,) int64, flat positions of the masked tokens in order, then 0
    targets: Tensor  # (N,) int64, x0 at rows, then 0
    row_weights: Tensor  # (N,) fp32, weights at rows, then 0
    n_masked: Tensor  # () int64, stays on the device


def levels(B: int, row_offset: int, batch_rows: int, sampling: str, seed: int, step: int, device) -> Tensor:
    """Return the level of t, an integer in [0, 2^16), of rows row_offset .. row_offset + B of a batch: (B,) int64."""
    row = torch.arange(row_offset, row_offset + B, device=device)
    source = row // 2 if sampling == "antithetic" else row
    u = random_words(source, seed=seed, step=step, stream=STREAM_TIME)
    if sampling in ("stratified", "counts"):
        u = ((row << 32) + u) // batch_rows
    elif sampling == "antithetic":
        u = torch.where(row % 2 == 0, u, 2**32 - 1 - u)
    return u >> 16


def _compact(x0: Tensor, masked: Tensor, weights: Tensor) -> list[Tensor]:
    """Return rows, targets, row_weights and n_masked of a Corruption."""
    n = masked.sum()
    flat = masked.view(-1)
    # A stable sort puts the masked positions first, in order, without asking the device for their number.
    rows = torch.argsort(~flat, stable=True)
    live = torch.arange(flat.numel(), device=x0.device) < n
    rows = torch.where(live, rows, 0)
    targets = torch.where(live, x0.reshape(-1)[rows], 0)
    row_weights = torch.where(live, weights.view(-1)[rows], 0.0)
    return [rows, targets, row_weights, n]


def random_subsets(counts: Tensor, valid: Tensor, index: Tensor, *, seed: int, step: int) -> Tensor:
    """Return (B, T) bool: in each row a uniform subset of counts (B, 1) of its valid tokens; index (B, T) is global."""
    words = random_words(index, seed=seed, step=step, stream=STREAM_SUBSET)
    order = torch.argsort(torch.where(valid, words, 2**33), dim=1, stable=True)
    place = torch.arange(valid.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    return (rank < counts) & valid


def empty_outputs(x0: Tensor, *_) -> list[Tensor]:
    """Return empty fields of a Corruption of x0."""
    B, T = x0.shape
    row = x0.new_empty(B * T)
    return [
        torch.empty_like(x0), x0.new_empty(B, T, dtype=torch.bool), x0.new_empty(B, T, dtype=torch.float32),
        x0.new_empty(B, dtype=torch.float32), row, torch.empty_like(row),
        row.new_empty(B * T, dtype=torch.float32), x0.new_empty(()),
    ]  # fmt: skip


@op("tdlm::corrupt", fake=empty_outputs)
def corrupt_op(
    x0: Tensor, valid: Tensor | None, seed: int, step: int, seed_at: Tensor | None, step_at: Tensor | None,
    mask_token_id: int, schedule: str, sampling: str, row_offset: int, batch_rows: int,
) -> list[Tensor]:  # fmt: skip
    """Return the fields of a Corruption.

    seed_at and step_at, () int64 on x0's device, replace seed and step: a captured graph reads them there.
    """
    key: dict = {"seed": seed if seed_at is None else seed_at, "step": step if step_at is None else step_at}
    B, T = x0.shape
    device = x0.device
    level = levels(B, row_offset, batch_rows, sampling, device=device, **key)
    threshold, weight = (a.to(device)[level, None] for a in table(schedule))
    index = torch.arange(row_offset * T, (row_offset + B) * T, device=device).view(B, T)
    if sampling in BY_COUNT:
        real = torch.ones_like(x0, dtype=torch.bool) if valid is None else valid
        n = real.sum(1, keepdim=True)
        count = (threshold * n + (UINT32_MASK if sampling == "counts" else 0)) >> 32
        count = count.clamp(min=1) if sampling == "counts" else count
        masked = random_subsets(count, real, index, **key)
        if sampling == "counts":
            weight = count_weights(schedule, T, valid is not None).to(device)[n if valid is not None else 0, count]
    else:
        masked = random_words(index, stream=STREAM_TOKEN, **key) < threshold
        masked = masked if valid is None else masked & valid
    xt = torch.where(masked, mask_token_id, x0)
    weights = torch.where(masked, weight, 0.0).float()
    t = ((level + 0.5) / LEVELS).float()
    return [xt, masked, weights, t, *_compact(x0, masked, weights)]


corrupt_ref = reference(corrupt_op)


def check_inputs(x0: Tensor, valid: Tensor | None) -> None:
    """Raise ValueError where a kernel would misread its inputs."""
    if x0.dtype != torch.int64 or valid is not None and (valid.shape != x0.shape or valid.dtype != torch.bool):
        raise ValueError("x0 must be (B, T) int64, and valid must be (B, T) bool")


def corrupt(
    x0: Tensor,  # (B, T) int64
    *,
    seed: int | Tensor,  # a tensor: () int64 on x0's device, read there, as a captured graph needs it
    step: int | Tensor,
    mask_token_id: int,
    schedule: str = "linear",
    sampling: str = "stratified",
    row_offset: int = 0,
    batch_rows: int | None = None,
    valid: Tensor | None = None,  # (B, T) bool, False at padding, which is never masked
) -> Corruption:
    """Mask each sequence at a noise level of its own; see the top of the file for the formula.

    row_offset is the global index of the first row and batch_rows the size of the whole batch (default: these
    rows), so that a batch cut into micro-batches is masked as the whole one would be. With stratified and counts the
    level grows with the row's place in the batch: rows must come in a random order, as data.batch draws them, else a
    row's level follows its place. Raises ValueError for an unknown schedule or sampling, rows that are not
    two-dimensional or lie outside the batch, and a row_offset without batch_rows, which would put the parts in strata
    of different batches.
    Sahoo et al. 2024 (Eq. 11); one t per sequence as in Nie et al. 2025.
    """
    if x0.dim() != 2:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; it must be (B, T)")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; it must be one of {', '.join(SCHEDULES)}")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
    if row_offset and batch_rows is None:
        raise ValueError(f"row_offset = {row_offset} needs batch_rows, the rows of the whole batch")
    rows = batch_rows if batch_rows is not None else x0.shape[0]
    if row_offset < 0 or row_offset + x0.shape[0] > rows:
        raise ValueError(f"rows {row_offset} to {row_offset + x0.shape[0]} lie outside batch_rows = {rows}")
    ints = [0 if isinstance(k, Tensor) else int(k) & UINT32_MASK for k in (seed, step)]
    tensors = [k.long() if isinstance(k, Tensor) else None for k in (seed, step)]
    return Corruption(*corrupt_op(x0, valid, *ints, *tensors, mask_token_id, schedule, sampling, row_offset, rows))
