"""A corpus as rows of tokens: all tokens (N,), and the start and length of each row.

    packed       the stream of tokens cut into rows of T, no padding
    paragraphs   a paragraph a row, without the white space around it, truncated or padded to T
    published    a line a row with the white space around it, truncated or padded to T (TDLM v1.2)

Every token of an evaluation split is in at most one row: tokens past T of a line are in none.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError, Data
from ..kernels.philox import STREAM_BATCH, random_words
from .bpe import learned
from .documents import lines
from .sources import text_hash, texts
from .token_cache import cached_tokens
from .tokenizer import TOKENIZERS, Tokenizer

SHUFFLE = 20260  # seed of the order of rows from which data.unique_tokens takes the first


@dataclass(frozen=True)
class Split:
    """The rows of one split: tokens (N,) uint16 or uint32, and lengths (R,) int64, the tokens of each row."""

    tokens: np.ndarray
    lengths: np.ndarray
    seq_len: int
    padded: bool  # rows differ in length
    starts: np.ndarray  # (R,) where each row starts
    bytes: int  # UTF-8 bytes of the tokens in the rows; 0 where they are letters of a source, not text
    words: int | None  # words and line ends of the text, where the rows hold all of it

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def scored(self) -> int:
        """Tokens in the rows."""
        return int(self.lengths.sum())

    def rows(self, index: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor | None]:
        """Return x0 (B, T) int64 and valid (B, T) bool, None if every row is full. Padding holds token 0."""
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
    note: str  # why it is another corpus than asked for, or ""
    tokenizer: Tokenizer
    splits: dict[str, Split]
    hash: str  # of the text of all splits

    @property
    def owner(self) -> dict[str, str]:
        """What a checkpoint records of its text: the hash, and that of a tokenizer that was learned from it."""
        return {"corpus_hash": self.hash} | ({"tokenizer_hash": self.tokenizer.hash} if self.tokenizer.hash else {})


def split_rows(arrays, text: str, layout: str, seq_len: int, tokenizer) -> Split:
    tokens = arrays["tokens"]
    if layout == "packed":
        starts = np.arange(0, len(tokens), seq_len)
        lengths = np.minimum(seq_len, len(tokens) - starts)
        words = len(text.split()) + len(lines(text))  # a line end counts as a word, as in WikiText's published counts
    else:
        full = arrays["lengths"]
        starts, lengths, words = np.cumsum(full) - full, np.minimum(full, seq_len), None
    size = np.array(tokenizer.token_bytes(), dtype=np.int64)[tokens]
    total = np.concatenate([[0], np.cumsum(size)])
    scored_bytes = int((total[starts + lengths] - total[starts]).sum())
    return Split(tokens, lengths, seq_len, layout != "packed", starts, scored_bytes, words)


def unique(split: Split, most: int, tokenizer) -> Split:
    """Return the rows of a training split that come first in one shuffle of them, with at most `most` tokens.

    The shuffle is the same for every seed of a run, so fewer tokens are always a part of more tokens. Raises
    ConfigError where the split holds fewer than `most`, or its first row more.
    """
    words = random_words(torch.arange(len(split)), seed=SHUFFLE, step=0, stream=STREAM_BATCH)
    order = torch.argsort(words, stable=True).numpy()
    if not split.padded:  # the last row, which may not be full, is never trained on
        order = order[split.lengths[order] == split.seq_len]
    ends = np.cumsum(split.lengths[order])
    if not len(ends) or most > ends[-1] or most < ends[0]:
        least, all_of_them = (int(ends[0]), int(ends[-1])) if len(ends) else (0, 0)
        held = f"the training split holds {all_of_them:,} tokens in rows of {least:,} and more"
        raise ConfigError(f"data.unique_tokens is {most:,}; {held}, so give {least} to {all_of_them}, or 0 for all")
    order = order[: np.searchsorted(ends, most, "right")]
    lengths = split.lengths[order]
    starts = np.cumsum(lengths) - lengths
    tokens = split.tokens[np.repeat(split.starts[order] - starts, lengths) + np.arange(lengths.sum())]
    size = np.array(tokenizer.token_bytes(), dtype=np.int64)[tokens]
    return Split(tokens, lengths, split.seq_len, split.padded, starts, int(size.sum()), None)


def load(config: Data, seq_len: int, used: str | None = None, tokenizer: Tokenizer | None = None) -> Corpus:
    """Return the corpus of a config, tokenized; `used` as in sources.texts. Raises ConfigError.

    tokenizer: the one that a run learned; None takes the config's, and learns it from the training split if need be.
    """
    name, note, parts = texts(config, used)
    if note:
        print(f"NOTE: {note}", file=sys.stderr)
    if tokenizer is None:
        n = config.learned_tokens
        tokenizer = learned(n, parts["train"], Path(config.cache)) if n else TOKENIZERS[config.tokenizer]()
    splits = {}
    for s, text in parts.items():
        arrays = cached_tokens(text, config.layout, tokenizer, Path(config.cache))
        splits[s] = split_rows(arrays, text, config.layout, seq_len, tokenizer)
        if not len(splits[s]):
            way = "give it text, or one file, which is split into three"
            raise ConfigError(f"the {s} split of {name} holds no row of text in data.layout={config.layout}; {way}")
    if config.unique_tokens:
        splits["train"] = unique(splits["train"], config.unique_tokens, tokenizer)
    if config.markov_order:
        splits = {s: replace(split, bytes=0, words=None) for s, split in splits.items()}
    return Corpus(name, note, tokenizer, splits, text_hash(parts))
