"""Per op the shapes, inputs, work and traffic that tests and benchmarks loop over: a case is covered by being here."""

from typing import NamedTuple

import torch
from torch import Tensor


class Lce(NamedTuple):
    """A linear cross-entropy of h (N, D) with weight (V, D)."""

    name: str
    N: int
    D: int
    V: int
    valid_vocab: int | None = None
    n_rows: int | None = None
    scale: float = 1.0  # of the logits; at 1 their standard deviation is 0.3 sqrt(D)
    weights: str = "mixed"  # mixed: negative ones, and 0 and 1000 among them; or ones, zeros
    alike: bool = False  # one hidden state, one target
    rise: float = 0.0  # the largest logit moves all the way along the vocabulary

    @property
    def live(self) -> int:
        return self.N if self.n_rows is None else self.n_rows

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """h, weight, targets (N,) int64, token weights (N,) fp32, n_rows () int64 or None."""
        g = torch.Generator().manual_seed(self.N + self.D + self.V)
        h, w = torch.randn(self.N, self.D, generator=g), torch.randn(self.V, self.D, generator=g) * 0.3 * self.scale
        y = torch.randint(0, self.valid_vocab or self.V, (self.N,), generator=g)
        weights = torch.randn(self.N, generator=g)
        weights[1::5], weights[::3] = 1000, 0
        if self.weights != "mixed":
            weights = torch.full((self.N,), float(self.weights == "ones"))
        if self.rise:
            h, w = h.abs(), w.abs() * torch.linspace(0, self.rise, self.V)[:, None]
        if self.alike:
            h, y = h[:1].expand_as(h).clone(), y[:1].expand_as(y).clone()
        n_rows = None if self.n_rows is None else torch.tensor(self.n_rows, device=device)
        return h.to(device, dtype), w.to(device, dtype), y.to(device), weights.to(device), n_rows

    products = 3  # z, dh and dw; a form that does not keep the logits makes z twice

    @property
    def flop(self) -> int:
        """Of one product."""
        return 2 * self.live * self.D * self.V

    def bytes(self, itemsize: int) -> int:
        """Inputs read and gradients written, once."""
        return 2 * (self.live + self.V) * self.D * itemsize + 12 * self.live

    def __str__(self) -> str:
        return self.name


LCE = (
    Lce("odd", 507, 80, 131),
    Lce("odd width", 29, 33, 259),
    Lce("one row", 1, 64, 1000),
    Lce("one word", 5, 16, 1),
    Lce("three words", 13, 16, 3),
    Lce("wide", 70, 96, 515, valid_vocab=500),
    Lce("some rows", 100, 64, 301, n_rows=61),
    Lce("the widest of the fused form", 70, 512, 333),
    Lce("several chunks", 300, 40, 131, n_rows=170),
    Lce("no rows", 9, 16, 50, n_rows=0),
    Lce("more rows than there are", 9, 16, 50, n_rows=12),
    Lce("empty", 0, 16, 50),
    Lce("extreme logits", 40, 64, 300, scale=60.0),
    Lce("all alike", 70, 32, 200, alike=True, weights="ones"),
    Lce("no weight", 33, 32, 100, weights="zeros"),
    Lce("odd, whole vocabulary", 507, 80, 50257, valid_vocab=50256),
    Lce("wide, whole vocabulary", 507, 768, 50257, valid_vocab=50256, n_rows=300),
)


def _sweep(name: str, N: int, D: int, **more) -> Lce:
    return Lce(name, N, D, 50257, scale=1 / D**0.5, weights="ones", **more)


LCE_BENCH = (
    _sweep("tiny", 8192, 64),
    _sweep("tiny, masked half", 8192, 64, n_rows=4096),
    _sweep("small", 8192, 768),
    _sweep("small, masked half", 8192, 768, n_rows=4096),
    *(_sweep(f"D {D}", 8192, D) for D in (128, 256, 512, 1024, 2048, 4096)),
    *(_sweep(f"N {N}", N, 64) for N in (512, 2048, 32768)),
)
LCE_BENCH_CPU = LCE_BENCH[:2]


