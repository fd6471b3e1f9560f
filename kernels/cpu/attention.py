"""Attention of csrc/cpu/attention.h: one head of one sequence a task, for fp32 and bf16."""

import ctypes

import torch
from torch import Tensor

from ..dispatch import implement
from ..ops.attention import dropout_threshold, empty_gradients, tile_attention, tile_attention_backward
from ..ops.rotary import empty_rows_first, kept_rotation
from . import library


def _serves(q: Tensor) -> str:
    return library.serves(q.dtype) or ("" if q.numel() else "there is nothing to attend to")


def _run(out: Tensor, grads: tuple, q, k, v, valid, segments, key, causal, dropout_p, rope=False) -> None:
    """Fill out, or, where there are grads to fill, read it as the gradient of the output."""
    B, H, T, K = q.shape
    if not (q.shape == k.shape == v.shape == out.shape and q.dtype == k.dtype == v.dtype == out.dtype):
        raise ValueError(f"q, k, v have shapes {[tuple(a.shape) for a in (q, k, v)]} or types that differ")
    if any(a is not None and a.shape != (B, T) for a in (valid, segments)):
        raise ValueError(f"valid and segments must be (B, T) = {(B, T)}")
    if rope and K % 2:
        raise ValueError(f"rope turns pairs; the head size {K} must be even")
    tensors = [a if a.stride(-1) == 1 else a.contiguous() for a in (q, k, v, out)] + list(grads)
    valid = None if valid is None else valid.bool().contiguous()
    segments = None if segments is None else segments.long().contiguous()
    turns = kept_rotation(T, K, q.device) if rope else None
    words = (ctypes.c_uint32 * 2)(*key.tolist()) if dropout_p else None
    library.call(
        "tdlm_attention", bool(grads), q.dtype == torch.bfloat16, causal,
        (ctypes.c_void_p * 7)(*(a.data_ptr() for a in tensors)),
        (ctypes.c_int64 * 21)(*(s for a in tensors for s in a.stride()[:3])),
        B, H, T, K, valid, segments, turns, words, dropout_threshold(dropout_p), 1 / (1 - dropout_p),
    )  # fmt: skip


def forward(q, *rest):
    out = empty_rows_first(q)
    _run(out, (), q, *rest)
    return out


def backward(dout, q, *rest):
    grads = empty_gradients(q)
    _run(dout.to(q.dtype), grads.unbind(), q, *rest)
    return grads


implement(tile_attention, "cpu", "cpu", lambda q, *rest: _serves(q), forward)
implement(tile_attention_backward, "cpu", "cpu", lambda dout, q, *rest: _serves(q), backward)
