"""The two objectives, in nats per valid token, with one signature.

    diffusion       1/n E_t E_xt sum_{i masked} m'(t)/m(t) * -log p(x0_i | xt)   an upper bound (Sahoo 2024)
    autoregressive  1/n sum_i -log p(x0_i | <start>, x0_<i)                      exact

n counts all valid tokens, masked or not, so both score the same tokens. The weight that is trained on may be another
(loss_weight); what is reported is always the bound (evaluation/likelihood.py).
"""

import torch
from torch import Tensor

from .kernels import Corruption, corrupt, linear_cross_entropy, take_rows
from .kernels.ops.next_token import next_token, next_token_inputs
from .kernels.philox import STREAM_TOKEN, random_words
from .kernels.schedules import mask_probability

LOSS_WEIGHTS = ("elbo", "uniform", "published")


def _row_weights(c: Corruption, schedule: str, loss_weight: str, divisor: Tensor | float) -> Tensor:
    """Weights of the compacted rows, already divided by what the loss averages over.

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
    """How many tokens of the whole batch x0 (B, T) are masked, () int64 on its device: a divisor of diffusion_loss."""
    kw = dict(schedule=schedule, sampling=sampling, valid=valid)
    return corrupt(x0, seed=seed, step=step, mask_token_id=model.mask_token_id, **kw).n_masked


def diffusion_loss(
    model, x0: Tensor, *, seed: int, step: int, start_token_id: int, valid: Tensor | None = None,
    schedule: str = "linear", sampling: str = "stratified", loss_weight: str = "elbo",
    row_offset: int = 0, batch_rows: int | None = None, divisor: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, loss tokens) of x0 (B, T): one draw of the bound, and how many tokens bore loss, both scalars.

    start_token_id is not used. Where x0 is a part of a batch, row_offset and batch_rows are as in corrupt and divisor
    is what the whole batch's loss averages over: its valid tokens for loss_weight elbo, its masked_tokens for the
    others. The losses of the parts then add up to the loss of the whole. Raises ValueError where it lacks there.
    """
    if loss_weight not in LOSS_WEIGHTS:
        raise ValueError(f"loss_weight is {loss_weight!r}; it must be one of {', '.join(LOSS_WEIGHTS)}")
    if divisor is None and batch_rows is not None and len(x0) < batch_rows:
        raise ValueError(f"{len(x0)} of batch_rows = {batch_rows} need the divisor of the whole batch")
    c = corrupt(
        x0, seed=seed, step=step, mask_token_id=model.mask_token_id, schedule=schedule, sampling=sampling,
        valid=valid, row_offset=row_offset, batch_rows=batch_rows,
    )  # fmt: skip
    h = take_rows(model(c.xt, causal=False, valid=valid).flatten(0, 1), c.rows, c.n_masked)
    if divisor is None:
        valid_tokens = x0.numel() if valid is None else valid.sum()
        divisor = valid_tokens if loss_weight == "elbo" else c.n_masked.clamp(min=1)
    weights = _row_weights(c, schedule, loss_weight, divisor)
    return linear_cross_entropy(h, model.head, c.targets, weights, n_rows=c.n_masked), c.n_masked


def autoregressive_loss(
    model, x0: Tensor, *, seed: int, step: int, start_token_id: int, valid: Tensor | None = None,
    row_offset: int = 0, divisor: Tensor | float | None = None, input_masking: float = 0.0, **_noise,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, loss tokens) of x0 (B, T) after start_token_id.

    input_masking is a control arm (Gao et al. 2025, arXiv 2510.04071): that share of the tokens that are read, never of
    those that are predicted, is replaced by [MASK], by (seed, step, global row, place). Nothing else is drawn.
    """
    hidden = None
    if input_masking:
        index = torch.arange(row_offset * x0.shape[1], (row_offset + len(x0)) * x0.shape[1], device=x0.device)
        words = random_words(index.view_as(x0), seed=seed, step=step, stream=STREAM_TOKEN)
        hidden = words < int(input_masking * 2**32)
    h, targets, live, _ = _next_token_rows(model, x0, start_token_id, valid, hidden)
    n = x0.new_full((), x0.numel()) if live is None else live
    weights = torch.ones_like(targets, dtype=torch.float32) / (n if divisor is None else divisor)
    return linear_cross_entropy(h, model.head, targets, weights, n_rows=live), n


def next_token_nll(
    model, x0: Tensor, *, start_token_id: int, valid: Tensor | None = None, hidden: Tensor | None = None
) -> Tensor:
    """-log p(x0_i | <start>, x0_<i), (B, T) fp32 nats, 0 at padding; hidden (B, T) marks tokens read as [MASK]."""
    h, targets, n, order = _next_token_rows(model, x0, start_token_id, valid, hidden)
    nll = linear_cross_entropy(h, model.head, targets, n_rows=n, reduction="none")
    return (nll if order is None else torch.zeros_like(nll).scatter(0, order, nll)).view_as(x0)


def _next_token_rows(model, x0: Tensor, start_token_id: int, valid: Tensor | None, hidden: Tensor | None) -> tuple:
    """(h (B T, D), targets (B T,), how many of these rows are no padding, their places); None for all, in order."""
    read = x0 if hidden is None else torch.where(hidden, model.mask_token_id, x0)
    if valid is None:
        shifted, _ = next_token_inputs(read, start_token_id, None)
        return model(shifted, causal=True).flatten(0, 1), x0.flatten(), None, None
    shifted, seen, order, targets, n = next_token(read, x0, valid, start_token_id)
    h = model(shifted, causal=True, valid=seen).flatten(0, 1)
    return take_rows(h, order), targets, n, order


OBJECTIVES = {"diffusion": diffusion_loss, "autoregressive": autoregressive_loss}
