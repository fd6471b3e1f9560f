"""A trained run from its folder: config, tokenizer, model and checkpoint state."""

from pathlib import Path

from .. import config as settings
from . import checkpoint
from .folder import checkpoint_of


def load_run(folder: Path, which: str | None = None, device: str = "auto"):
    """(config, tokenizer, model, state of the checkpoint) of a run; which as in checkpoint_of. Raises ConfigError."""
    from ..data.tokenizer import TOKENIZERS
    from ..model import build_model
    from .device import pick_device, tell_missing

    if not (folder / "config.yaml").is_file():
        raise settings.ConfigError(f"{folder} is no run folder: it holds no config.yaml")
    config = settings.load(folder / "config.yaml")
    tokenizer = TOKENIZERS[config.data.tokenizer]()
    model = build_model(config, tokenizer)
    state = checkpoint.load(folder / "checkpoints" / f"{checkpoint_of(folder, which)}.safetensors", model)
    state["weights"] = checkpoint.digest(model.state_dict())[:16]  # what was computed with others is not theirs
    where = pick_device(device)
    tell_missing(where)
    return config, tokenizer, model.to(where).eval(), state
