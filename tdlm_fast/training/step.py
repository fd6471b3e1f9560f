"""One optimizer step, a function of (weights, moments, seed, step). Scalars stay on the device.

x0 = batch(seed, step);  loss = objective(x0);  backward;  clip;  AdamW;  average of the weights
"""

import functools

import torch

from ..config import Config
from ..data import batches, dataset
from ..kernels.ops.step_scalars import clip_scale
from ..kernels.philox import STREAM_DROPOUT, random_words
from ..model import autocast
from ..objective import OBJECTIVES, Part, masked_tokens
from . import ema
from .optimizer import learning_rate
from .ranks import ALONE, Ranks


def objective(config: Config, tokenizer):
    """Return the config's loss as a function of what changes from step to step."""
    kw = dict(seed=config.seed, start_token_id=tokenizer.start_token_id)
    if config.objective == "diffusion":
        kw |= dict(schedule=config.noise.schedule, sampling=config.noise.sampling, loss_weight=config.loss_weight)
    else:
        kw |= dict(input_masking=config.noise.input_masking)
    return functools.partial(OBJECTIVES[config.objective], **kw)


def seed_dropout(config: Config, step: int, part: int = 0) -> None:
    """Make dropout a function of the seed and the step, for several processes also of the part of the batch."""
    if not part:
        torch.manual_seed((config.seed << 32) + step)
        return
    index = torch.tensor([2 * part, 2 * part + 1])
    high, low = random_words(index, seed=config.seed, step=step, stream=STREAM_DROPOUT).tolist()
    torch.manual_seed((high << 32) + low)


def backward(model, loss_of, x0, valid, config: Config, step, ranks: Ranks = ALONE) -> tuple:
    """Add up a batch's gradients over its micro-batches; return (loss, loss-bearing tokens, valid tokens), scalars.

    Of several processes each adds up its own share; the last scalar is that of the whole batch.
    """
    device, size, parts = x0.device, config.train.batch_size, config.train.accumulation
    loss = loss_tokens = None
    n = divisor = x0.new_full((), x0.numel()) if valid is None else valid.sum()
    if config.objective == "diffusion" and config.loss_weight != "elbo":
        divisor = None
        if parts > 1:  # each micro-batch has its own strata, and so its own number of masked tokens
            noise = dict(schedule=config.noise.schedule, sampling=config.noise.sampling)
            divisor = masked_tokens(model, x0, seed=config.seed, step=step, valid=valid, **noise).clamp(min=1)
    for i in ranks.share(range(0, size, size // parts)):
        rows = slice(i, i + size // parts)
        if i and ranks.size > 1:  # one process draws on from where its last part ended, captured or not
            seed_dropout(config, int(step), i * parts // size)
        here = None if valid is None else valid[rows]
        with autocast(device, config.precision):
            value, k = loss_of(model, x0[rows], step=step, valid=here, part=Part(i, size, divisor))
        value.backward()
        value = value.detach()
        loss, loss_tokens = (value, k) if loss is None else (loss + value, loss_tokens + k)
    return loss, loss_tokens, n


def update(model, optimizer, loss, config: Config):
    """Clip the gradients, update the weights, clear the gradients; return their norm before clipping, a scalar."""
    clip = config.optim.clip or float("inf")
    # Fused AdamW skips the step where found_inf is 1: no bad gradient reaches the weights, and the host does not wait.
    if loss.is_cuda:  # it also divides by grad_scale there, so clipping needs no pass over the gradients
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm, optimizer.grad_scale, optimizer.found_inf = clip_scale(loss, grads, clip, optimizer.steps())
    else:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=True)
        optimizer.found_inf = (~torch.isfinite(loss + norm)).float()
    optimizer.step()
    if config.optim.ema:
        ema.update(model, optimizer, config.optim.ema)
    optimizer.zero_grad(set_to_none=True)
    return norm


def train_step(
    model, optimizer, loss_of, split: dataset.Split, config: Config, *, step: int, steps: int, ranks: Ranks = ALONE,
) -> dict:  # fmt: skip
    """Train on batch `step` (from 0) of `steps`; return {"loss", "grad_norm", "loss_tokens", "tokens"}, scalars."""
    device = next(model.parameters()).device
    seed_dropout(config, step)
    x0, valid = batches.batch(split, seed=config.seed, step=step, batch_size=config.train.batch_size, device=device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps, config.optim) * group.get("rate", 1.0)
    loss, loss_tokens, n = backward(model, loss_of, x0, valid, config, step, ranks)
    loss, loss_tokens = ranks.add_up(model, loss, loss_tokens)
    norm = update(model, optimizer, loss, config)
    return {"loss": loss, "grad_norm": norm, "loss_tokens": loss_tokens, "tokens": n}


class EagerSteps:
    """Run steps one by one, with batches drawn on the host. The interface is that of cuda_graph.DeviceSteps."""

    why = ""

    def __init__(self, model, optimizer, loss_of, split: dataset.Split, config: Config, *, steps: int):
        self.step = functools.partial(train_step, model, optimizer, loss_of, split, config, steps=steps)
        self.done: list[dict] = []
        self.unread: list[tuple] = []

    def among(self, ranks: Ranks) -> "EagerSteps":
        """Take the steps as one of several processes; return this runner."""
        self.step = functools.partial(self.step, ranks=ranks)
        return self

    def run(self, step: int) -> None:
        self.done.append(self.step(step=step))

    def mark(self, first: int, end: int) -> None:
        self.unread.append((first, self.done))
        self.done = []

    def read(self, keep: int = 0) -> list[tuple[int, list[dict]]]:
        windows, self.unread = self.unread, []
        return [(first, [{k: v.item() for k, v in o.items()} for o in done]) for first, done in windows]


def where(config: Config, split: dataset.Split, step: int, precision: str) -> str:
    """Describe a batch (step, epoch, place, noise levels) for the error that stops on it. precision: the one used."""
    from ..kernels.ops.corrupt import LEVELS, levels

    epoch, place = divmod(step, batches.steps_per_epoch(split, config.train.batch_size))
    text = f"the loss is not finite at step {step + 1} (epoch {epoch + 1}, batch {place + 1})"
    if config.objective == "diffusion":
        size = config.train.batch_size
        t = levels(size, 0, size, config.noise.sampling, config.seed, step, "cpu") / LEVELS
        text += f", noise levels t from {t.min():.4f} to {t.max():.4f}"
    return text + "; lower optim.lr" + " or set precision=fp32" * (precision == "bf16")
