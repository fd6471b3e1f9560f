"""Begin a run at a checkpoint of another one, its trunk, whose learning rate has not begun to fall.

One trunk at a constant rate serves runs of many lengths: each takes a checkpoint of it (train.keep_at) and adds the
decay of wsd. With optim.warmup_steps the weights are those of a wsd run of that length, bit for bit.
"""

import os
import sys
from pathlib import Path

from .. import config as settings
from ..runs import checkpoint
from ..runs.files import BEST, LAST
from ..runs.folder import FREE, changes, owner_of

OWN = ("optim.schedule", "optim.decay", "optim.min_lr", "train.epochs", "train.max_steps")  # of a branch, not its trunk


def steps_of(config: settings.Config, per_epoch: int) -> int:
    """Return the optimizer steps of a run whose epochs have per_epoch steps."""
    return config.train.max_steps or max(1, int(config.train.epochs * per_epoch))


def trunk_of(path: Path) -> tuple[Path, Path]:
    """Return (run folder, checkpoint) of train.branch_from, which names either. Raises ConfigError."""
    file = path / LAST if path.is_dir() else path
    folder = file.parent.parent
    if not file.is_file() or not (folder / "config.yaml").is_file():
        kept = sorted(f.name for f in (folder / "checkpoints").glob("step-*.safetensors"))
        there = f"; {folder / 'checkpoints'} holds {', '.join(kept)}" if kept else ""
        fix = "give a run folder, or a checkpoint that train.keep_at made in one"
        raise settings.ConfigError(f"train.branch_from: {path} is not a checkpoint of a run{there}; {fix}")
    return folder, file


def branch(config: settings.Config, own: Path, model, optimizer, steps: int, per_epoch: int, text: dict) -> dict:
    """Load the trunk's checkpoint into model and optimizer; return its state. text: Corpus.owner.

    Raises ConfigError where the trunk has other settings or another text, its rate was falling already, or this run's
    would have to fall earlier.
    """
    folder, file = trunk_of(Path(config.train.branch_from))
    if os.path.realpath(folder) == os.path.realpath(own):
        raise settings.ConfigError(f"train.branch_from: {folder} is this run itself; give another run.dir")
    if other := changes(config, folder, lambda key: key not in OWN and not key.startswith(FREE)):
        raise settings.ConfigError(f"train.branch_from: {folder} has other settings: {other}; branch with those")
    if file.name == Path(BEST).name:
        fix = f"give {folder / LAST}, or a checkpoint that train.keep_at made"
        raise settings.ConfigError(f"train.branch_from: {file} holds weights alone, to be evaluated; {fix}")
    trunk = settings.load(folder / "config.yaml")
    state = checkpoint.load(file, model, optimizer, owner_of(trunk) | text)
    at, length = state["step"], steps_of(trunk, per_epoch)
    falls = {"cosine": 0, "wsd": trunk.optim.decay_begins(length), "constant": at}[trunk.optim.schedule]
    if at > falls:
        fix = "branch from a run of optim.schedule=constant, or from its checkpoint of an earlier step"
        raise settings.ConfigError(f"train.branch_from: at step {at} the learning rate of {file} was falling; {fix}")
    latest = config.optim.decay_begins(steps) if config.optim.schedule == "wsd" else steps - 1
    if at > latest:
        fix = f"give a checkpoint of step {latest} or earlier (train.keep_at={latest}), or more steps"
        raise settings.ConfigError(f"train.branch_from: {file} is of step {at}, too late for {steps} steps; {fix}")
    print(f"branching from step {at} of {folder}", file=sys.stderr)
    return state
