"""One transformer for both objectives: pre-norm blocks whose attention is bidirectional or causal.

    x = x + attention(norm(x));  x = x + mlp(norm(x));  h = norm(x)

RMSNorm, rotary positions, SwiGLU, no biases, untied head: the published TDLM v1.2 architecture. The model returns
hidden states, never logits; the head is a weight that the loss multiplies by.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotate(x: Tensor) -> Tensor:  # (B, H, T, K)
    """Rotary position embedding (Su 2021): pairs (i, i + K/2) turned by position * 10000^(-2i/K)."""
    T, half = x.shape[-2], x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(T, device=x.device)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.split(half, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    """One pre-norm block: multi-head attention, then SwiGLU, each added to the residual stream."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, causal: bool, keep: Tensor | None) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(
            rotate(q), rotate(k), v, attn_mask=keep, is_causal=causal and keep is None, dropout_p=p
        )
        x = x + self.out(a.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    """tokens (B, T) -> hidden states (B, T, D); `head` (V, D) holds no row for [MASK], the last embedding row.

    valid (B, T) marks what is no padding, which no token attends to. Raises ValueError where width does not
    divide into heads of even size.
    """

    def __init__(
        self, *, vocab: int, width: int, layers: int, heads: int, inner: int, dropout: float = 0.1, seed: int = 42
    ):
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of 2 * heads = {2 * heads}")
        self.mask_token_id = vocab
        self.embedding = nn.Embedding(vocab + 1, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, inner, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Parameter(torch.empty(vocab, width))
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02, generator=generator)

    def forward(self, tokens: Tensor, *, causal: bool, valid: Tensor | None = None) -> Tensor:
        keep = None
        if valid is not None:
            T = tokens.shape[1]
            own = torch.eye(T, dtype=torch.bool, device=tokens.device)  # no row is empty
            keep = (valid[:, None, None, :] | own)
            if causal:
                keep = keep & torch.ones_like(own).tril()
        x = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, causal, keep)
        return self.norm(x)
