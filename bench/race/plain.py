"""The training step as it is usually written in PyTorch: the logits in memory, F.cross_entropy, AdamW.

Only the parameters, their initialisation and the architecture are tdlm_fast's; a test shows that the losses are the
same. Attention is F.scaled_dot_product_attention, masks come from torch.rand, batches from the host.
"""

import torch
import torch.nn.functional as F

from tdlm_fast.data import batches
from tdlm_fast.kernels.ops.rotary import rotate
from tdlm_fast.model import Block, Model, autocast


class PlainBlock(Block):
    def forward(self, x, causal, keep):
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.rope:
            q, k = rotate(q), rotate(k)
        p = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=causal and keep is None, dropout_p=p)
        x = x + self.out(a.transpose(1, 2).reshape(B, T, D))
        up = self.up(self.norm2(x))
        if self.mlp == "gelu":
            return x + self.down(F.gelu(up))
        gate, up = up.chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class PlainModel(Model):
    """tokens (B, T) -> hidden states (B, T, D)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for block in self.blocks:
            block.__class__ = PlainBlock

    def forward(self, tokens, *, causal, valid=None):
        keep = None
        if valid is not None:
            own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
            keep = valid[:, None, None, :] | own
            keep = keep & torch.ones_like(own).tril() if causal else keep
        x = self.embedding(tokens)
        x = self.dropout(x if self.positions is None else x + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, causal, keep)
        return self.norm(x)


def logits_in_memory(h, head, targets, weights):
    """sum of weights * cross-entropy; h (N, D), targets (N,), weights (N,)."""
    return (F.cross_entropy((h @ head.T).float(), targets, reduction="none") * weights).sum()


def corrupted(model, x0, valid):
    """(xt, masked, weights): one uniform t per sequence, weight 1 / t, the bound of the linear schedule."""
    t = torch.rand(len(x0), 1, device=x0.device).clamp(min=1e-3)
    masked = torch.rand(x0.shape, device=x0.device) < t
    masked = masked if valid is None else masked & valid
    return torch.where(masked, model.mask_token_id, x0), masked, masked / t


def loss_of(model, objective, x0, valid, start_token_id, head_loss=logits_in_memory, only_masked=False):
    """(loss per valid token, tokens that bear loss) of a batch.

    Where that is every token it is a number: a tensor on the CPU would keep torch.compile from using CUDA graphs.
    """
    n = x0.numel() if valid is None else valid.sum()
    if objective == "diffusion":
        xt, masked, weights = corrupted(model, x0, valid)
        h = model(xt, causal=False, valid=valid)
        if only_masked:  # for losses without weights; the host waits for the number of rows
            h, x0, weights = h[masked], x0[masked], weights[masked]
        loss = head_loss(h.flatten(0, -2), model.head, x0.flatten(), weights.flatten())
        return loss / n, masked.sum()
    shifted = torch.cat([torch.full_like(x0[:, :1], start_token_id), x0[:, :-1]], 1)
    seen = None if valid is None else torch.cat([torch.ones_like(valid[:, :1]), valid[:, :-1]], 1)
    weights = torch.ones_like(x0, dtype=torch.float32) if valid is None else valid.float()
    h = model(shifted, causal=True, valid=seen)
    if only_masked and valid is not None:
        h, x0, weights = h[valid], x0[valid], weights[valid]
    return head_loss(h.flatten(0, -2), model.head, x0.flatten(), weights.flatten()) / n, n


class PlainSteps:
    """The interface of EagerSteps. precision "bf16" is autocast, as tdlm_fast trains; "fp32" casts nothing.

    compiled: the mode of torch.compile, "" for no compiling. "reduce-overhead" replays forward and backward pass as
    CUDA graphs; clipping and AdamW stay eager.
    """

    def __init__(self, model, optimizer, split, config, start_token_id, *, precision, compiled="", **loss):
        self.model, self.optimizer, self.split, self.config = model, optimizer, split, config
        self.precision, self.start, self.kwargs = precision, start_token_id, loss
        self.loss_of = torch.compile(loss_of, mode=compiled, dynamic=False) if compiled else loss_of

    def run(self, step: int) -> None:
        device, size, parts = self.model.head.device, self.config.train.batch_size, self.config.train.accumulation
        x0, valid = batches.batch(self.split, seed=self.config.seed, step=step, batch_size=size, device=device)
        self.loss, self.loss_tokens = 0.0, 0
        for i in range(0, size, size // parts):
            rows = slice(i, i + size // parts)
            part = None if valid is None else valid[rows]
            torch.compiler.cudagraph_mark_step_begin()
            with autocast(device, self.precision):
                loss, k = self.loss_of(self.model, self.config.objective, x0[rows], part, self.start, **self.kwargs)
            (loss / parts).backward()
            self.loss, self.loss_tokens = self.loss + loss.detach() / parts, self.loss_tokens + k
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
