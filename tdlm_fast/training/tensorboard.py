"""Write the figures of a run as events of TensorBoard: `tensorboard --logdir runs`."""

import math
from collections.abc import Iterator
from pathlib import Path

from ..config import Config, ConfigError


def check_tensorboard(config: Config) -> None:
    """Raise ConfigError where run.tensorboard is set and the package is not installed."""
    if config.run.tensorboard:
        try:
            import tensorboard  # noqa: F401
        except ImportError as e:
            fix = "pip install tensorboard, or leave out run.tensorboard"
            raise ConfigError(f"run.tensorboard=true needs the package tensorboard ({e}): {fix}") from None


class Events:
    """Event files in FOLDER/tensorboard, for the steps after `step`; events of later steps from before are hidden."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, figures: dict, step: int) -> None:
        """Write every finite number in figures; the names of nested ones are joined by slashes."""
        for name, value in scalars(figures):
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def scalars(figures: dict, before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{before}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{before}{name}", float(value)
