"""One transformer for both objectives: pre-norm blocks whose attention is bidirectional or causal.

    x = x + attention(norm(x));  x = x + mlp(norm(x));  h = norm(x)

RMSNorm, rotary positions, SwiGLU, no biases, untied head: the published TDLM v1.2 architecture; GELU, learned
positions and a tied head are options. The model returns hidden states, never logits; the head is a weight that the
loss multiplies by.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .config import Model as Shape
from .kernels import add_rms_norm, attention, embedding, self_attention, swiglu
from .kernels.ops.foreach_cast import cast
from .kernels.ops.rms_norm import spread
from .kernels.ops.rotary import rotate
from .schema import BASE_LAYERS, BASE_WIDTH


@functools.cache
def resolved(device: torch.device, precision: str) -> str:
    """Return the precision of a config on a device, "bf16" or "fp32".

    "auto" is bf16, but fp32 on a CPU where PyTorch has no fast product of bf16: with AVX2 alone it takes some forty
    times as long as one of fp32.
    """
    if precision != "auto":
        return precision
    return "fp32" if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported() else "bf16"


def autocast(device: torch.device, precision: str):
    """Return a context in which products run in bf16 if the precision resolves to it; weights stay fp32."""
    bf16 = resolved(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def _narrowed(x: Tensor, layers: list[nn.Linear]) -> list:
    """Return the layers as functions. On a GPU under autocast their weights are cast by one kernel, not one each."""
    if not (x.is_cuda and torch.is_grad_enabled() and torch.is_autocast_enabled(x.device.type)):
        return layers
    weights = cast(torch.get_autocast_dtype(x.device.type), *(layer.weight for layer in layers))
    return [functools.partial(F.linear, weight=w) for w in weights]


class Block(nn.Module):
    """One pre-norm block: multi-head attention, then the MLP, each added to the residual stream.

    The next norm adds the MLP's output, so a block takes and returns (x, what is still to be added to it).
    """

    def __init__(self, shape: Shape, branch: float = 1.0):
        super().__init__()
        self.branch = branch  # factor of what is added to the residual stream
        self.heads, self.dropout, self.mlp, self.rope = shape.heads, shape.dropout, shape.mlp, shape.positions == "rope"
        width, gates = shape.width, 2 if shape.mlp == "swiglu" else 1
        inner = shape.inner or (3 if gates == 2 else 4) * width
        self.eps = shape.norm_eps
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=self.eps), nn.RMSNorm(width, eps=self.eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, gates * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(
        self, x: Tensor, a: Tensor | None, layers: list, norms: list[Tensor], causal: bool, valid: Tensor | None,
        cache: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """layers: linear_layers(self), as functions. norms: norm_weights(self), or what spread makes of them."""
        B, T, D = x.shape
        qkv, out, up, down = layers
        x, y = add_rms_norm(x, a, norms[0], self.eps, narrow=True)
        p = self.dropout if self.training else 0.0
        if cache is None:
            a = self_attention(qkv(y), self.heads, causal=causal, valid=valid, dropout_p=p, rope=self.rope)
        else:
            q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in qkv(y).chunk(3, -1))
            read = cache[0].shape[2] if cache else 0
            if self.rope:
                q, k = rotate(q, read), rotate(k, read)
            k, v = (torch.cat(pair, 2) for pair in zip(cache, (k, v), strict=True)) if read else (k, v)
            cache[:] = k, v
            if read:  # one token, which attends to all before it
                a = F.scaled_dot_product_attention(q, k, v)
            else:
                a = attention(q, k, v, causal=causal, valid=valid, dropout_p=p)
            a = a.transpose(1, 2).reshape(B, T, D)
        a = self._added(out(a))
        x, y = add_rms_norm(x, a, norms[1], self.eps, narrow=True)
        y = up(y)
        return x, self._added(down(F.gelu(y) if self.mlp == "gelu" else swiglu(y)))

    def _added(self, y: Tensor) -> Tensor:
        return y if self.branch == 1 else y * self.branch


def linear_layers(block) -> list[nn.Linear]:
    """Return the four linear layers of a block, in the order in which they run."""
    return [block.qkv, block.out, block.up, block.down]


def norm_weights(block) -> list[Tensor]:
    """Return the weights of the two norms of a block, in the order in which they run."""
    return [block.norm1.weight, block.norm2.weight]


class Model(nn.Module):
    """tokens (B, T) -> hidden states (B, T, D); `head` (V, D) holds no row for [MASK], the last embedding row.

    shape is the model section of a config. valid (B, T) is False at padding, to which no token attends. With tied=True
    head and embedding are one parameter. Raises ValueError where the width does not divide into heads (of even size
    for rope), an option is unknown, or the tokens are longer than a learned position table.

    transfer: with W = BASE_WIDTH and L = BASE_LAYERS, the initial weights of the blocks are divided by sqrt(D / W), the
    outputs that they add to the residual stream by layers / L, and h, and so the logits, by D / W (CompleteP, arXiv
    2505.01618).
    """

    def __init__(self, shape: Shape, *, vocab: int, seed: int = 42, transfer: bool = False):
        super().__init__()
        width, rope = shape.width, shape.positions == "rope"
        if shape.mlp not in ("swiglu", "gelu") or shape.positions not in ("rope", "learned"):
            raise ValueError(f"mlp is {shape.mlp!r} (swiglu, gelu), positions is {shape.positions!r} (rope, learned)")
        if width % ((1 + rope) * shape.heads):
            raise ValueError(f"width {width} must be a multiple of {'2 * ' * rope}heads = {(1 + rope) * shape.heads}")
        self.mask_token_id, self.tied = vocab, shape.tied
        self.embedding = nn.Embedding(vocab + 1, width)
        self.positions = None if rope else nn.Embedding(shape.seq_len, width)
        self.dropout = nn.Dropout(shape.dropout)
        wider = width / BASE_WIDTH if transfer else 1.0
        self.output = 1 / wider  # factor of h
        branch = BASE_LAYERS / shape.layers if transfer else 1.0
        self.blocks = nn.ModuleList(Block(shape, branch) for _ in range(shape.layers))
        self.eps = shape.norm_eps
        self.norm = nn.RMSNorm(width, eps=self.eps)
        if not shape.tied:
            self._head = nn.Parameter(torch.empty(vocab, width))
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02, generator=generator)
        if transfer:
            with torch.no_grad():
                for block in self.blocks:
                    for layer in linear_layers(block):
                        layer.weight.mul_(wider**-0.5)

    @property
    def head(self) -> Tensor:
        """(V, D): a row for each token that can be predicted."""
        return self.embedding.weight[: self.mask_token_id] if self.tied else self._head

    def count_by_part(self) -> dict[str, int]:
        """Return the number of parameters of each part; they add up to the total."""
        parts = {"embedding": self.embedding, "positions": self.positions, "blocks": self.blocks, "norm": self.norm}
        counts = {k: sum(p.numel() for p in m.parameters()) for k, m in parts.items() if m is not None}
        return counts | {"head": 0 if self.tied else self._head.numel()}

    def new_cache(self) -> list[list[Tensor]]:
        """Return an empty cache for forward: for each block a list [keys, values], each (B, H, T, K)."""
        return [[] for _ in self.blocks]

    def forward(
        self, tokens: Tensor, *, causal: bool, valid: Tensor | None = None, cache: list[list[Tensor]] | None = None
    ) -> Tensor:
        """Return hidden states (B, T, D). A cache stores keys and values; once filled, a call reads one more token."""
        T, read = tokens.shape[1], 0
        if cache is not None:
            read = cache[0][0].shape[2] if cache[0] else 0
            if not causal or valid is not None or self.training or (read and T != 1):
                raise ValueError("a cache needs causal=True, no padding, eval(), and one token a call after the first")
        x = embedding(tokens, self.embedding.weight)
        if self.positions is not None:
            end, table = read + T, self.positions.weight
            if end > len(table):
                raise ValueError(f"{end} tokens are more than the table of {len(table)} positions")
            x = x + table[read:end]
        x, a = self.dropout(x), None
        layers = _narrowed(x, [layer for block in self.blocks for layer in linear_layers(block)])
        norms = spread(x, [*(w for block in self.blocks for w in norm_weights(block)), self.norm.weight])
        for i, block in enumerate(self.blocks):
            own = layers[4 * i : 4 * i + 4], norms[2 * i : 2 * i + 2]
            x, a = block(x, a, *own, causal, valid, None if cache is None else cache[i])
        h = add_rms_norm(x, a, norms[-1], self.eps)[1]
        return h if self.output == 1 else h * self.output


def build_model(config: Config, tokenizer) -> Model:
    """Return the model of a config, initialised from its seed."""
    transfer = config.optim.transfer == "completep"
    return Model(config.model, vocab=tokenizer.vocab, seed=config.seed, transfer=transfer)
