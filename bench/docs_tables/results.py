"""Read bench/results, and lay out rows as a Markdown table."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"
OBJECTIVES = ("diffusion", "autoregressive")


def read(name: str) -> dict:
    """The figures of a file, without the seal that a comparison ends with."""
    content = json.loads((RESULTS / name).read_text())
    content.pop("sha256", None)
    return content


def table(*rows: list[str] | tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
