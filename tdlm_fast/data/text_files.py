"""List the files of text in a folder, and the split that each belongs to by its name.

Links are followed. Names that begin with a dot are left out, because editors and systems write such files. Folders that
a run or a comparison wrote are left out too.
"""

import os
import re
import sys
from pathlib import Path

from ..config import ConfigError
from .documents import OTHERS, TABLES, TEXTS

SPLITS = ("train", "valid", "test")
NAMES = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test"}
MOST_FOLDERS = 100_000  # links that lead to a folder on many ways would multiply


def _is_output(names: set[str]) -> bool:
    """Return whether a folder with these names was written by a run or a comparison."""
    run = "config.yaml" in names and names & {"metrics.jsonl", "checkpoints"}
    return bool(run) or {"compare.json", "report.md"} <= names


def _walk(top: Path) -> tuple[list[Path], list[Path]]:
    """Return (files that a dot does not hide, folders that runs wrote). A link to a folder above it is not followed."""
    parents = [os.stat(folder) for folder in top.resolve().parents]
    files, outputs, seen = [], [], 0
    left = [(top, frozenset((status.st_dev, status.st_ino) for status in parents))]
    while left:
        folder, above = left.pop()
        seen += 1
        if seen > MOST_FOLDERS:
            raise ConfigError(f"data.path: {top} holds more than {MOST_FOLDERS:,} folders, links included")
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
            status = os.stat(folder)
        except OSError as e:
            raise ConfigError(f"data.path: {folder} cannot be read ({e.strerror})") from None
        place = (status.st_dev, status.st_ino)
        if place in above:
            continue
        if _is_output({entry.name for entry in inside}):
            outputs.append(folder)
            continue
        for entry in inside:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if os.path.isdir(path):
                left.append((path, above | {place}))
            elif os.path.isfile(path):
                files.append(path)
            elif entry.is_symlink() and (path.suffix.lower() in TEXTS + TABLES or path.stem.lower() in NAMES):
                raise ConfigError(f"data.path: {path} is a link to {os.readlink(path)}, which does not exist")
    return sorted(files), sorted(outputs)


def split_of(file: Path) -> str | None:
    """Return the split of a file in a folder, named by a folder above it or by its own first or last word."""
    for part in file.parts[:-1]:
        if part.lower() in NAMES:
            return NAMES[part.lower()]
    words = [w for w in re.split(r"[^a-z]+", file.stem.lower()) if w and w != "of"]  # train-00000-of-00002
    splits = {NAMES[w] for w in (words[:1] + words[-1:]) if w in NAMES}
    if len(splits) > 1:
        raise ConfigError(f"data.path: {file} could be {' or '.join(sorted(splits))}; rename it")
    return next(iter(splits), None)


def _listed(files: list[Path], top: Path) -> str:
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return ", ".join(str(f.relative_to(top)) for f in files[:5]) + more


def files_of(top: Path) -> dict[str | None, list[Path]]:
    """Return {split: its files}, or {None: all files} of a folder without splits. Raises ConfigError.

    Plain text comes first: a table is read only where a split, or a folder without splits, has no file of text.
    """
    found, outputs = _walk(top)
    if outputs:
        print(f"NOTE: {top}: folders of runs are left out: {_listed(outputs, top)}", file=sys.stderr)
    groups: dict[str | None, list[Path]] = {}
    tables: dict[str | None, list[Path]] = {}
    for f in found:
        kind = f.suffix.lower()
        if kind in TEXTS + TABLES or kind in OTHERS and f.stem.lower() in NAMES:
            (groups if kind in TEXTS else tables).setdefault(split_of(f.relative_to(top)), []).append(f)
    if not groups or groups.keys() & set(SPLITS):
        groups |= {split: tables.pop(split) for split in SPLITS if split not in groups and split in tables}
    if not groups and tables:
        groups = {None: tables.pop(None)}
    if not groups:
        kinds = ", ".join(TEXTS + TABLES)
        run = " outside of runs" if outputs else ""
        raise ConfigError(f"data.path: {top} holds no file{run} that ends in {kinds}")
    named = groups.keys() & set(SPLITS)
    left = sorted(f for files in tables.values() for f in files)
    if named:
        left = sorted([*groups.pop(None, []), *left])
    if left:
        why = "has splits; files of no split are left out" if named else "holds plain text; tables are left out"
        print(f"NOTE: {top} {why}: {_listed(left, top)}", file=sys.stderr)
    return groups
