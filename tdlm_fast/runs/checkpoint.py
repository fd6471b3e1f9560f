"""Checkpoints: one safetensors file with weights, AdamW's moments and counters, written beside and renamed.

    model.NAME, exp_avg.NAME, exp_avg_sq.NAME   tensors; with optim.ema also average.NAME
    "state"   JSON with step, best, tokens, seconds, …, seed and hashes of the run's settings and text
    "sha256"  of the state and all tensors

Nothing is unpickled. A file that was cut short or altered, or that belongs to another run, is an error that names it.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..config import ConfigError, NonFinite
from .files import parse, unreadable, write_beside

MOMENTS, AVERAGE = ("exp_avg", "exp_avg_sq"), "average"  # of the weights, where optim.ema is not 0
OWNER = ("seed", "settings_hash", "corpus_hash", "tokenizer_hash")  # of a state: the run that it belongs to
COUNTERS = ("best", "tokens", "loss_tokens", "seconds", "corpus_hash")  # needed to resume, beside the step


class Refused(ConfigError):
    """A checkpoint that is not damaged, so no other one may take its place: of another run, or unreadable."""


def digest(tensors: dict, text: str = "") -> str:
    """Return the SHA-256 of a text and of the names and bytes of tensors."""
    sha = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def weights_hash(model) -> str:
    """Return a hash of all weights, by which two models are known to be the same."""
    return digest(model.state_dict())[:16]


def check_finite(model) -> None:
    """Raise NonFinite where a weight is nan or infinite: text and accuracies of such a model would look like others."""
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            raise NonFinite(f"the weights are not finite: {name} holds nan or infinity; use another checkpoint")


def save(path: Path, model, optimizer, state: dict) -> None:
    """Write weights, optimizer (None: only weights) and state to path. Raises ConfigError where that fails."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if optimizer is not None:
        for name, p in model.named_parameters():
            held = optimizer.state.get(p, {})
            tensors |= {f"{m}.{name}": held[m] for m in (*MOMENTS, AVERAGE) if m in held}
    _write(path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, state)


def _write(path: Path, tensors: dict, state: dict) -> None:
    text = json.dumps(state)
    about = {"state": text, "sha256": digest(tensors, text)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, lambda p: save_file(tensors, p, about))
    except (SafetensorError, OSError) as e:
        previous = "the one before it is intact" if path.is_file() else "there is none before it"
        raise ConfigError(f"{path} cannot be written ({e}); {previous}; free space, then --resume") from None


def peek(path: Path) -> dict:
    """Return only the state of a checkpoint, unchecked; {} if it cannot be read."""
    try:
        with safe_open(path, "pt") as f:
            state = parse(f.metadata()["state"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def check_owner(path: Path, state: dict, owner: dict) -> None:
    """Raise Refused where a checkpoint's state names another owner (OWNER); versions up to 0.2.0 name only the text."""
    others = {k: state[k] for k in OWNER if k in state and state[k] != owner.get(k, state[k])}
    if others:
        differs = f"seed {others['seed']}, not {owner['seed']}" if "seed" in others else "of other settings"
        differs = "of another text" if others.keys() == {"corpus_hash"} else differs
        differs = "of other tokens than tokenizer.json holds" if others.keys() == {"tokenizer_hash"} else differs
        raise Refused(f"{path} belongs to another run ({differs}); restore this run's own, or {_remedy(path)}")


def _remedy(path: Path) -> str:
    return "remove it, and --resume makes it again" if path.stem == "best" else "train again in another folder"


def read(path: Path, needed: tuple[str, ...] = ("step",)) -> tuple[dict, dict]:
    """Return the tensors and the state of a checkpoint. Raises ConfigError naming the file, Refused if unreadable."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint; train first, or give a run folder that holds checkpoints/")
    try:
        open(path, "rb").close()
    except OSError as e:
        raise Refused(str(unreadable(path, e))) from None
    try:
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}
            about = f.metadata()
        state = parse(about["state"])
        if about.keys() != {"state"} and about.get("sha256") != digest(tensors, about["state"]):  # older ones have none
            raise ValueError("its contents do not match its checksum")
        if missing := [k for k in needed if k not in state]:
            raise ValueError(f"its state has no {', '.join(missing)}")
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as e:
        raise ConfigError(f"{path} is damaged ({e}); restore a copy of it, or {_remedy(path)}") from None
    return tensors, state


def hand_over(source: Path, target: Path, before: dict, after: dict, **changes) -> dict:
    """Write a checkpoint of the owner `before` to target as one of `after`; return its state. Raises as load does.

    source may be of `after` already, where a process ended between two calls. changes: other values of its state.
    """
    tensors, state = read(source)
    if any(state.get(k) != v for k, v in after.items()):
        check_owner(source, state, before)
    _write(target, tensors, state | after | changes)
    return state | after | changes


def load(path: Path, model, optimizer=None, owner: dict | None = None) -> dict:
    """Read a checkpoint into model and optimizer; returns its state. Without an optimizer, averages are the weights.

    Raises ConfigError naming the file; Refused where it is unreadable or not of `owner`, {name of OWNER: value}.
    """
    tensors, state = read(path, ("step", *(COUNTERS if optimizer else ())))
    check_owner(path, state, owner or {})
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    averages = {k.removeprefix(f"{AVERAGE}."): v for k, v in tensors.items() if k.startswith(f"{AVERAGE}.")}
    if optimizer is None:  # what was evaluated
        weights |= averages
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise ConfigError(f"{path} does not fit the config beside it: {str(e).splitlines()[-1].strip()}") from None
    if optimizer is not None and state["step"]:  # before the first step there are no moments
        for name, p in model.named_parameters():
            moments = {m: tensors[f"{m}.{name}"] for m in (*MOMENTS, AVERAGE) if f"{m}.{name}" in tensors}
            if len(moments) < len(MOMENTS) or any(m.shape != p.shape for m in moments.values()):
                raise ConfigError(f"{path} holds no moments of AdamW for {name}, so training cannot resume from it")
            # copies: a tensor of a CPU would keep the file mapped, which Windows then cannot replace
            moments = {m: v.to(p.device, copy=True) for m, v in moments.items()}
            step = torch.tensor(float(state["step"]), device=p.device if p.is_cuda else "cpu")
            optimizer.state[p] = {"step": step, **moments}
    return state
