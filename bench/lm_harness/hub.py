"""Lay out evaluation sets and corpora on disk as the Hub does, so that `datasets` reads them without a network.

`datasets.load_dataset("owner/name")` reads a folder ./owner/name of that layout where there is one: parquet files, and
a card (README.md) whose front matter names configs and splits.
"""

import contextlib
import os
from pathlib import Path

import datasets
import yaml

from tdlm_fast.config import ConfigError
from tdlm_fast.evaluation import tasks

# The harness's task files name one more split, for examples in the context; it is not used here.
FEW_SHOT = {"hellaswag": "train", "arc_easy": "train", "piqa": "train", "mmlu": "dev", "mmlu_text": "dev"}


def lay_out(folder: Path, repo: str, configs: dict[str, dict[str, datasets.Dataset]]) -> None:
    """Write configs, {config: {split: rows}}, to folder/repo."""
    card = []
    for config, splits in configs.items():
        (folder / repo / config).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            rows.to_parquet(folder / repo / config / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        card.append({"config_name": config, "data_files": files})
    text = yaml.safe_dump({"configs": card}, sort_keys=False)
    (folder / repo / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")


def lay_out_task(name: str, data: Path, folder: Path) -> None:
    """Write a task's local files to folder/owner/name, one config per group. Raises ConfigError if one is missing."""
    task, groups = tasks.TASKS[name], {}
    repo, config, split = task.hub
    try:
        for row in task.local(data):
            groups.setdefault(task.question(row).group or config or "default", []).append(row)
    except FileNotFoundError as e:
        raise ConfigError(f"--data: {e.filename or e} is missing; {name} needs {task.files}") from None
    configs = {}
    for group, rows in groups.items():
        table = datasets.Dataset.from_list(rows)
        configs[group] = {split: table} | ({FEW_SHOT[name]: table.select([0])} if name in FEW_SHOT else {})
    lay_out(folder, repo, configs)


@contextlib.contextmanager
def inside(folder: Path):
    """Make it the current folder, with the cache of `datasets` in it, while inside."""
    before, cache = Path.cwd(), datasets.config.HF_DATASETS_CACHE
    datasets.disable_progress_bars()
    try:
        os.chdir(folder)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        yield
    finally:
        os.chdir(before)
        datasets.config.HF_DATASETS_CACHE = cache
