"""Fill masked places in S steps: which places a step writes, and with which tokens."""

import torch
from torch import Tensor

from ..evaluation.exact_likelihood import best_places
from ..kernels.schedules import mask_probability
from .draws import Draws
from .options import COUNTED, SamplerOptions


def masked_counts(tokens: int, steps: int, unmasking: str) -> list[int]:
    """Return the tokens still masked after each step: round(m(1 - s/S) tokens), but every step writes at least one."""
    left, counts = tokens, []
    for s in range(1, steps + 1):
        left = max(min(round(tokens * masked_share(s, steps, unmasking)), left - 1), steps - s)
        counts.append(left)
    return counts


def masked_share(s: int, steps: int, unmasking: str) -> float:
    """Return the share m_s of the new tokens that is masked after step s."""
    return float(mask_probability(torch.tensor(1 - s / steps, dtype=torch.float64), unmasking))


def fill(model, x: Tensor, draws: Draws, first: int, tokens: int, options: SamplerOptions, on_step) -> tuple[int, int]:
    """Write x[:, first : first + tokens], which is all masked, in place; return (evaluations, rows)."""
    method, unmasking, steps = options.method, options.unmasking, options.steps_per_block
    span, mask = slice(first, first + tokens), model.mask_token_id
    counts = masked_counts(tokens, steps, unmasking) if method in COUNTED else []
    calls = rows = 0
    for s in range(1, steps + 1):
        masked, remasked = x == mask, None
        masked[:, :first] = masked[:, first + tokens :] = False
        chosen = torch.zeros_like(masked)
        if method == "ancestral":
            mt, ms = masked_share(s - 1, steps, unmasking), masked_share(s, steps, unmasking)
            sigma = min(options.remask or 0.0, ms / (1 - mt)) if mt < 1 else 0.0
            u = draws.uniform(tokens)
            chosen[:, span] = masked[:, span] & (u < (mt - ms + sigma * (1 - mt)) / mt)
            remasked = ~masked[:, span] & (u < sigma)
        elif method == "random":
            k = int(masked[0].sum()) - counts[s - 1]
            u = draws.uniform(tokens).masked_fill(~masked[:, span], -1.0)
            chosen[:, span] = chosen[:, span].scatter(1, u.topk(k).indices, True)
        else:
            chosen = masked
        live = chosen.any(1).nonzero()[:, 0]
        if len(live):
            calls, rows = calls + 1, rows + len(live)
            h, texts = model(x[live], causal=False), live.tolist()
            if method in ("ancestral", "random"):
                x[chosen], _ = draws.tokens(h[chosen[live]], model.head, texts, chosen[live].sum(1).tolist())
            else:
                k = int(masked[0].sum()) - counts[s - 1]
                value = torch.full(x.shape, -torch.inf, dtype=torch.float64, device=x.device)
                if method == "confidence":
                    places = masked.sum(1).tolist()
                    drawn, value[masked] = draws.tokens(h[masked], model.head, texts, places, method)
                    chosen = best_places(value, k)
                    x[chosen] = drawn[chosen[masked]]
                else:
                    value[masked] = draws.certainties(h[masked], model.head, method)
                    chosen = best_places(value, k)
                    x[chosen], _ = draws.tokens(h[chosen], model.head, texts, [k] * len(texts))
        if remasked is not None:
            x[:, span][remasked] = mask
        on_step(x)
    return calls, rows
