"""Load a trained run from its folder, and the text that it was trained on."""

import os
from dataclasses import replace
from pathlib import Path

from .. import config as settings
from ..data import dataset
from ..model import build_model
from . import checkpoint
from .device import pick_device, tell_missing
from .folder import checkpoint_of, owner_of
from .vocabulary import tokenizer_of


def load_run(folder: str | Path, which: str | None = None, device: str = "auto"):
    """Return (config, tokenizer, model, state) of a run: its model in evaluation mode and its checkpoint's state.

    which: "best" or "last"; None takes the best of a finished run and the last of a stopped one. Raises ConfigError
    where there is no such run, or its checkpoint is damaged or another run's.
    """
    if not str(folder):
        raise settings.ConfigError("no run folder was given; give the path of one, such as runs/tiny-diffusion-seed42")
    folder = Path(settings.expanded(str(folder)))
    if not (folder / "config.yaml").is_file():
        raise settings.ConfigError(f"{folder} is not a run folder: it holds no config.yaml")
    config = settings.load(folder / "config.yaml")
    tokenizer = tokenizer_of(folder, config)
    model = build_model(config, tokenizer)
    file = folder / "checkpoints" / f"{checkpoint_of(folder, which)}.safetensors"
    state = checkpoint.load(file, model, owner=owner_of(config) | {"tokenizer_hash": tokenizer.hash})
    state["weights"] = checkpoint.weights_hash(model)  # figures computed with other weights do not count
    target = pick_device(device)
    tell_missing(target)
    return config, tokenizer, model.to(target).eval(), state


def source_of(folder: Path, config, state: dict):
    """Return config.data with a relative data.path as it leads from the current folder.

    state is the checkpoint's. Where it has no such path, or nothing is there, data.path is left as it was typed.
    """
    path = Path(os.path.realpath(folder)) / state.get("path_from_run", "")
    if not state.get("path_from_run") or not path.exists():
        return config.data
    return replace(config.data, path=os.path.normpath(path))


def trained_text(folder: Path, config, state: dict, layout: str | None = None) -> dataset.Corpus:
    """Return the corpus of a run, in the config's layout or another one.

    state is the checkpoint's. Raises ConfigError where the text has changed: a sequence that is held out of another
    text may have been trained on.
    """
    data = replace(source_of(folder, config, state), layout=layout or config.data.layout)
    corpus = dataset.load(data, config.model.seq_len, state.get("corpus"), tokenizer_of(folder, config))
    if corpus.hash != state["corpus_hash"]:
        raise settings.ConfigError(f"the text is not what {folder} was trained on; restore it")
    return corpus
