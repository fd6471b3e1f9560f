"""A plan of runs: a grid over sizes, unique tokens, epochs, arms and seeds, each point of which is a cell.

    base: configs/tiny.yaml                    from here, or beside the plan
    keys: {optim.schedule: constant}           of every cell
    cells:
      sizes: [0.1M, 0.75M]                     model.size; left out: the shape of base
      unique_tokens: [50000, 100000]           data.unique_tokens; left out: all
      epochs: [64]
      seeds: [42, 43, 44]
      arms:
        diffusion: {objective: diffusion}
        plain: {objective: autoregressive}

A cell is a run folder whose name is a hash of the keys that decide its numbers, so a plan that grows keeps its runs.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from .. import config as settings
from ..comparison.arms import OBJECTIVES
from ..comparison.runner import keys_of
from ..runs.files import figures, write_beside, write_figures
from ..yaml_file import YamlError, read_settings

AXES = ("sizes", "unique_tokens", "epochs", "seeds")
# Evaluations of the first epoch, for the statement on immediate dominance, and nothing that a report does not read.
QUIET = {"eval.early": "10,20,50,100,200", "eval.published": "0", "eval.probe": "0", "eval.text": "0"}
FREE = ("run.", "device", "data.cache", "train.log_every", "train.save_every", "train.capture", "eval.batch_size")
MOST_CELLS = 10_000
OWNED = {  # the keys of a cell's place, and what sets them
    "seed": "cells.seeds", "train.epochs": "cells.epochs", "train.max_steps": "cells.epochs",
    "data.unique_tokens": "cells.unique_tokens", "model.size": "cells.sizes", "run.dir": "the sweep",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run: where it lies on the axes, and its config."""

    size: str
    unique_tokens: int
    epochs: float
    arm: str
    seed: int
    config: settings.Config

    @property
    def name(self) -> str:
        """A hash of the keys that decide the numbers and are not a default, so that a new key changes no name."""
        defaults = {k: f.default for k, f in settings.fields().items() if not k.startswith(FREE)}
        flat = settings.flatten(self.config)
        text = json.dumps({k: flat[k] for k in defaults if flat[k] != defaults[k]}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        parts = (self.size or "base", f"U={self.unique_tokens or 'all'}", f"E={self.epochs:g}", self.arm)
        return " ".join((*parts, f"seed {self.seed}"))


def read(file: Path) -> list[Cell]:
    """Return the cells of a plan, in the order of its axes. Raises ConfigError, which names the file and the key."""
    try:
        found = {key: value for key, (value, _) in read_settings(file).items()}
    except YamlError as e:
        raise settings.ConfigError(f"{file}: {e}") from None
    except OSError as e:
        raise settings.ConfigError(f"{file}: {e.strerror or e}; give the YAML file of a plan") from None
    try:
        return _cells(file, found)
    except settings.ConfigError as e:
        raise settings.ConfigError(f"{file}: {e}") from None


def _cells(file: Path, found: dict) -> list[Cell]:
    axes = {name: found.pop(f"cells.{name}", None) for name in AXES}
    base, keys, arms = found.pop("base", None), dict(QUIET), {}
    for key, value in found.items():
        head, _, rest = key.partition(".")
        arm, _, of_arm = rest.removeprefix("arms.").partition(".")
        if head == "keys" and rest:
            keys[rest] = str(value)
        elif key.startswith("cells.arms.") and of_arm:
            arms.setdefault(arm, {})[of_arm] = str(value)
        else:
            known = f"base, keys, and cells with {', '.join(AXES)} and arms"
            raise settings.ConfigError(f"unknown key {key}; a plan has {known}")
    if not isinstance(base, str):
        raise settings.ConfigError("base is missing; give a YAML file, as base: configs/tiny.yaml")
    if not arms:
        raise settings.ConfigError("cells.arms is missing; give it as arms: {diffusion: {objective: diffusion}, …}")
    start = next((p for p in (Path(base), file.parent / base) if p.is_file()), Path(base))
    defaults = settings.load(start)
    values = {name: _axis(name, axes[name]) for name in AXES}
    sizes, tokens = values["sizes"] or [""], values["unique_tokens"] or [0]
    epochs, seeds = values["epochs"] or [defaults.train.epochs], values["seeds"] or [defaults.seed]
    grid = list(itertools.product(seeds, sizes, tokens, epochs, arms.items()))
    if len(grid) > MOST_CELLS:
        raise settings.ConfigError(f"cells: {len(grid):,} are more than {MOST_CELLS:,}; shorten an axis")
    cells: dict[str, Cell] = {}
    for seed, size, unique, length, (arm, own) in grid:
        point = {"seed": seed, "train.epochs": length, "train.max_steps": 0, "data.unique_tokens": unique}
        point |= {"model.size": size} if size else {}
        for place, held in (("keys", keys), (f"cells.arms.{arm}", own)):
            for key in OWNED.keys() & held.keys():
                raise settings.ConfigError(f"{place}.{key} is set for every cell by {OWNED[key]}; leave it out there")
        words = keys_of(start, [f"{k}={v}" for k, v in (keys | point | own).items()])
        cell = Cell(str(size), int(unique), float(length), arm, int(seed), settings.load(start, words))
        if twin := cells.get(cell.name):
            raise settings.ConfigError(f"cells.arms: {cell.title} and {twin.title} have the same settings")
        cells[cell.name] = cell
    return list(cells.values())


def _axis(name: str, value) -> list | None:
    if value is None:
        return None
    listed = value if isinstance(value, list) else [value]
    if not listed or any(isinstance(v, dict | list | bool) or v is None for v in listed):
        raise settings.ConfigError(f"cells.{name} is {value!r}; it must be a list of values")
    try:
        kind = {"sizes": str, "unique_tokens": int, "epochs": float, "seeds": int}[name]
        return [kind(v) for v in listed]
    except ValueError:
        raise settings.ConfigError(f"cells.{name} is {value!r}; it must be a list of numbers") from None


def store(cells: list[Cell], out: Path) -> None:
    """Write sweep.json and the config of each cell into out. Cells of an earlier plan stay on the disk."""
    (out / "configs").mkdir(parents=True, exist_ok=True)
    for cell in cells:
        write_beside(out / "configs" / f"{cell.name}.yaml", lambda p, c=cell: settings.save(c.config, p))
    axes = ("size", "unique_tokens", "epochs", "arm", "seed")
    write_figures(out / "sweep.json", {"cells": [{k: getattr(c, k) for k in axes} | {"name": c.name} for c in cells]})


def stored(out: Path) -> list[Cell]:
    """Return the cells of a sweep's folder. Raises ConfigError where it is not one."""
    kept = figures(out / "sweep.json", ("cells",), "start the sweep again from its plan")
    if not kept:
        raise settings.ConfigError(f"{out} holds no sweep; start one with python -m tdlm_fast.sweep PLAN.yaml")
    cells = []
    for entry in kept["cells"]:
        config = settings.load(out / "configs" / f"{entry['name']}.yaml")
        cell = Cell(**{k: v for k, v in entry.items() if k != "name"}, config=config)
        if cell.name != entry["name"]:
            raise settings.ConfigError(
                f"{out}: the config of cell {entry['name']} was changed; start again from the plan"
            )
        cells.append(cell)
    return cells


def objective_of(cell: Cell) -> str:
    """Return the objective of a cell, one of OBJECTIVES."""
    assert cell.config.objective in OBJECTIVES
    return cell.config.objective
