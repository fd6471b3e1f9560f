"""Measure a model at each corruption level, on a probe batch that never changes.

    level k of K   l = round((k + 1/2) n / K) of a row's n tokens are masked, a fixed uniform subset
    its loss       the mean of -log p over the masked tokens

That mean is (1/m) sum_masked / n, the bound's integrand at m = (k + 1/2) / K. So the losses of the levels average to
the bound (midpoint rule), and the gradient of a level, from a backward pass of its own, is its part of the bound's
gradient. For an autoregressive model the level of a token is the share of its row that it does not see, (n - i) / n, so
that both objectives stand on one axis. The model is left as it was, and no random state moves.
"""

from typing import Any

import torch
from torch import Tensor

from ..data.dataset import Split
from ..kernels import linear_cross_entropy
from ..kernels.ops.corrupt import random_subsets
from ..kernels.ops.rotary import rotate
from ..kernels.philox import STREAM_SAMPLE, random_words
from ..objective import next_token_inputs
from .likelihood import most_probable, scoring
from .published_metric import LARGEST_WEIGHT

LEVELS = 10


def _probe(split: Split, rows: int, device):
    """Return (x0 (B, T), which tokens are real (B, T) bool, valid or None) of a fixed random choice of rows."""
    words = random_words(torch.arange(len(split)), seed=0, step=1, stream=STREAM_SAMPLE)
    x0, valid = split.rows(torch.argsort(words, stable=True)[:rows].numpy(), device)
    return x0, torch.ones_like(x0, dtype=torch.bool) if valid is None else valid, valid


def _masks(real: Tensor, level: int) -> Tensor:
    """Return the fixed subset of a level, (B, T) bool."""
    n = real.sum(1, keepdim=True)
    counts = ((level + 0.5) / LEVELS * n).round().long().clamp(min=1).minimum(n)
    index = torch.arange(real.numel(), device=real.device).view_as(real)
    return random_subsets(counts, real, index, seed=0, step=level)


