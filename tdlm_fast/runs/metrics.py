"""Read the figures of a run: summary.json and metrics.jsonl."""

import json
from pathlib import Path

from ..cli import command
from .files import LAST, figures, unreadable

# What a comparison reads of a summary.
REPORTED = (
    "finished", "test", "corpus", "corpus_hash", "note", "steps", "best_step", "seconds", "parameters",
    "parameters_by_part", "device", "versions",
)  # fmt: skip


def summary_of(folder: Path) -> dict:
    """Return the summary of a run, finished or not, {} if it is missing. Raises ConfigError where it is damaged."""
    resume, last = command("train", "CONFIG", "--resume"), (folder / LAST).is_file()
    mend = f"remove it, and {resume} makes it again" if last else f"restore it: without {LAST} it cannot be made again"
    return figures(folder / "summary.json", REPORTED, mend)


def finished(folder: Path) -> dict | None:
    """Return the summary of a finished run, else None. A damaged summary counts as missing, an unreadable one not."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except PermissionError as e:
        raise unreadable(folder / "summary.json", e) from None
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary.get("finished") and "test" in summary else None


def entries(file: Path) -> tuple[list[dict], int]:
    """Return the entries of a metrics.jsonl and the number of damaged lines (not a JSON object with a step)."""
    try:
        whole, lines = [], file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    except OSError as e:
        raise unreadable(file, e) from None
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            whole.append(entry)
    return whole, len(lines) - len(whole)
