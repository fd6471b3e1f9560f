"""Refuse a run whose memory cannot suffice, before its model is built, and estimate how long its training takes.

The memory is a lower bound: what is stored in any case, so a run that could fit is never refused.

    parameters    4 numbers of 4 bytes each: weight, gradient, and AdamW's two moments; with optim.ema the average
    activations   what the forward pass of a micro-batch keeps for the backward pass
    evaluation    the widest layer of eval.batch_size rows, in place of the activations
"""

import time
from dataclasses import replace

import numpy as np
import torch

from ..config import Config, ConfigError
from ..kernels import linear_cross_entropy
from ..model import autocast
from ..runs.device import available_bytes

PARAMETER, AVERAGE = 16, 4  # bytes
KEYS = ("model.width", "model.layers", "model.seq_len", "train.batch_size", "eval.batch_size")  # that take memory


def parameter_count(shape, vocab: int) -> int:
    """Return the parameters of a model section with a vocabulary of `vocab` tokens, without building the model."""
    width, gates = shape.width, 2 if shape.mlp == "swiglu" else 1
    inner = shape.inner or (3 if gates == 2 else 4) * width
    block = 2 * width + 4 * width**2 + (gates + 1) * width * inner
    positions = 0 if shape.positions == "rope" else shape.seq_len * width
    return (vocab + 1) * width + positions + shape.layers * block + width + (not shape.tied) * vocab * width


def least_bytes(config: Config, vocab: int, rows: int = 2**62) -> int:
    """Return the memory in bytes that a run takes at the least, where no split has more than `rows` rows."""
    m, number = config.model, 4 if config.precision == "fp32" else 2
    gates = 2 if m.mlp == "swiglu" else 1
    inner = m.inner or (3 if gates == 2 else 4) * m.width
    layer = 4 * 2 * m.width + number * (5 * m.width + gates * inner)  # a token: residual stream, q k v, two inputs, MLP
    trained = config.train.batch_size // config.train.accumulation
    scored = min(config.eval.batch_size, rows) * (4 * m.width + number * gates * inner)
    parameters, stored = parameter_count(m, vocab), PARAMETER + AVERAGE * bool(config.optim.ema)
    return max(stored * parameters + m.seq_len * m.layers * trained * layer, 4 * parameters + m.seq_len * scored)


def _with(config: Config, key: str, value: int) -> Config:
    section, name = key.split(".")
    if key == "train.batch_size":
        value *= config.train.accumulation
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def _largest(config: Config, key: str, limit: int, vocab: int, rows: int) -> int:
    """Return the largest value of a key, below its own, with which the rest of the config fits; 0 if there is none."""
    m = config.model
    step = {"model.width": m.heads * (2 if m.positions == "rope" else 1)}.get(key, 1)
    section, name = key.split(".")
    low, high = 0, getattr(getattr(config, section), name) // step
    if key == "train.batch_size":
        high //= config.train.accumulation
    while low + 1 < high:
        middle = (low + high) // 2
        fits = least_bytes(_with(config, key, middle * step), vocab, rows) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return low * step * (config.train.accumulation if key == "train.batch_size" else 1)


def check_memory(config: Config, vocab: int, rows: int, device: torch.device) -> None:
    """Raise ConfigError where a run cannot fit into the memory of its device, naming the largest values that fit.

    rows: of the longest split, the most that an evaluation scores at once.
    """
    limit, needed = available_bytes(device), least_bytes(config, vocab, rows)
    if limit is None or needed <= limit:
        return
    fitting = [f"{key}={n}" for key in KEYS if (n := _largest(config, key, limit, vocab, rows))]
    fix = f"the largest that fits, all else as it is: {' or '.join(fitting)}" if fitting else f"lower {', '.join(KEYS)}"
    sizes = f"at least {needed / 1e9:,.1f} GB of memory, and {limit / 1e9:,.1f} GB are free on {device}"
    raise ConfigError(f"this run takes {sizes}; {fix}")


@torch.no_grad()
def training_seconds(model, split, config: Config, steps: int) -> float:
    """Estimate the seconds of `steps` training steps: three forward passes each, of which one is timed here.

    The model is left as it was. Nothing random is drawn.
    """
    device, rows = next(model.parameters()).device, min(len(split), config.train.batch_size, config.eval.batch_size)
    x0, valid = split.rows(np.arange(rows), device)
    was_training = model.training
    model.eval()
    for _ in range(2):  # the first pass also starts threads
        began = time.perf_counter()
        with autocast(device, config.precision):
            h = model(x0, causal=config.objective == "autoregressive", valid=valid).flatten(0, -2)
            linear_cross_entropy(h, model.head, x0.flatten(), reduction="none")
        if (seconds := time.perf_counter() - began) > 2:
            break
    model.train(was_training)
    return 3 * seconds * config.train.batch_size / rows * steps
