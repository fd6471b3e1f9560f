"""Compute the head as TDLM_FP16_ACCUMULATE=1 does on a GeForce card: fp16 sums, rounded as a tensor core rounds.

    z = sum of 8 products at a time, rounded to fp16 after each;  P W and P^T h so within a tile, in fp32 across tiles

How many products are added before a rounding is a property of the chip that no data sheet gives (Fasi et al. 2021
measured 4 on Volta, 8 on Ampere). With 8, each instruction of the compiled loop, which adds 16, rounds twice. This is
slow, and only precision.py uses it.
"""

import torch
from torch import Tensor

from tdlm_fast.kernels.triton import tiles

TOGETHER = 8  # products added before a rounding
ROWS = 128  # at a time, a multiple of the tiles' rows
HEAD = tiles.fused(86, 8192, 64, 50257, *[torch.bfloat16] * 3, processors=46, half=True)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (..., m, k) @ b (..., k, n), values of fp16 in fp32, summed in fp16."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for k in range(0, a.shape[-1], TOGETHER):
        total += a[..., k : k + TOGETHER] @ b[..., k : k + TOGETHER, :]
        total = total.half().float()
    return total


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, weight, targets, grad):
        """sum_i grad_i nll_i and its gradients; grad (N,) fp32 may not be negative. Formulas: the Triton kernel."""
        tile, (V, D) = HEAD.forward.vocab, weight.shape
        x, w = h.half().float(), torch.zeros(-(-V // tile) * tile, D)
        w[:V] = weight.half()
        blocks = w.view(-1, tile, D)
        scale = torch.exp2(-torch.floor(torch.log2(grad.max())))
        loss, dh, dw = h.new_zeros(()), torch.empty_like(h), torch.zeros_like(w)
        for i in range(0, len(x), ROWS):
            rows, y = x[i : i + ROWS], targets[i : i + ROWS, None]
            z = product(rows, w.T)
            z[:, V:] = -torch.inf
            lse = torch.logsumexp(z, 1)
            exact = (rows * w[y[:, 0]]).sum(1)  # combine_kernel makes the target's logit in fp32
            loss += grad[i : i + ROWS].dot(lse - exact)
            top = z.view(len(rows), -1, tile).amax(2).cummax(1).values  # the running maximum at each tile
            p = torch.exp(z.view(len(rows), -1, tile) - top[..., None]).half().float()
            sums = product(p.transpose(0, 1), blocks)
            total = (sums * torch.exp(top - lse[:, None]).T[..., None]).sum(0)
            dh[i : i + ROWS] = (total - w[y[:, 0]]) * grad[i : i + ROWS, None]
            p = torch.exp(z - lse[:, None]).mul_(grad[i : i + ROWS, None] * scale)
            p.scatter_add_(1, y, -grad[i : i + ROWS, None] * scale)
            p = p.half().float()
            for j in range(0, len(rows), HEAD.weight.rows):
                part = slice(j, j + HEAD.weight.rows)
                dw += product(p[part].T, rows[part])
        ctx.save_for_backward(dh, (dw / scale)[:V])
        return loss

    @staticmethod
    def backward(ctx, grad):
        dh, dw = ctx.saved_tensors
        return dh * grad, dw * grad, None, None


def linear_cross_entropy(h: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, *, n_rows=None) -> Tensor:
    """kernels.linear_cross_entropy, summed, as a GeForce card computes it with fp16 sums; D up to 64."""
    live = slice(None if n_rows is None else int(n_rows))
    with torch.autocast("cpu", enabled=False):
        return _Loss.apply(h[live].float(), weight.float(), targets[live], token_weights[live].float())
