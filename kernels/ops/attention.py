"""Attention of both objectives behind one signature: flash-attn, PyTorch's own, or one tile for each head.

    P = softmax(q k^T / sqrt(K) + mask),  out = (P * keep / (1 - p)) v
    dv = (P * keep / (1 - p))^T do,  dP = do v^T * keep / (1 - p),  dS = P * (dP - rowsum(P * dP))
    dq = dS k / sqrt(K),  dk = dS^T q / sqrt(K)

Padded keys and keys of other documents are masked. A token always sees itself, so no row is empty. With T up to 128
the (T, T) score tile of a head fits one Triton program (Dao et al. 2022 with a single block). Only q, k, v are kept for
the backward pass, which recomputes the tile and writes dq, dk, dv in one launch, without atomics. Scores, softmax and
sums are fp32; products and results have the inputs' dtype. dq, dk, dv lie side by side, as the projection that made
q, k, v reads its gradient.

Dropout keeps an entry where its Philox word reaches a threshold, (word >> 1) >= round(p 2^31), so both passes draw the
same bits. The word of entry (b, h, i, j) is word j % 4 of counter ((b H + h) T + i) ceil(T / 4) + j // 4.
"""

import contextlib
import functools
import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import hardware
from ..dispatch import chosen, differentiate, first_only, op, reference, server
from ..philox import UINT32_MASK, philox4x32
from .rotary import empty_rows_first, rotate, rotate_both

TILE_T, TILE_K = 128, 64
TILE = 128 * 32  # entries of q: a larger tile's backward pass spills registers on sm_86


def _keep(T: int, causal: bool, valid: Tensor | None, segments: Tensor | None, device) -> Tensor | None:
    """Return (B, 1, T, T) bool, True where query i sees key j; None where every query sees all keys (or all before)."""
    if valid is None and segments is None:
        return None
    own = torch.eye(T, dtype=torch.bool, device=device)  # no row is empty
    keep = True
    if valid is not None:
        keep = valid[:, None, None, :]
    if segments is not None:
        keep = keep & (segments[:, None, :, None] == segments[:, None, None, :])
    keep = keep | own
    return keep & torch.ones_like(own).tril() if causal else keep


def dropped_words(B: int, H: int, T: int, key: Tensor) -> Tensor:
    """Return the Philox word of every entry of the scores: (B, H, T, T) int64 in [0, 2^32). key: (2,) int64 words."""
    groups = -(-T // 4)
    counter = torch.arange(B * H * T * groups, device=key.device).view(B, H, T, groups)
    zero = torch.zeros_like(counter)
    words = philox4x32((counter & UINT32_MASK, zero, zero, zero), (key[0], key[1]))
    return torch.stack(words, -1).flatten(-2)[..., :T]


def _wide(*tensors: Tensor, rope: bool = False) -> list[Tensor]:
    """Return copies in fp32 (fp64 for fp64), turned by their positions with rope."""
    wide = [a if a.dtype == torch.float64 else a.float() for a in tensors]
    return [rotate(a) for a in wide] if rope else wide


def _probabilities(q, k, valid, segments, key, causal, dropout_p) -> tuple[Tensor, Tensor | None]:
    """Return P (B, H, T, T) of wide q and k, and keep / (1 - p) of dropout or None."""
    B, H, T, K = q.shape
    keep = _keep(T, causal, valid, segments, q.device)
    if keep is None and causal:
        keep = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    s = q @ k.mT / math.sqrt(K)
    p = torch.softmax(s if keep is None else s.masked_fill(~keep, -torch.inf), -1)
    if not dropout_p:
        return p, None
    return p, ((dropped_words(B, H, T, key) >> 1) >= dropout_threshold(dropout_p)).to(p.dtype) / (1 - dropout_p)


def dropout_threshold(p: float) -> int:
    """Return what a word >> 1 must reach for its entry to be kept."""
    return round(p * 2**31)


@op("tdlm::tile_attention", fake=lambda q, *_: empty_rows_first(q))
def tile_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, segments: Tensor | None, key: Tensor | None,
    causal: bool, dropout_p: float, rope: bool = False,
) -> Tensor:  # fmt: skip
    """out (B, H, T, K) of q, k, v (B, H, T, K); valid (B, T) bool, segments (B, T) int, key (2,) int64 for dropout.

    With rope q and k are turned by their positions first, inside.
    """
    queries, keys = _wide(q, k, rope=rope)
    p, drop = _probabilities(queries, keys, valid, segments, key, causal, dropout_p)
    return empty_rows_first(q).copy_((p if drop is None else p * drop) @ v.to(p.dtype))


