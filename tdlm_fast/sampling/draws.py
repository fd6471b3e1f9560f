"""Tokens from logits: temperature, top-k, top-p and Gumbel noise, one generator a text."""

import torch
from torch import Tensor

LOGITS = 1 << 24  # logits in memory at once (fp64 with a copy or two), or those of one text


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """logits (N, V) over temperature, -inf outside the top_k (0: all) and the nucleus of mass top_p; fp64."""
    z = logits.double() / max(temperature, 1e-6)
    if 0 < top_k < z.shape[-1]:
        z = z.masked_fill(z < z.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        values, order = z.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        z = torch.full_like(z, -torch.inf).scatter(1, order, values.masked_fill(before >= top_p, -torch.inf))
    return z


def draw(z: Tensor, u: Tensor) -> Tensor:
    """argmax(z - log(-log u)): a token (N,) of softmax(z), z (N, V) and u (N, V) uniform in [0, 1), both fp64."""
    return (z - torch.log(-torch.log(u.clamp(1e-300, 1 - 1e-16)))).argmax(-1)


def certainty(logits: Tensor, method: str, token: Tensor | None = None) -> Tensor:
    """(N,) fp64 by which a method prefers a place, from logits (N, V) at temperature 1; token (N,) for confidence."""
    log_p = logits.double().log_softmax(-1)
    if method == "confidence":
        return log_p.gather(1, token[:, None])[:, 0]
    if method == "top":
        return log_p.amax(-1)
    if method == "margin":
        best = log_p.topk(2).values.exp()
        return best[:, 0] - best[:, 1]
    return (log_p.exp() * log_p).nan_to_num().sum(-1)  # minus the entropy; 0 log 0 = 0


class Draws:
    """A generator a text, and the filters of the logits."""

    def __init__(self, number: int, seed: int, device, temperature: float, top_k: int, top_p: float, forbidden=None):
        self.generators = [torch.Generator().manual_seed(seed + i) for i in range(number)]
        self.device, self.temperature, self.filters = device, temperature, (temperature, top_k, top_p)
        self.forbidden = forbidden

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """(N, V) of h (N, D), -inf at the forbidden token."""
        logits = h @ head.T
        if self.forbidden is not None:
            logits[:, self.forbidden] = -torch.inf
        return logits

    def uniform(self, width: int, texts: list[int] | None = None) -> Tensor:
        """(texts, width) fp64 in [0, 1), each row from its text's generator."""
        generators = self.generators if texts is None else [self.generators[i] for i in texts]
        return torch.stack([torch.rand(width, dtype=torch.float64, generator=g) for g in generators]).to(self.device)

    def tokens(self, h: Tensor, head: Tensor, texts: list[int], counts: list[int], method: str = "") -> tuple:
        """Of h (N, D), counts[j] rows of text texts[j]: a token of each, and its certainty if a method is given."""
        token, sure, first, V = [], [], 0, len(head)
        while texts:  # as many texts at once as LOGITS allows
            n = 1
            while n < len(texts) and sum(counts[: n + 1]) * V <= LOGITS:
                n += 1
            N = sum(counts[:n])
            logits = self.logits(h[first : first + N], head)
            z = filtered(logits, *self.filters)
            if self.temperature:
                noise = [
                    torch.rand(k, V, dtype=torch.float64, generator=self.generators[i])
                    for i, k in zip(texts[:n], counts[:n], strict=True)
                ]
                token.append(draw(z, torch.cat(noise).to(self.device)))
            else:
                token.append(z.argmax(-1))
            if method:
                sure.append(certainty(logits, method, token[-1]))
            texts, counts, first = texts[n:], counts[n:], first + N
        return torch.cat(token), torch.cat(sure) if method else None

    def certainties(self, h: Tensor, head: Tensor, method: str) -> Tensor:
        """certainty of h (N, D), as many rows at once as LOGITS allows."""
        rows = max(1, LOGITS // len(head))
        return torch.cat([certainty(self.logits(h[i : i + rows], head), method) for i in range(0, len(h), rows)])
