"""AdamW with decoupled decay on matrices only (Loshchilov & Hutter 2019), and its learning rate.

lr(step) = peak * (step + 1) / warm-up            while warming up
         = peak * (s + (1 - s) step / warm-up)    while warming up, from a share s of the peak (optim.warmup_start)
         = min + (peak - min) (1 + cos(pi p)) / 2  after it, p in [0, 1]   (optim.schedule=cosine)
         = peak                                    after it                (constant)
         = peak, then min + (peak - min) (1 - sqrt(q)) with q from 0 to 1 over the last share optim.decay (wsd)

The fall of wsd is that of Hägele et al. 2024 (arXiv 2405.18392).
"""

import math

import torch

from ..config import Optim
from ..schema import BASE_WIDTH
from .device_adamw import DeviceAdamW


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """Return the learning rate of step `step`, counted from 0, of `steps` steps."""
    warmup, first = optim.warmup_steps or math.ceil(optim.warmup * steps), optim.warmup_start
    if step < warmup:
        if first:
            return optim.lr * (first + (1 - first) * step / warmup)
        return optim.lr * (step + 1) / warmup
    begins = optim.decay_begins(steps)
    if optim.schedule == "constant" or optim.schedule == "wsd" and step < begins:
        return optim.lr
    if optim.schedule == "wsd":
        q = (step + 1 - begins) / (steps - begins)
        return optim.min_lr + (optim.lr - optim.min_lr) * (1 - math.sqrt(min(q, 1.0)))
    p = (step - warmup) / max(1, steps - 1 - warmup)
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * min(p, 1.0))) / 2


def adamw(model: torch.nn.Module, optim: Optim) -> torch.optim.AdamW:
    """Return fused AdamW, on a GPU DeviceAdamW; embeddings, positions and norms do not decay.

    With optim.transfer=completep the matrices of the blocks are a group with "rate", BASE_WIDTH / width, a factor of
    the learning rate, and with a decay that keeps rate x decay. Every other group has no "rate".
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed = [p for p in model.parameters() if p.dim() == 2 and id(p) not in tables]
    rest = [p for p in model.parameters() if p.dim() != 2 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if optim.transfer == "completep":
        wider = model.get_parameter("embedding.weight").shape[1] / BASE_WIDTH
        inside = {id(p) for name, p in model.named_parameters() if name.startswith("blocks.")}
        hidden = [p for p in decayed if id(p) in inside]
        groups[0]["params"] = [p for p in decayed if id(p) not in inside]
        groups.append({"params": hidden, "weight_decay": optim.weight_decay * wider, "rate": 1 / wider})
        groups = [group for group in groups if group["params"]]  # a tied head is in none that decays
    on_gpu = any(p.is_cuda for p in model.parameters())
    kind = DeviceAdamW if on_gpu else torch.optim.AdamW
    return kind(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True, capturable=on_gpu)