def empty_gradients(q: Tensor) -> Tensor:
    """Return an empty (3, B, H, T, K) in the memory order (B, T, 3, H, K)."""
    B, H, T, K = q.shape
    return q.new_empty(B, T, 3, H, K).permute(2, 0, 3, 1, 4)


@op("tdlm::tile_attention_backward", fake=lambda dout, q, *_: empty_gradients(q))
def tile_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, segments: Tensor | None,
    key: Tensor | None, causal: bool, dropout_p: float, rope: bool = False,
) -> Tensor:  # fmt: skip
    """dq, dk, dv in one tensor (3, B, H, T, K), recomputed from q, k, v; in memory (B, T, 3, H, K)."""
    (queries, keys), (do, values) = _wide(q, k, rope=rope), _wide(dout, v)
    p, drop = _probabilities(queries, keys, valid, segments, key, causal, dropout_p)
    dp = do @ values.mT
    if drop is not None:
        dp = dp * drop
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    dq, dk, dv = ds @ keys, ds.mT @ queries, (p if drop is None else p * drop).mT @ do
    if rope:
        dq, dk = rotate(dq, back=True), rotate(dk, back=True)
    out = empty_gradients(q)
    for part, g in zip(out, (dq, dk, dv), strict=True):
        part.copy_(g)
    return out


PLAIN = "F.scaled_dot_product_attention under sdpa_kernel(SDPBackend.MATH)"
differentiate(tile_attention, lambda *args: tile_attention_backward(*args).unbind(), PLAIN)
attention_ref = reference(tile_attention)


class _Joined(torch.autograd.Function):
    """tile_attention of q, k, v that lie in one tensor. Its gradient is what the kernel wrote: there is no cat."""

    @staticmethod
    def forward(ctx, qkv, heads, valid, segments, key, *rest):
        ctx.save_for_backward(qkv, valid, segments, key)
        ctx.heads, ctx.rest = heads, rest
        return tile_attention(*_thirds(qkv, heads), valid, segments, key, *rest)

    @staticmethod
    def backward(ctx, dout):
        first_only("attention", PLAIN)
        qkv, *tensors = ctx.saved_tensors
        grads = tile_attention_backward(dout, *_thirds(qkv, ctx.heads), *tensors, *ctx.rest)
        return grads.permute(1, 3, 0, 2, 4).reshape(qkv.shape), *[None] * (4 + len(ctx.rest))


