"""Learn a byte-level BPE of N tokens from a training split, and from nothing else.

From the 256 bytes on, the most frequent pair of neighbouring tokens inside a word becomes a token, until there are N
(Sennrich et al. 2016, arXiv 1508.07909; on bytes and with the words of GPT-2: Radford et al. 2019). The package
`tokenizers` counts and merges. It breaks ties by the ids of the pair, so the same text gives the same tokens.
"""

from pathlib import Path

import numpy as np

from ..config import ConfigError
from .token_cache import cached_arrays, pieces
from .tokenizer import Learned, letters

FORMAT = 1  # of the cache file: another one where a text becomes other tokens
LONGEST = 256  # bytes of a word that are counted together: merging takes the square of a word's length
TWICE = 2  # pairs that stand only once become no token


def learn(text: str, n: int) -> list[bytes]:
    """Return the n tokens of a text in the order of their ids. Raises ConfigError where it has too few pairs."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise ConfigError(f"data.tokenizer=bpe-{n} needs the package tokenizers: pip install tokenizers") from None
    bpe, words = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST)])
    trainer = trainers.BpeTrainer(
        vocab_size=n, min_frequency=TWICE, initial_alphabet=list(letters().values()), show_progress=False
    )
    bpe.train_from_iterator(pieces(text, 1 << 16), trainer)
    byte_of = {letter: b for b, letter in letters().items()}
    tokens = [bytes(byte_of[c] for c in token) for token, _ in sorted(bpe.get_vocab().items(), key=lambda t: t[1])]
    if len(tokens) < n:
        least = f"give bpe-{len(tokens)}" if len(tokens) > 256 else "take data.tokenizer=bytes"
        raise ConfigError(f"data.tokenizer=bpe-{n}: the training split gives only {len(tokens)} tokens; {least}")
    return tokens


def learned(n: int, text: str, folder: Path) -> Learned:
    """Return the tokenizer that `learn` makes of a training split, from the cache if it holds it."""

    def make() -> dict[str, np.ndarray]:
        tokens = learn(text, n)
        return {"bytes": np.frombuffer(b"".join(tokens), np.uint8), "lengths": np.array([*map(len, tokens)])}

    arrays = cached_arrays(f"bpe {FORMAT} {n} ", text, make, folder)
    flat, ends = arrays["bytes"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
    return Learned([flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)])
