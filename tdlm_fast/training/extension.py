"""Train a finished run further, where its schedule allows it: `train CONFIG --extend STEPS`.

constant    from its last checkpoint
wsd         from the last checkpoint before its decay, which is repeated at the new end
cosine      refused: its rate has fallen, and no later step of a longer run would have the same weights
"""

import sys
from dataclasses import replace
from pathlib import Path

from .. import config as settings
from ..runs import checkpoint
from ..runs.files import BEST, LAST, kept_checkpoint, write_beside
from ..runs.folder import FREE, changes, owner_of
from ..runs.metrics import finished

LENGTH = ("train.max_steps", "train.epochs")


def extended(config: settings.Config, folder: Path, steps: int) -> settings.Config:
    """Prepare a finished run for training to `steps` steps in all; return the config that it then resumes with.

    Calling it again after a process ended in the middle is safe. Raises ConfigError.
    """
    if not (folder / "config.yaml").is_file():
        raise settings.ConfigError(f"--extend: {folder} holds no run; train it first, without --extend")
    if other := changes(config, folder, lambda key: key not in LENGTH and not key.startswith(FREE)):
        raise settings.ConfigError(f"--extend with other settings than {folder} holds: {other}; extend with those")
    before, done = settings.load(folder / "config.yaml"), finished(folder, remake=True)
    after = replace(config, train=replace(config.train, max_steps=steps, epochs=before.train.epochs))
    if before.train.max_steps != steps:
        if done is None:
            raise settings.ConfigError(f"--extend: {folder} is not finished; --resume finishes it first")
        if steps <= done["steps"]:
            raise settings.ConfigError(f"--extend {steps}: {folder} has {done['steps']} steps already; give more")
        source = _source(before, folder, done["steps"])
        at, best, own = checkpoint.read(source)[1]["step"], folder / BEST, owner_of(after)
        lost = not _not_after(best, at)
        checkpoint.hand_over(source, folder / LAST, owner_of(before), own, **({"best": None} if lost else {}))
        for file in (best, *(folder / "checkpoints").glob("step-*.safetensors")):
            if _not_after(file, at):
                checkpoint.hand_over(file, file, owner_of(before), own)
            else:  # of the decay, or damaged
                file.unlink(missing_ok=True)
        write_beside(folder / "config.yaml", lambda p: settings.save(after, p))
        sought = "; the best weights were those of a later step and are sought again" if lost else ""
        print(f"extending {folder} from step {at} to {steps}{sought}", file=sys.stderr)
    if done and done["steps"] < steps:
        (folder / "summary.json").unlink()
    return after


def _not_after(file: Path, step: int) -> bool:
    """Return whether a checkpoint is there and readable, and is of this step or an earlier one."""
    return file.is_file() and checkpoint.peek(file).get("step", step + 1) <= step


def _source(config: settings.Config, folder: Path, steps: int) -> Path:
    """Return the checkpoint from which a finished run of `steps` steps can be extended. Raises ConfigError."""
    if config.optim.schedule == "cosine":
        fix = "train a longer run in another folder; one of optim.schedule=wsd or constant can be extended"
        raise settings.ConfigError(f"--extend: {folder} has optim.schedule=cosine, which ends with its steps; {fix}")
    if config.optim.schedule == "constant":
        return folder / LAST
    file = folder / kept_checkpoint(config.optim.decay_begins(steps))
    if not file.is_file():
        fix = "restore it, or train a longer run in another folder"
        raise settings.ConfigError(f"--extend: {file}, from before the decay of wsd, is missing; {fix}")
    return file
