"""Turn text into tokens, cached by content. A damaged cache file is made again."""

import contextlib
import functools
import hashlib
import os
import re
import sys
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .documents import lines

FORMAT = 2  # of a cache file: another one where a text becomes other tokens
PIECE = 1 << 20  # characters that are encoded together, at least
WORD_END = re.compile(r"\S(?= )")  # no token of GPT-2 reaches over it
HEADING = re.compile(r"^ ?= .+ = ?$")


def _cut(line: str):
    """Yield a line whole, or one longer than PIECE in pieces that end with a word, or anywhere if it has no words."""
    start = 0
    while start < len(line):
        match = WORD_END.search(line, start + PIECE, start + 2 * PIECE)  # none in a line of PIECE or less
        end = match.end() if match else start + 2 * PIECE
        yield line[start:end]
        start = end


def pieces(text: str, least: int = PIECE):
    """Yield a text in pieces of more than `least` characters that end with a line or a long line's word."""
    piece, size = [], 0
    for part in (part for line in lines(text) for part in _cut(line)):
        piece.append(part)
        size += len(part)
        if size > least:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _encode(text: str, tokenizer) -> np.ndarray:
    return np.concatenate([np.asarray(tokenizer.encode(p), dtype=token_dtype(tokenizer)) for p in pieces(text)])


def token_dtype(tokenizer):
    return np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32


def paragraphs(text: str) -> list[str]:
    """Return the lines without the white space around them; blank ones and headings such as "= Title =" are dropped."""
    stripped = [line.strip() for line in lines(text)]
    return [line for line in stripped if line and not HEADING.match(line)]


def published_rows(text: str) -> list[str]:
    """Return the lines as TDLM v1.2 reads them: with the white space around them and their line feed.

    Blank lines are dropped, and every line that begins with "=" once its white space is removed, heading or not.
    """
    return [line for line in lines(text) if line.strip() and not line.strip().startswith("=")]


def tokenize(text: str, layout: str, tokenizer) -> dict[str, np.ndarray]:
    """Return {"tokens": (N,)} of a text, and where a row is a line also {"lengths": (R,) int64}, tokens of each row."""
    if layout == "packed":
        return {"tokens": _encode(text, tokenizer)}
    texts = published_rows(text) if layout == "published" else paragraphs(text)
    rows = [tokenizer.encode(row) if len(row) <= PIECE else _encode(row, tokenizer) for row in texts]
    flat = np.fromiter((t for row in rows for t in row), dtype=token_dtype(tokenizer))
    return {"tokens": flat, "lengths": np.array([len(row) for row in rows], dtype=np.int64)}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for _, a in sorted(arrays.items()))).hexdigest()


@functools.cache  # once for all texts
def _tell_unwritable(folder: Path, why: str) -> None:
    way = "the next run tokenizes again, or set data.cache to a folder that can be written"
    print(f"data.cache: {folder} cannot be written ({why}); {way}", file=sys.stderr)


def cached_tokens(text: str, layout: str, tokenizer, folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of `tokenize`, from the cache if it holds them."""
    how = f"{FORMAT} {layout} {type(tokenizer).__name__}{tokenizer.hash} "
    return cached_arrays(how, text, lambda: tokenize(text, layout, tokenizer), folder)


def cached_arrays(how: str, text: str, make, folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays that make() makes of a text in this way, from the cache if it holds them.

    The cache's files are checked by their SHA-256.
    """
    file = folder / f"{hashlib.sha256(how.encode() + text.encode()).hexdigest()[:32]}.safetensors"
    if file.exists():
        try:
            open(file, "rb").close()
            with safe_open(file, "numpy") as f:
                arrays = {name: f.get_tensor(name) for name in f.keys()}
                if (f.metadata() or {}).get("sha256") == _digest(arrays):
                    return arrays
            raise SafetensorError("its contents do not match its checksum")
        except PermissionError as e:
            print(f"token cache {file} cannot be read ({e.strerror}); the text is tokenized again", file=sys.stderr)
            return make()
        except (SafetensorError, OSError, ValueError) as e:
            print(f"token cache {file} is damaged ({e}); it is rebuilt", file=sys.stderr)
    arrays = make()
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside.touch()
        mode = beside.stat().st_mode & 0o777  # of the umask; safetensors makes it readable by its owner only
        save_file(arrays, beside, {"sha256": _digest(arrays)})
        beside.chmod(mode)
        os.replace(beside, file)
    except (SafetensorError, OSError) as e:
        _tell_unwritable(folder, getattr(e, "strerror", None) or str(e))
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return arrays
