"""Write texts with a trained model: masked diffusion in S steps, or autoregressive with a key-value cache.

After step s a share m_s = m(1 - s/S) of the new tokens is masked: linear 1 - s/S, cosine cos^2(pi s / 2S) (Zhang & Syed
2025), cosine-maskgit cos(pi s / 2S) (Chang et al. 2022). A step brings the share from m_t to m_s; the method chooses
which tokens it writes:

    ancestral   each masked token by itself with probability 1 - m_s / m_t (Sahoo et al. 2024; Austin et al. 2021)
    random      the scheduled number of them, a uniformly random subset (the random remasking of Nie et al. 2025)
    confidence  the scheduled number, first those whose drawn token has the highest probability under the model (Chang
                et al. 2022; the low-confidence remasking of Nie et al. 2025)
    top         … whose most probable token has the highest probability: scored by exact_likelihood.confidence
    margin      … whose two most probable tokens are furthest apart in probability (Kim et al. 2025)
    entropy     … whose prediction has the lowest entropy

remask, with ancestral, is ReMDM-cap (Wang et al. 2025, arXiv 2503.00307): a written token is masked again with
probability sigma = min(eta, m_s / (1 - m_t)), and a masked one is written with (m_t - m_s + sigma (1 - m_t)) / m_t. A
token is then masked after step s with probability m_s, as without remasking (their Theorem 3.1).

The certainty of confidence, top, margin and entropy is computed from the whole distribution at temperature 1, whatever
temperature, top-k and top-p the tokens are drawn with: sharpened to one token, all places would be equally certain.
Draws add Gumbel noise in fp64 to the logits over the temperature, because fp32 lowers the effective temperature (Zheng
et al., arXiv 2409.02908). Each text has its own random generator, so it does not depend on the texts beside it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ConfigError
from ..runs.device import available_bytes
from .autoregressive import continue_texts
from .diffusion import fill
from .draws import Draws
from .options import SamplerOptions

GENERATOR = 5056  # bytes of the state of a text's random generator


@dataclass(frozen=True)
class Generated:
    ids: Tensor  # (number, tokens) int64, the new tokens
    evaluations: int  # forward passes of the network
    rows: int  # texts in those passes, added up: a text that a step does not change is left out of its pass


def check_room(model, objective: str, length: int, number: int, seq_len: int) -> None:
    """Raise ConfigError where `number` texts of `length` tokens cannot be in memory together, naming how many can.

    Counted is what is stored in any case: the tokens, a generator, one layer's hidden states, and an autoregressive
    model's keys and values.
    """
    width, device = model.head.shape[1], next(model.parameters()).device
    read, layers = min(length, seq_len), 2 * len(model.blocks) if objective == "autoregressive" else 0
    each, free = 16 * length + GENERATOR + 4 * read * width * (1 + layers), available_bytes(device)
    if free is not None and each * number > free:
        needed = f"{number:,} texts of {length:,} tokens take {each * number / 1e9:,.1f} GB of memory or more"
        fix = f"the largest number that fits is {free // each:,}" if free >= each else "lower --tokens"
        raise ConfigError(f"--number: {needed}, and {free / 1e9:,.1f} GB are free on {device}; {fix}")


@torch.no_grad()
def generate_batch(
    model, objective: str, prefix: list[int], suffix: list[int], options: SamplerOptions, *, seq_len: int,
    start_token_id: int, forbidden: int | None = None, on_step=None,
) -> Generated:  # fmt: skip
    """Write new ids after prefix and before suffix, in texts that do not depend on each other.

    With a block size, blocks are written from left to right, each in its share of the steps (Nie et al. 2025).
    on_step(x) is called after every step with x (number, n), masks included. forbidden is a token that is never
    written, like [MASK]; the others share its probability. Raises ValueError where the parts do not fit the model.
    """
    tokens, number = options.tokens, options.number
    if objective == "autoregressive" and suffix:
        raise ValueError("an autoregressive model cannot write before a suffix; train objective=diffusion for that")
    if len(prefix) + tokens + len(suffix) > seq_len and objective == "diffusion":
        total = f"{len(prefix)} + {tokens} + {len(suffix)}"
        raise ValueError(f"prompt, tokens and suffix are {total} tokens; model.seq_len is {seq_len}")
    on_step = on_step or (lambda x: None)
    was_training, device = model.training, next(model.parameters()).device
    draws = Draws(options, device, forbidden)
    model.eval()
    try:
        if objective == "autoregressive":
            x = torch.tensor([prefix] * number, dtype=torch.int64, device=device)
            x, *cost = continue_texts(
                model, x, draws, tokens, seq_len=seq_len, start_token_id=start_token_id, on_step=on_step
            )
        else:
            row = [*prefix, *[model.mask_token_id] * tokens, *suffix]
            x, cost, size = torch.tensor([row] * number, device=device), [0, 0], tokens // options.blocks
            for first in range(len(prefix), len(prefix) + tokens, size):
                more = fill(model, x, draws, first, size, options, on_step)
                cost = [a + b for a, b in zip(cost, more, strict=True)]
    finally:
        model.train(was_training)
    return Generated(x[:, len(prefix) : len(prefix) + tokens], *cost)


def generate(model, tokenizer, config, **options) -> str:
    """Return a text written after no prompt; options are those of SamplerOptions. The start token is never written."""
    written = generate_batch(
        model, config.objective, [], [], SamplerOptions(**options), seq_len=config.model.seq_len,
        start_token_id=tokenizer.start_token_id, forbidden=tokenizer.start_token_id,
    )  # fmt: skip
    return tokenizer.decode(written.ids[0].tolist())
