"""Write autoregressive text with a key-value cache and a window that moves by quarters of its length."""

import torch
from torch import Tensor

from .draws import Draws


def window_start(n: int, seq_len: int) -> int:
    """Return the first of n tokens that the model reads: a window of seq_len that moves by a quarter when it is full.

    So from 3/4 seq_len to seq_len tokens are read, and the cache is filled again once in seq_len / 4 tokens.
    """
    hop = max(1, seq_len // 4)
    return max(0, -(-(n - seq_len) // hop)) * hop


def continue_texts(model, x: Tensor, draws: Draws, tokens: int, *, seq_len: int, start_token_id: int, on_step) -> tuple:
    """Append `tokens` tokens to x (B, n), one after the other; return (x, evaluations, rows)."""
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
        on_step(ids[:, 1:])
    return ids[:, 1:], tokens, tokens * number