def _levels(model, objective: str, x0: Tensor, real: Tensor, valid: Tensor | None, start_token_id: int):
    """Yield for each level: (chosen (B, T) bool, nll (N,) of the chosen tokens with its graph, hits (N,))."""
    if objective == "autoregressive":
        shifted, seen = next_token_inputs(x0, start_token_id, valid)
        h = model(shifted, causal=True, valid=seen)
        n, before = real.sum(1, keepdim=True), torch.arange(x0.shape[1], device=x0.device)
        level = (((n - before) * LEVELS + n - 1) // n.clamp(min=1) - 1).clamp(0, LEVELS - 1)
    for k in range(LEVELS):
        if objective == "autoregressive":
            here = real & (level == k)
        else:
            here = _masks(real, k)
            h = model(torch.where(here, model.mask_token_id, x0), causal=False, valid=valid)
        rows, targets = h[here], x0[here]
        nll = linear_cross_entropy(rows, model.head, targets, reduction="none")
        yield here, nll, most_probable(rows, model.head) == targets


def attention_health(model, tokens: Tensor, *, causal: bool, valid: Tensor | None) -> dict[str, Any]:
    """Return entropy (nats) and mean distance |query - key| (tokens) of every head, and of even attention.

    Lists are layers x heads. The probabilities are softmax(q k / sqrt(K)) of the layer's own q and k; queries at
    padding do not count.
    """
    held: list[Tensor] = []
    hooks = [b.qkv.register_forward_hook(lambda _m, _i, out: held.append(out.detach())) for b in model.blocks]
    try:
        with torch.no_grad():
            model(tokens, causal=causal, valid=valid)
    finally:
        for hook in hooks:
            hook.remove()
    B, T = tokens.shape
    place = torch.arange(T, device=tokens.device)
    distance = (place[:, None] - place).abs().float()
    keep = torch.ones(B, 1, T, T, dtype=torch.bool, device=tokens.device)
    if causal:
        keep = keep & (place[:, None] >= place)
    if valid is not None:
        keep = keep & (valid[:, None, None, :] | torch.eye(T, dtype=torch.bool, device=tokens.device))
    count = torch.ones(B, T, device=tokens.device) if valid is None else valid.float()

    def mean(a: Tensor) -> Tensor:  # (B, H, T) -> (H,)
        return (a * count[:, None]).sum((0, 2)) / count.sum()

    def summary(p: Tensor) -> tuple[Tensor, Tensor]:  # p (B, H, T, T) -> (H,) each
        entropy = -(p * p.clamp(min=1e-30).log()).sum(-1)
        return mean(entropy), mean((p * distance).sum(-1))

    out: dict[str, Any] = {"entropy": [], "distance": []}
    for block, qkv in zip(model.blocks, held, strict=True):
        q, k, _ = qkv.float().view(B, T, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
        if block.rope:
            q, k = rotate(q), rotate(k)
        z = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~keep, -torch.inf)
        entropy, far = summary(z.softmax(-1))
        out["entropy"].append(_round(entropy))
        out["distance"].append(_round(far))
    entropy, far = summary(keep.float() / keep.float().sum(-1, keepdim=True))
    return out | {"even_entropy": _round(entropy)[0], "even_distance": _round(far)[0]}


def _round(values) -> list[float]:
    return [float(f"{float(v):.5g}") for v in values]


def trained_weight(m: Tensor, loss_weight: str) -> Tensor:
    """Return the training weight of a masked token at mask probability m (objective.py), for a schedule linear in m."""
    if loss_weight == "published":
        return ((1 - m) / m).clamp(max=LARGEST_WEIGHT)
    return 1 / m if loss_weight == "elbo" else torch.ones_like(m)


def diagnose(
    model, split: Split, objective: str, *, rows: int, start_token_id: int, precision: str = "fp32",
    loss_weight: str = "elbo",
) -> dict:  # fmt: skip
    """Return the diagnostics of a probe batch of that many rows; lists run over the levels, least corrupted first.

    loss (nats per token), accuracy, grad_norm (of the level's loss, L2 over all parameters), share (of the bound),
    tokens; attention as in attention_health, for diffusion at m = 0.55. For diffusion also weighted_variance (over
    rows, of weight times masked loss per token of the row) and weight_difficulty (Pearson correlation of the training
    weight and a row's masked loss; None where either is constant). A level without tokens holds None.
    """
    names = ("loss", "accuracy", "grad_norm", "tokens", "weighted_variance")
    out: dict = {name: [] for name in names}
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights, difficulty = [], []
    with scoring(model, precision) as device:
        x0, real, valid = _probe(split, rows, device)
        n = real.sum(1)
        for k, (here, nll, hits) in enumerate(_levels(model, objective, x0, real, valid, start_token_id)):
            if not len(nll):
                for name in names:
                    out[name].append(0 if name == "tokens" else None)
                continue
            grads = torch.autograd.grad(
                nll.mean(), parameters, retain_graph=objective == "autoregressive", allow_unused=True
            )
            norms = torch.stack([g.norm() for g in grads if g is not None])
            out["loss"] += _round([nll.detach().mean()])
            out["accuracy"] += _round([hits.float().mean()])
            out["grad_norm"] += _round([norms.norm()])
            out["tokens"].append(len(nll))
            if objective == "diffusion":
                sums = torch.zeros(len(x0), dtype=torch.float64, device=device)
                sums.index_add_(0, torch.arange(len(x0), device=device)[:, None].expand_as(here)[here], nll.double())
                counts, sums = here.sum(1), sums.detach()
                m = torch.full_like(sums, (k + 0.5) / LEVELS)
                w = trained_weight(m, loss_weight)
                out["weighted_variance"] += _round([(w * sums / n).var() if len(x0) > 1 else 0.0])
                weights.append(w)
                difficulty.append(sums / counts)
        total = sum(v for v in out["loss"] if v is not None)
        out["share"] = [None if v is None else float(f"{v / total:.5g}") for v in out["loss"]]
        if objective == "diffusion":
            pair = torch.stack([torch.cat(weights), torch.cat(difficulty)])
            spread = pair.std(1).min().item()
            out["weight_difficulty"] = float(f"{torch.corrcoef(pair)[0, 1].item():.5g}") if spread > 1e-9 else None
            tokens = torch.where(_masks(real, LEVELS // 2), model.mask_token_id, x0)
            out["attention"] = attention_health(model, tokens, causal=False, valid=valid)
        else:
            del out["weighted_variance"]
            shifted, seen = next_token_inputs(x0, start_token_id, valid)
            out["attention"] = attention_health(model, shifted, causal=True, valid=seen)
    return out
