"""tokenizer.json of a run folder: the tokens that a run learned (data.tokenizer=bpe-N), in hex, in the order of their
ids. A run is read and resumed with these. Other tokenizers are known by their names, and have no such file.
"""

from pathlib import Path

from ..config import Config, ConfigError
from ..data.tokenizer import TOKENIZERS, Learned, Tokenizer
from .files import figures, write_figures

FILE = "tokenizer.json"


def keep(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokens of a learned tokenizer to a run folder; do nothing for another one."""
    if isinstance(tokenizer, Learned):
        write_figures(folder / FILE, {"tokens": [token.hex() for token in tokenizer.tokens()]}, indent=None)


def kept(folder: Path, config: Config) -> Learned | None:
    """Return the tokenizer that a run learned, None where its folder holds none. Raises ConfigError if damaged."""
    n = config.data.learned_tokens
    held = figures(folder / FILE, ("tokens",), "restore a copy of it") if n else {}
    if not held:
        return None
    try:
        tokens = [bytes.fromhex(token) for token in held["tokens"]]
        if len(set(tokens)) != n or not {bytes([b]) for b in range(256)} <= set(tokens):
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(f"{folder / FILE} does not hold the {n} tokens of bpe-{n}; restore a copy of it") from None
    return Learned(tokens)


def tokenizer_of(folder: Path, config: Config) -> Tokenizer:
    """Return the tokenizer of a run that exists. Raises ConfigError where its file is missing or damaged."""
    if not config.data.learned_tokens:
        return TOKENIZERS[config.data.tokenizer]()
    tokenizer = kept(folder, config)
    if tokenizer is None:
        raise ConfigError(f"{folder / FILE} is missing, which holds the tokens of this run; restore a copy of it")
    return tokenizer
