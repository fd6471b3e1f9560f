"""Draw tokens from logits: temperature, top-k, top-p and Gumbel noise, with one generator per text."""

import torch
from torch import Tensor

from ..evaluation import exact_likelihood
from .options import SamplerOptions

LOGITS = 1 << 24  # logits in memory at once, in fp64 with a copy or two; those of one text where they are more


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return logits (N, V) over temperature in fp64, -inf outside the top_k (0: all) and the nucleus of mass top_p."""
    z = logits.double() / max(temperature, 1e-6)
    if 0 < top_k < z.shape[-1]:
        z = z.masked_fill(z < z.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        values, order = z.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        z = torch.full_like(z, -torch.inf).scatter(1, order, values.masked_fill(before >= top_p, -torch.inf))
    return z


def draw(z: Tensor, u: Tensor) -> Tensor:
    """Draw tokens (N,) from softmax(z) as argmax(z - log(-log u)); z and u (N, V) are fp64, u uniform in [0, 1)."""
    return (z - torch.log(-torch.log(u.clamp(1e-300, 1 - 1e-16)))).argmax(-1)


def certainty(logits: Tensor, method: str, token: Tensor | None = None) -> Tensor:
    """Return the value (N,) fp64 by which a method prefers places, from logits (N, V) at temperature 1.

    token (N,), the drawn tokens, is needed for confidence only.
    """
    log_p = logits.double().log_softmax(-1)
    if method == "confidence" and token is not None:
        return log_p.gather(1, token[:, None])[:, 0]
    return exact_likelihood.certainty(log_p, "confidence" if method == "top" else method)


class Draws:
    """Hold a generator for each text, and the filters of the logits."""

    def __init__(self, options: SamplerOptions, device, forbidden: int | None = None):
        self.generators = [torch.Generator().manual_seed(options.seed + i) for i in range(options.number)]
        self.temperature, self.filters = options.temperature, (options.temperature, options.top_k, options.top_p)
        self.device, self.forbidden = device, forbidden

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """Return the logits (N, V) of h (N, D), -inf at the forbidden token."""
        logits = h @ head.T
        if self.forbidden is not None:
            logits[:, self.forbidden] = -torch.inf
        return logits

    def uniform(self, width: int) -> Tensor:
        """Draw (texts, width) fp64 in [0, 1), each row from the generator of its text."""
        rows = [torch.rand(width, dtype=torch.float64, generator=g) for g in self.generators]
        return torch.stack(rows).to(self.device)

    def tokens(self, h: Tensor, head: Tensor, texts: list[int], counts: list[int], method: str = "") -> tuple:
        """Draw a token for each row of h (N, D), and return its certainty too if a method is given.

        The rows stand text by text: counts[j] of them belong to texts[j].
        """
        token, sure, first, V = [], [], 0, len(head)
        while texts:  # in passes of as many texts as LOGITS allows
            n = 1
            while n < len(texts) and sum(counts[: n + 1]) * V <= LOGITS:
                n += 1
            N = sum(counts[:n])
            logits = self.logits(h[first : first + N], head)
            z = filtered(logits, *self.filters)
            if self.temperature:
                each = zip(texts[:n], counts[:n], strict=True)
                noise = [torch.rand(k, V, dtype=torch.float64, generator=self.generators[i]) for i, k in each]
                token.append(draw(z, torch.cat(noise).to(self.device)))
            else:
                token.append(z.argmax(-1))
            if method:
                sure.append(certainty(logits, method, token[-1]))
            texts, counts, first = texts[n:], counts[n:], first + N
        return torch.cat(token), torch.cat(sure) if method else None

    def certainties(self, h: Tensor, head: Tensor, method: str) -> Tensor:
        """Return the certainty of each row of h (N, D), in passes of as many rows as LOGITS allows."""
        rows = max(1, LOGITS // len(head))
        return torch.cat([certainty(self.logits(h[i : i + rows], head), method) for i in range(0, len(h), rows)])
