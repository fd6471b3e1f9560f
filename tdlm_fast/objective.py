"""The two objectives, in nats per valid token, with one signature.

    diffusion       1/n E_t E_xt sum_{i masked} m'(t)/m(t) * -log p(x0_i | xt)   an upper bound (Sahoo 2024)
    autoregressive  1/n sum_i -log p(x0_i | <start>, x0_<i)                      exact

n counts all valid tokens, masked or not, so both score the same tokens.
"""

import torch
from torch import Tensor

from .kernels import corrupt, linear_cross_entropy


def diffusion_loss(
    model, x0: Tensor, *, seed: int, step: int, start_token_id: int, valid: Tensor | None = None,
    schedule: str = "linear", sampling: str = "stratified",
) -> Tensor:  # fmt: skip
    """Scalar loss of x0 (B, T): one draw of the bound. start_token_id is not used."""
    c = corrupt(
        x0, seed=seed, step=step, mask_token_id=model.mask_token_id, schedule=schedule, sampling=sampling,
        valid=valid,
    )  # fmt: skip
    h = model(c.xt, causal=False, valid=valid).flatten(0, 1)[c.rows]
    total = linear_cross_entropy(h, model.head, c.targets, c.row_weights, n_rows=c.n_masked)
    return total / (x0.numel() if valid is None else valid.sum())


def autoregressive_loss(
    model, x0: Tensor, *, seed: int, step: int, start_token_id: int, valid: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Scalar loss of x0 (B, T) after start_token_id. seed and step are not used: nothing is drawn."""
    shifted = torch.cat([torch.full_like(x0[:, :1], start_token_id), x0[:, :-1]], 1)
    # Position i reads token i - 1, so its key counts where token i - 1 does; the start always does.
    seen = None if valid is None else torch.cat([torch.ones_like(valid[:, :1]), valid[:, :-1]], 1)
    h = model(shifted, causal=True, valid=seen).flatten(0, 1)
    weights = None if valid is None else valid.flatten().float()
    total = linear_cross_entropy(h, model.head, x0.flatten(), weights)
    return total / (x0.numel() if valid is None else valid.sum())


OBJECTIVES = {"diffusion": diffusion_loss, "autoregressive": autoregressive_loss}
