"""Checkpoints: one safetensors file with weights, AdamW's moments and counters, written beside and renamed.

    model.NAME, exp_avg.NAME, exp_avg_sq.NAME   tensors;   "state"   JSON with step, best, tokens, seconds, …

Nothing is unpickled, and a file that was cut short is named instead of loaded.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")


def write_beside(path: Path, write) -> None:
    """write(temporary path), flush it to the disk, then rename it to path."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(beside)
    with open(beside, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(beside, path)


def save(path: Path, model, optimizer, state: dict) -> None:
    """Weights, optimizer (None: weights alone) and state to path."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if optimizer is not None:
        for name, p in model.named_parameters():
            tensors |= {f"{m}.{name}": optimizer.state[p][m] for m in MOMENTS if p in optimizer.state}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
    write_beside(path, lambda p: save_file(tensors, p, {"state": json.dumps(state)}))


def load(path: Path, model, optimizer=None) -> dict:
    """Read a checkpoint into model and optimizer; returns its state. Raises ConfigError naming the file."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint; train first, or give a run folder that holds checkpoints/")
    try:
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}
            state = json.loads(f.metadata()["state"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as e:
        raise ConfigError(f"{path} is damaged ({e}); use the other checkpoint of the run, or train again") from None
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise ConfigError(f"{path} does not fit the config beside it: {str(e).splitlines()[-1].strip()}") from None
    if optimizer is not None:
        for name, p in model.named_parameters():
            if f"exp_avg.{name}" in tensors:
                moments = {m: tensors[f"{m}.{name}"].to(p.device) for m in MOMENTS}
                optimizer.state[p] = {"step": torch.tensor(float(state["step"]), device=_step_device(p)), **moments}
    return state


def _step_device(p):
    return p.device if p.is_cuda else "cpu"
