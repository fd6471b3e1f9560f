"""Samplers: masked diffusion in S steps, next-token with a key-value cache, many texts at once.

After step s a share m_s = m(1 - s/S) of the new tokens is masked: linear 1 - s/S, cosine cos^2(pi s / 2S) (Zhang & Syed
2025), cosine-maskgit cos(pi s / 2S) (Chang et al. 2022). Which tokens a step writes, from m_t to m_s masked:

    ancestral   each masked token on its own with probability 1 - m_s / m_t (Sahoo et al. 2024; Austin et al. 2021)
    random      the scheduled number of them, a uniformly random subset (the random remasking of Nie et al. 2025)
    confidence  the scheduled number, first those whose drawn token the model gives the highest probability (Chang et
                al. 2022; the low-confidence remasking of Nie et al. 2025)
    top         … whose most probable token has the highest probability: scored by exact_likelihood.confidence
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

from .autoregressive import continue_texts
from .diffusion import fill
from .draws import Draws
from .options import COUNTED, METHODS, UNMASKING


@dataclass(frozen=True)
class Generated:
    ids: Tensor  # (number, tokens) int64, the new tokens
    evaluations: int  # forward passes of the network
    rows: int  # texts in them, added up: a text that a step does not change takes no part in it


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
    draws = Draws(number, seed, device, temperature, top_k, top_p, forbidden)
    try:
        if objective == "autoregressive":
            x = torch.tensor([prefix] * number, dtype=torch.int64, device=device)
            kw = dict(seq_len=seq_len, start_token_id=start_token_id)
            x, *cost = continue_texts(model, x, draws, tokens, **kw, tell=tell)
        else:
            row = [*prefix, *[model.mask_token_id] * tokens, *suffix]
            x, cost = torch.tensor([row] * number, device=device), [0, 0]
            for i in range(blocks):
                size = tokens // blocks
                more = fill(
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


pass  # REMOVED


def generate(model, tokenizer, config, prompt: str, suffix: str = "", **kw) -> str:
    """prompt + new text + suffix; keywords as in generate_batch. The start token, never in a text, is not written."""
    before, after = tokenizer.encode(prompt), tokenizer.encode(suffix)
    new = generate_ids(
        model, config.objective, before, after, seq_len=config.model.seq_len,
        start_token_id=tokenizer.start_token_id, forbidden=tokenizer.start_token_id, **kw,
    )  # fmt: skip
    return prompt + tokenizer.decode(new) + suffix