class Corrupt(NamedTuple):
    """A corruption of x0 (B, T)."""

    name: str
    B: int
    T: int
    padding: float = 0.0  # share of positions that are padding
    row_offset: int = 0
    batch_rows: int | None = None

    products = flop = 0

    def inputs(self, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
        """x0 (B, T) int64, valid (B, T) bool or None."""
        g = torch.Generator().manual_seed(self.B + self.T)
        x0 = torch.randint(0, 50257, (self.B, self.T), generator=g).to(device)
        valid = torch.rand(self.B, self.T, generator=g) >= self.padding
        return x0, valid.to(device) if self.padding else None

    def bytes(self) -> int:
        """x0 read; xt, masked, weights, rows, targets and row weights written."""
        return self.B * self.T * (8 + 8 + 1 + 4 + 8 + 8 + 4)

    def __str__(self) -> str:
        return self.name


CORRUPT = (
    Corrupt("one token", 1, 1),
    Corrupt("one row", 1, 128),
    Corrupt("odd", 7, 33),
    Corrupt("part of a batch", 4, 21, row_offset=4, batch_rows=12),
    Corrupt("padding", 6, 50, padding=0.3),
    Corrupt("all padding", 3, 20, padding=1.0),
    Corrupt("tiny", 64, 128),
    Corrupt("small", 8, 1024),
)


class Attention(NamedTuple):
    """Attention of q, k, v (B, H, T, K)."""

    name: str
    B: int
    H: int
    T: int
    K: int
    causal: bool = False
    padding: float = 0.0  # share of positions that are padding, at the end of their sequence

    products = 6  # q k^T, p v; and dv, dp, dq, dk

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[list[Tensor], Tensor, Tensor | None]:
        """[q, k, v] with the model's strides, dout (B, H, T, K), valid (B, T) bool or None."""
        B, H, T, K = self.B, self.H, self.T, self.K
        g = torch.Generator().manual_seed(T + K)
        qkv = torch.randn(B, T, 3, H, K, generator=g).to(device, dtype).permute(2, 0, 3, 1, 4)
        dout = torch.randn(B, T, H, K, generator=g).to(device, dtype).transpose(1, 2)
        stored = (torch.rand(B, 1, generator=g) * 2 * self.padding * T).long()
        valid = torch.arange(T) < T - stored
        return [a.detach() for a in qkv], dout, valid.to(device) if self.padding else None

    @property
    def flop(self) -> int:
        """Of one product over all pairs of tokens, or those that a causal model sees."""
        pairs = self.T * (self.T + 1) // 2 if self.causal else self.T * self.T
        return 2 * self.B * self.H * pairs * self.K

    def bytes(self, itemsize: int) -> int:
        """Forward: q, k, v read, out written; backward: q, k, v, dout read, dq, dk, dv written."""
        return 11 * self.B * self.H * self.T * self.K * itemsize

    def __str__(self) -> str:
        return self.name


ATTENTION_BENCH = (
    Attention("tiny", 64, 4, 128, 16),
    Attention("tiny, causal", 64, 4, 128, 16, causal=True),
    Attention("tiny, padding", 64, 4, 128, 16, padding=0.3),
    Attention("small", 32, 8, 256, 32),
)


class Norm(NamedTuple):
    """An RMSNorm of x (N, D), or of x + a."""

    name: str
    N: int
    D: int
    add: bool = False
    scale: float = 1.0

    products = flop = 0

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
        """[x, weight] or [x, weight, a], and the gradients [dy] or [dy, ds], all but weight (N, D)."""
        g = torch.Generator().manual_seed(self.N + self.D)
        x, a, dy, ds = (torch.randn(self.N, self.D, generator=g).to(device, dtype) for _ in range(4))
        x, weight = x * self.scale, torch.randn(self.D, generator=g).to(device, dtype)
        return ([x, weight, a], [dy, ds]) if self.add else ([x, weight], [dy])

    def bytes(self, itemsize: int) -> int:
        """Forward: x (and a) read, y (and s) written; backward: dy, x (and ds) read, dx written."""
        return (8 if self.add else 5) * self.N * self.D * itemsize

    def __str__(self) -> str:
        return self.name


NORM = (
    Norm("one row", 1, 16),
    Norm("odd", 37, 33),
    Norm("odd, added", 29, 80, add=True),
    Norm("small values", 20, 48, scale=1e-3),
    Norm("large values, added", 20, 48, add=True, scale=30.0),
    Norm("many programs", 2500, 130, add=True),
    Norm("a row a program", 5, 1500, add=True),
    Norm("too wide", 2, 4100, add=True),
)
NORM_BENCH = (
    Norm("tiny", 8192, 64),
    Norm("tiny, added", 8192, 64, add=True),
    Norm("small, added", 8192, 768, add=True),
    Norm("wide, added", 8192, 4096, add=True),
)


class Gate(NamedTuple):
    """A SwiGLU of x (N, 2 D)."""

    name: str
    N: int
    D: int
    scale: float = 1.0

    products = flop = 0

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """x (N, 2 D) and dy (N, D)."""
        g = torch.Generator().manual_seed(self.N + self.D)
        x, dy = torch.randn(self.N, 2 * self.D, generator=g) * self.scale, torch.randn(self.N, self.D, generator=g)
        return x.to(device, dtype), dy.to(device, dtype)

    def bytes(self, itemsize: int) -> int:
        """Forward: x read, y written; backward: dy, x read, dx written."""
        return 8 * self.N * self.D * itemsize

    def __str__(self) -> str:
        return self.name


GATE = (
    Gate("one row", 1, 16),
    Gate("odd", 37, 23),
    Gate("tiny's width", 33, 192),
    Gate("large values", 20, 40, scale=60.0),
    Gate("two tiles a row", 3, 1100),
)
GATE_BENCH = (Gate("tiny", 8192, 192), Gate("small", 8192, 2304), Gate("wide", 8192, 11008))


class Embed(NamedTuple):
    """The rows of a table w (V, D) that N tokens name; a share of them is one token, as [MASK] is."""

    name: str
    N: int
    D: int
    V: int
    masked: float

    products = flop = 0

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """tokens (N,) int64, w (V, D), dx (N, D)."""
        g = torch.Generator().manual_seed(self.N + self.D)
        tokens = torch.randint(0, self.V - 1, (self.N,), generator=g)
        tokens[torch.rand(self.N, generator=g) < self.masked] = self.V - 1
        w, dx = torch.randn(self.V, self.D, generator=g), torch.randn(self.N, self.D, generator=g)
        return tokens.to(device), w.to(device, dtype), dx.to(device, dtype)

    def bytes(self, itemsize: int) -> int:
        """Forward: tokens and their rows read, rows written; backward: tokens and dx read, dw written, V rows of it."""
        return 16 * self.N + (3 * self.N + self.V) * self.D * itemsize

    def __str__(self) -> str:
        return self.name


EMBED_BENCH = (
    Embed("tiny, half masked", 8192, 64, 50258, 0.5),
    Embed("tiny, none masked", 8192, 64, 50258, 0.0),
    Embed("small, half masked", 8192, 768, 50258, 0.5),
)


class Update(NamedTuple):
    """Clip and AdamW of a model's parameters: matrices (rows, D) that decay, and one table and norms that do not."""

    name: str
    D: int
    layers: int
    inner: int
    V: int = 50257

    products = flop = 0

    def shapes(self) -> list[tuple[int, ...]]:
        D, inner = self.D, self.inner
        block = [(D,), (3 * D, D), (D, D), (D,), (2 * inner, D), (D, inner)]
        return [(self.V + 1, D), *block * self.layers, (D,), (self.V, D)]

    def bytes(self) -> int:
        """Gradients read for their norm; gradients, weights and both moments read, all but gradients written; fp32."""
        return 8 * 4 * sum(torch.Size(s).numel() for s in self.shapes())

    def __str__(self) -> str:
        return self.name


UPDATE_BENCH = (Update("tiny", 64, 2, 192), Update("small", 768, 12, 2304))