def _thirds(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return views q, k, v (B, H, T, K) of qkv (B, T, 3 H K)."""
    B, T, _ = qkv.shape
    return tuple(a.view(B, T, heads, -1).transpose(1, 2) for a in qkv.chunk(3, -1))


@functools.cache
def _flash_attn():
    """Return flash_attn_func, or None where the package is absent or does not load."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        from flash_attn import flash_attn_func
    except (ImportError, OSError):  # a build for another torch or without its libraries
        return None
    return flash_attn_func


def _padded(T: int, K: int) -> tuple[int, int]:
    return max(16, 1 << (T - 1).bit_length()), max(16, 1 << (K - 1).bit_length())


def turns_fit(T: int, K: int) -> bool:
    """Return whether a GPU's tile of T tokens turns q and k itself. The backward pass of other tiles would spill."""
    rows, width = _padded(T, K)
    return rows >= 32 and width <= 32 and rows * width <= TILE // 2


def tile_fits(T: int, K: int, capability: tuple[int, int]) -> bool:
    """Return whether T tokens with a head of K fit one program of a GPU without spills."""
    rows, width = _padded(T, K)
    most = TILE_T // 2 if capability[0] == 10 else TILE_T  # the backward pass of 128 tokens spills on sm_100
    return T <= most and K <= TILE_K and rows * width <= TILE


def backend(q: Tensor, masked: bool) -> str:
    """Return which of "tile", "flash-attn" and "sdpa" serves q (B, H, T, K); masked: there is padding or documents."""
    has_tile = server(tile_attention, q) is not None
    if not q.is_cuda:
        return "tile" if has_tile else "sdpa"
    capability = hardware.card(q.device).capability
    if q.dtype not in (torch.float16, torch.bfloat16) or capability < (8, 0) or chosen("cuda") == "reference":
        return "sdpa"
    if has_tile and tile_fits(q.shape[2], q.shape[3], capability):
        return "tile"
    return "flash-attn" if q.shape[3] <= 256 and q.shape[3] % 8 == 0 and not masked and _flash_attn() else "sdpa"


def _choice(q: Tensor, valid: Tensor | None, segments: Tensor | None, rope: bool) -> tuple[str, bool]:
    """Return backend's answer, and whether the tile's kernels turn q and k as they read them."""
    choice = backend(q, valid is not None or segments is not None)
    return choice, rope and choice == "tile" and (not q.is_cuda or turns_fit(*q.shape[2:]))


def _dropout_key(q: Tensor, dropout_p: float) -> Tensor | None:
    return torch.randint(2**32, (2,), device=q.device) if dropout_p else None


def check_inputs(q, k, v, valid, segments, dropout_p: float, rope: bool) -> None:
    """Raise ValueError where the arguments of attention do not fit together."""
    if not (q.shape == k.shape == v.shape and q.dim() == 4):
        raise ValueError(f"q, k, v have shapes {[tuple(a.shape) for a in (q, k, v)]}; all must be one (B, H, T, K)")
    for name, a in (("valid", valid), ("segments", segments)):
        if a is not None and a.shape != (q.shape[0], q.shape[2]):
            raise ValueError(f"{name} has shape {tuple(a.shape)}; it must be (B, T) = {(q.shape[0], q.shape[2])}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must lie in 0 <= dropout_p < 1")
    if rope and q.shape[3] % 2:
        raise ValueError(f"rope turns pairs; the head size {q.shape[3]} must be even")


def attention(
    q: Tensor,  # (B, H, T, K)
    k: Tensor,  # (B, H, T, K)
    v: Tensor,  # (B, H, T, K)
    *,
    causal: bool,
    valid: Tensor | None = None,  # (B, T) bool, False at padding, which no other token sees
    segments: Tensor | None = None,  # (B, T) integers: a token sees only its own document
    dropout_p: float = 0.0,
    rope: bool = False,  # turn q and k by their positions first, as rotate does
) -> Tensor:
    """F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal): (B, H, T, K) in q's dtype.

    Dropout follows PyTorch's generator of the device: one seed gives the same bits, eager or in a replayed CUDA graph
    (whose replay reads the generator's seed). Under torch.func and forward-mode AD plain PyTorch runs. Raises
    ValueError where shapes do not fit or dropout_p is not in [0, 1), and RuntimeError for second derivatives.
    """
    check_inputs(q, k, v, valid, segments, dropout_p, rope)
    choice, is_inside = _choice(q, valid, segments, rope)
    plain = contextlib.nullcontext()
    if hardware.is_transformed():  # plain products have every derivative
        choice, is_inside, plain = "sdpa", False, sdpa_kernel(SDPBackend.MATH)
    if rope and not is_inside:
        q, k = rotate_both(q, k)
    if choice == "tile":
        return tile_attention(q, k, v, valid, segments, _dropout_key(q, dropout_p), causal, dropout_p, is_inside)
    if choice == "flash-attn" and (flash_attn := _flash_attn()):
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        return flash_attn(q, k, v, dropout_p=dropout_p, causal=causal).transpose(1, 2)
    keep = _keep(q.shape[2], causal, valid, segments, q.device)
    with plain:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=keep, is_causal=causal and keep is None, dropout_p=dropout_p
        )


def self_attention(
    qkv: Tensor,  # (B, T, 3 H K): the queries of all heads, then their keys, then their values
    heads: int,
    *,
    causal: bool,
    valid: Tensor | None = None,  # (B, T) bool, as for attention
    dropout_p: float = 0.0,
    rope: bool = False,
) -> Tensor:
    """Return attention of the thirds of qkv, its heads side by side: (B, T, H K). Raises as attention does.

    Where a tile serves and turns q and k itself, the gradient of qkv is written in place, without a concatenation.
    """
    q, k, v = _thirds(qkv, heads)
    check_inputs(q, k, v, valid, None, dropout_p, rope)
    choice, is_inside = _choice(q, valid, None, rope)
    if choice == "tile" and is_inside == rope and not hardware.is_transformed():
        out = _Joined.apply(qkv, heads, valid, None, _dropout_key(q, dropout_p), causal, dropout_p, rope)
    else:
        out = attention(q, k, v, causal=causal, valid=valid, dropout_p=dropout_p, rope=rope)
    return out.transpose(1, 2).flatten(2)
