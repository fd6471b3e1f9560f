"""Show texts while they are written: in place on a terminal, else one line a step.

A mask is shown as a block, and the tokens that the step has just written are green. Only the lines that fit the
terminal are shown.
"""

import itertools
import os
import shutil
import time
import unicodedata

BLOCK, DIM, NEW, OFF = "█", "\x1b[2m", "\x1b[1;32m", "\x1b[0m"


def width(c: str) -> int:
    """Return the columns that a character takes in a terminal."""
    return 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1


def visible(text: str, kept: str = "\n\t") -> str:
    """Return text with dots for control characters, which could move the cursor, except those that are kept."""
    return "".join(c if c in kept or c.isprintable() or unicodedata.category(c) == "Zs" else "·" for c in text)


def runs(tokenizer, ids: list[int], before: list[int] | None, mask_token_id: int) -> list[tuple[str, str]]:
    """Cut ids into (style, text) of equal style."""
    out = []

    def style(j):
        if ids[j] == mask_token_id:
            return DIM
        return NEW if before is not None and (j >= len(before) or before[j] != ids[j]) else ""

    for kind, places in itertools.groupby(range(len(ids)), style):
        same = [ids[i] for i in places]
        text = BLOCK * len(same) if kind == DIM else tokenizer.decode(same)
        out.append((kind, visible(text, "\n")))
    return out


def wrapped(parts: list[tuple[str, str]], columns: int, colour: bool) -> list[str]:
    """Wrap parts into lines of at most that many columns, each with its styles closed at its end."""
    lines, line, used = [], "", 0
    for kind, text in parts:
        kind = kind if colour else ""
        line += kind
        for c in text:
            if c == "\n" or used + width(c) > columns:
                lines.append(line + (OFF if kind else ""))
                line, used = kind, 0
            if c != "\n":
                line, used = line + c, used + width(c)
        line += OFF if kind else ""
    return [*lines, line]


class Screen:
    """Show x (B, n) when called after a step, for `seconds` on a terminal; `spent` adds up the time that this takes."""

    def __init__(self, tokenizer, mask_token_id: int, stream, seconds: float = 0.1):
        self.tokenizer, self.mask, self.stream, self.seconds = tokenizer, mask_token_id, stream, seconds
        self.live = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.colour = self.live and "NO_COLOR" not in os.environ
        self.before, self.height, self.step, self.spent = None, 0, 0, 0.0

    def __call__(self, x) -> None:
        started, rows = time.perf_counter(), x.tolist()
        self.step += 1
        before = self.before or [None] * len(rows)
        texts = [runs(self.tokenizer, ids, old, self.mask) for ids, old in zip(rows, before, strict=True)]
        if self.live:
            columns, most = shutil.get_terminal_size()
            lines = [f"step {self.step}"]
            for i, parts in enumerate(texts):
                lines += [f"text {i + 1}"] * (len(texts) > 1) + wrapped(parts, columns - 1, self.colour)
            lines = lines[: max(1, most - 1)]
            self.stream.write(self.erase() + "\n".join(lines) + "\n")
            self.height = len(lines)
        else:
            for parts in texts:
                text = "".join(t for _, t in parts).replace("\n", "⏎")
                self.stream.write(f"step {self.step}: {text}\n")
        self.stream.flush()
        self.before = rows
        if self.live:
            time.sleep(max(0.0, self.seconds - (time.perf_counter() - started)))
        self.spent += time.perf_counter() - started

    def erase(self) -> str:
        """Return the codes that remove the text from the terminal."""
        return f"\x1b[{self.height}F\x1b[J" if self.height else ""

    def close(self) -> None:
        self.stream.write(self.erase())
        self.stream.flush()
        self.height = 0
