"""The two objectives, in nats per valid token, with one signature.

    diffusion       1/n E_t E_xt sum_{i masked} m'(t)/m(t) * -log p(x0_i | xt)   an upper bound (Sahoo 2024)
    autoregressive  1/n sum_i -log p(x0_i | <start>, x0_<i)                      exact

n counts all valid tokens, masked or not, so both score the same tokens. Training may use another weight (loss_weight);
the reported figure is always the bound (evaluation/likelihood.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import Corruption, corrupt, linear_cross_entropy, take_rows
from .kernels.ops.gathered_cross_entropy import cross_entropy_of_rows
from .kernels.ops.next_token import next_token, next_token_inputs
from .kernels.philox import STREAM_TOKEN, random_words
from .kernels.schedules import mask_probability

LOSS_WEIGHTS = ("elbo", "uniform", "published")


@dataclass(frozen=True)
class Part:
    """Where x0 lies in a batch that is trained in parts. The losses of all parts add up to the loss of the batch."""

    row_offset: int = 0  # the batch's row that is row 0 of x0
    batch_rows: int | None = None  # rows of the whole batch; None: x0 is the batch
    divisor: Tensor | float | None = None  # tokens the batch's loss averages over: valid ones, or masked_tokens


WHOLE = Part()


def _row_weights(c: Corruption, schedule: str, loss_weight: str, divisor: Tensor | float) -> Tensor:
    """Return the weights of the compacted rows, already divided by the number of tokens the loss averages over.

    elbo: the bound, over all valid tokens. uniform: 1, over masked tokens. published: min((1 - m) / m, 5), over masked
    tokens (TDLM v1.2).
    """
    if loss_weight == "elbo":
        return c.row_weights / divisor
    live = (torch.arange(len(c.rows), device=c.rows.device) < c.n_masked).float() / divisor
    if loss_weight == "uniform":
        return live
    m = mask_probability(c.t, schedule)
    return live * ((1 - m) / m).clamp(max=5.0)[c.rows // c.xt.shape[1]]


def masked_tokens(
    model, x0: Tensor, *, seed: int, step: int, valid: Tensor | None = None, schedule: str = "linear",
    sampling: str = "stratified",
) -> Tensor:  # fmt: skip
    """Count the masked tokens of the whole batch x0 (B, T), () int64 on its device: the divisor of a Part."""
    return corrupt(
        x0, seed=seed, step=step, mask_token_id=model.mask_token_id, schedule=schedule, sampling=sampling, valid=valid
    ).n_masked


def diffusion_loss(
    model, x0: Tensor, *, seed: int, step: int, start_token_id: int, valid: Tensor | None = None,
    schedule: str = "linear", sampling: str = "stratified", loss_weight: str = "elbo", part: Part = WHOLE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (loss, number of loss-bearing tokens) of one draw of the bound on x0 (B, T), both scalars.

    start_token_id is not used. Raises ValueError where a part of a batch comes without the batch's divisor, and for
    sampling="exact" with loss_weight="elbo": without the term of a whole row masked the sum is not a bound.
    """
    if loss_weight not in LOSS_WEIGHTS:
        raise ValueError(f"loss_weight is {loss_weight!r}; it must be one of {', '.join(LOSS_WEIGHTS)}")
    if sampling == "exact" and loss_weight == "elbo":
        raise ValueError('sampling="exact" draws no bound; take sampling="counts", or another loss_weight than "elbo"')
    divisor = part.divisor
    if divisor is None and part.batch_rows is not None and len(x0) < part.batch_rows:
        raise ValueError(f"{len(x0)} of batch_rows = {part.batch_rows} need the divisor of the whole batch")
    c = corrupt(
        x0, seed=seed, step=step, mask_token_id=model.mask_token_id, schedule=schedule, sampling=sampling,
        valid=valid, row_offset=part.row_offset, batch_rows=part.batch_rows,
    )  # fmt: skip
    h = model(c.xt, causal=False, valid=valid).flatten(0, 1)
    if divisor is None:
        valid_tokens = x0.numel() if valid is None else valid.sum()
        divisor = valid_tokens if loss_weight == "elbo" else c.n_masked.clamp(min=1)
    weights = _row_weights(c, schedule, loss_weight, divisor)
    return cross_entropy_of_rows(h, c.rows, model.head, c.targets, weights, c.n_masked), c.n_masked


def autoregressive_loss(
    model, x0: Tensor, *, seed: int, step: int, start_token_id: int, valid: Tensor | None = None,
    input_masking: float = 0.0, part: Part = WHOLE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (loss, number of loss-bearing tokens) of x0 (B, T) after start_token_id, both scalars.

    input_masking is a control arm (Gao et al. 2025, arXiv 2510.04071): that share of the input tokens, never of the
    predicted ones, is replaced by [MASK], drawn by (seed, step, row of the batch, place). Nothing else is random.
    """
    hidden = None
    if input_masking:
        first, T = part.row_offset, x0.shape[1]
        index = torch.arange(first * T, (first + len(x0)) * T, device=x0.device)
        words = random_words(index.view_as(x0), seed=seed, step=step, stream=STREAM_TOKEN)
        hidden = words < int(input_masking * 2**32)
    h, order, targets, live = _next_token_rows(model, x0, start_token_id, valid, hidden)
    n = x0.new_full((), x0.numel()) if live is None else live
    weights = torch.ones_like(targets, dtype=torch.float32) / (n if part.divisor is None else part.divisor)
    return cross_entropy_of_rows(h, order, model.head, targets, weights, live), n


def next_token_nll(model, x0: Tensor, *, start_token_id: int, valid: Tensor | None = None) -> Tensor:
    """Return -log p(x0_i | <start>, x0_<i), (B, T) fp32 nats, 0 at padding."""
    h, order, targets, n = _next_token_rows(model, x0, start_token_id, valid, None)
    h = h if order is None else take_rows(h, order)
    nll = linear_cross_entropy(h, model.head, targets, n_rows=n, reduction="none")
    return (nll if order is None else torch.zeros_like(nll).scatter(0, order, nll)).view_as(x0)


def _next_token_rows(model, x0: Tensor, start_token_id: int, valid: Tensor | None, hidden: Tensor | None) -> tuple:
    """Return (h (B T, D), order, targets, n): row order[i] predicts targets[i], both (B T,), for the first n rows.

    hidden (B, T): inputs read as [MASK]. order and n are None where no row is padding: all rows count, in order.
    """
    read = x0 if hidden is None else torch.where(hidden, model.mask_token_id, x0)
    if valid is None:
        shifted, _ = next_token_inputs(read, start_token_id, None)
        return model(shifted, causal=True).flatten(0, 1), None, x0.flatten(), None
    shifted, seen, order, targets, n = next_token(read, x0, valid, start_token_id)
    h = model(shifted, causal=True, valid=seen).flatten(0, 1)
    return h, order, targets, n


OBJECTIVES = {"diffusion": diffusion_loss, "autoregressive": autoregressive_loss}
