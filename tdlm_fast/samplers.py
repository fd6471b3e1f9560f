"""Samplers: masked diffusion in S steps, next-token with a key-value cache, many texts at once.

After step s a share m_s = m(1 - s/S) of the new tokens is masked: linear 1 - s/S, cosine cos^2(pi s / 2S) (Zhang & Syed
2025), cosine-maskgit cos(pi s / 2S) (Chang et al. 2022). Which tokens a step writes, from m_t to m_s masked:

    ancestral   each masked token on its own with probability 1 - m_s / m_t (Sahoo et al. 2024; Austin et al. 2021)
    random      the scheduled number of them, a uniformly random subset (the random remasking of Nie et al. 2025)
    confidence  the scheduled number, first those whose drawn token the model gives the highest probability (Chang et
                al. 2022; the low-confidence remasking of Nie et al. 2025)
    top         … whose most probable token has the highest probability: the order that orders.confidence scores
    margin      … whose two most probable tokens are furthest apart in probability (Kim et al. 2025)
    entropy     … whose prediction has the lowest entropy

remask, with ancestral, is ReMDM-cap (Wang et al. 2025, arXiv 2503.00307): a written token is masked again with
probability sigma = min(eta, m_s / (1 - m_t)) and a masked one written with (m_t - m_s + sigma (1 - m_t)) / m_t, so
that a token is masked after step s with probability m_s as without it (their Theorem 3.1).

The certainty of confidence, top, margin and entropy is that of the whole distribution at temperature 1, whatever
temperature, top-k and top-p the tokens are drawn with: sharpened to one token all places would be equally certain.
Draws are Gumbel noise in fp64 on the logits over the temperature: fp32 lowers the effective temperature (Zheng et al.,
arXiv 2409.02908). Text i has a generator of its own, so it does not depend on the texts beside it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels.schedules import mask_probability
from .orders import TIE

COUNTED = ("random", "confidence", "top", "margin", "entropy")
METHODS = ("ancestral", *COUNTED)
UNMASKING = ("linear", "cosine", "cosine-maskgit")
LOGITS = 1 << 24  # logits in memory at once (fp64 with a copy or two), or those of one text


@dataclass(frozen=True)
class Generated:
    ids: Tensor  # (number, tokens) int64, the new tokens
    evaluations: int  # forward passes of the network
    rows: int  # texts in them, added up: a text that a step does not change takes no part in it


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


def masked_counts(tokens: int, steps: int, unmasking: str) -> list[int]:
    """Tokens still masked after each step: round(m(1 - s/S) tokens), but every step writes at least one."""
    left, counts = tokens, []
    for s in range(1, steps + 1):
        left = max(min(round(tokens * _share(s, steps, unmasking)), left - 1), steps - s)
        counts.append(left)
    return counts


def _share(s: int, steps: int, unmasking: str) -> float:
    return float(mask_probability(torch.tensor(1 - s / steps, dtype=torch.float64), unmasking))


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


def best_places(value: Tensor, k: int) -> Tensor:
    """(B, T) bool, the k largest of value (B, T) a row; of equals (TIE) the leftmost, so that rounding decides less."""
    value, chosen = value.clone(), torch.zeros_like(value, dtype=torch.bool)
    row = torch.arange(len(value), device=value.device)
    for _ in range(k):
        pick = (value >= value.amax(1, keepdim=True) - TIE).int().argmax(1)
        chosen[row, pick] = True
        value[row, pick] = -torch.inf
    return chosen


class _Draws:
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


def _fill(model, x: Tensor, draws: _Draws, first: int, tokens: int, *, steps, method, unmasking, remask, tell) -> tuple:
    """Write x[:, first : first + tokens], all masked, in place, in `steps` steps: (evaluations, rows)."""
    span, mask = slice(first, first + tokens), model.mask_token_id
    counts = masked_counts(tokens, steps, unmasking) if method in COUNTED else None
    calls = rows = 0
    for s in range(1, steps + 1):
        masked, again = x == mask, None
        masked[:, :first] = masked[:, first + tokens :] = False
        chosen = torch.zeros_like(masked)
        if method == "ancestral":
            mt, ms = _share(s - 1, steps, unmasking), _share(s, steps, unmasking)
            sigma = min(remask, ms / (1 - mt)) if mt < 1 else 0.0
            u = draws.uniform(tokens)
            chosen[:, span] = masked[:, span] & (u < (mt - ms + sigma * (1 - mt)) / mt)
            again = ~masked[:, span] & (u < sigma)
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
                    drawn, value[masked] = draws.tokens(
                        h[masked], model.head, texts, masked.sum(1).tolist(), method
                    )  # fmt: skip
                    chosen = best_places(value, k)
                    x[chosen] = drawn[chosen[masked]]
                else:
                    value[masked] = draws.certainties(h[masked], model.head, method)
                    chosen = best_places(value, k)
                    x[chosen], _ = draws.tokens(h[chosen], model.head, texts, [k] * len(texts))
        if again is not None:
            x[:, span][again] = mask
        tell(x)
    return calls, rows


def window_start(n: int, seq_len: int) -> int:
    """The first of n tokens that the model reads: a window of seq_len that moves on by a quarter when it is full.

    So from 3/4 seq_len to seq_len tokens are read, and the cache is filled anew once in seq_len / 4 tokens.
    """
    hop = max(1, seq_len // 4)
    return max(0, -(-(n - seq_len) // hop)) * hop


def _continue(model, x: Tensor, draws: _Draws, tokens: int, *, seq_len: int, start_token_id: int, tell) -> tuple:
    """Append `tokens` tokens to x (B, n), one after the other: (x, evaluations, rows)."""
    number = len(x)
    ids = torch.cat([x.new_full((number, 1), start_token_id), x], 1)
    texts, cache, start = list(range(number)), None, 0
    for _ in range(tokens):
        if cache is None or window_start(ids.shape[1], seq_len) != start:
            cache, start = model.new_cache(), window_start(ids.shape[1], seq_len)
            new = ids[:, start:]
        h = model(new, causal=True, cache=cache)[:, -1]
        new = draws.tokens(h, model.head, texts, [1] * number)[0][:, None]
        ids = torch.cat([ids, new], 1)
        tell(ids[:, 1:])
    return ids[:, 1:], tokens, tokens * number


@torch.no_grad()
def generate_batch(
    model, objective: str, prefix: list[int], suffix: list[int], *, tokens: int, seq_len: int, start_token_id: int,
    number: int = 1, steps: int = 0, method: str = "ancestral", unmasking: str = "linear", block: int = 0,
    remask: float = 0.0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, tell=None,
    forbidden: int | None = None,
) -> Generated:  # fmt: skip
    """`number` texts of `tokens` new ids after prefix and before suffix; text i is what seed + i alone gives.

    steps 0 is one a token. block > 0 writes blocks of that many tokens from left to right, each in its share of the
    steps (Nie et al. 2025). tell(x) is called after every step with x (number, n), masks included. forbidden is a token
    that is never written, as [MASK] never is: the others share its probability.
    Raises ValueError where the parts do not fit the model or each other.
    """
    if objective == "autoregressive" and suffix:
        raise ValueError("an autoregressive model cannot write before a suffix; train objective=diffusion for that")
    if len(prefix) + tokens + len(suffix) > seq_len and objective == "diffusion":
        total = f"{len(prefix)} + {tokens} + {len(suffix)}"
        raise ValueError(f"prompt, tokens and suffix are {total} tokens; model.seq_len is {seq_len}")
    if method not in METHODS or unmasking not in UNMASKING:
        known = f"{', '.join(METHODS)}; {', '.join(UNMASKING)}"
        raise ValueError(f"method is {method!r} and unmasking {unmasking!r}; known are {known}")
    if remask and (method != "ancestral" or not 0 < remask <= 1):
        raise ValueError(f"remask is {remask} and method {method}; it must lie in 0 < remask <= 1, with ancestral")
    if block and tokens % block:
        raise ValueError(f"block {block} does not divide the {tokens} new tokens")
    blocks = tokens // block if block else 1
    steps = steps or tokens
    if steps % blocks:
        raise ValueError(f"steps {steps} must be a multiple of the {blocks} blocks ({tokens} tokens / block {block})")
    steps, tell = steps // blocks, tell or (lambda x: None)
    if method in COUNTED:
        steps = min(steps, tokens // blocks)
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    draws = _Draws(number, seed, device, temperature, top_k, top_p, forbidden)
    try:
        if objective == "autoregressive":
            x = torch.tensor([prefix] * number, dtype=torch.int64, device=device)
            kw = dict(seq_len=seq_len, start_token_id=start_token_id)
            x, *cost = _continue(model, x, draws, tokens, **kw, tell=tell)
        else:
            row = [*prefix, *[model.mask_token_id] * tokens, *suffix]
            x, cost = torch.tensor([row] * number, device=device), [0, 0]
            for i in range(blocks):
                size = tokens // blocks
                more = _fill(
                    model, x, draws, len(prefix) + i * size, size, steps=steps, method=method, unmasking=unmasking,
                    remask=remask, tell=tell,
                )  # fmt: skip
                cost = [a + b for a, b in zip(cost, more, strict=True)]
    finally:
        model.train(was_training)
    return Generated(x[:, len(prefix) : len(prefix) + tokens], *cost)


def generate_ids(model, objective: str, prefix: list[int], suffix: list[int], **kw) -> list[int]:
    """The new ids of one text; keywords as in generate_batch."""
    return generate_batch(model, objective, prefix, suffix, number=1, **kw).ids[0].tolist()
