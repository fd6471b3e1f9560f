"""The figures of a run on disk: summary.json and metrics.jsonl."""

import json
from pathlib import Path

from ..cli import command
from .files import LAST, figures

REPORTED = (
    "finished",
    "test",
    "corpus",
    "corpus_hash",
    "note",
    "steps",
    "best_step",
    "seconds",
    "parameters",
    "parameters_by_part",
    "device",
    "versions",
)  # what compare reads of a summary


def summary_of(folder: Path) -> dict:
    """The summary of a run, finished or not, {} where there is none. Raises ConfigError where it is damaged."""
    again, last = command("train", "CONFIG", "--resume"), (folder / LAST).is_file()
    mend = f"remove it, and {again} makes it again" if last else f"restore it: without {LAST} it cannot be made again"
    return figures(folder / "summary.json", REPORTED, mend)


def finished(folder: Path) -> dict | None:
    """The summary of a run that came to its end, else None; one that is cut short is as good as none."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary.get("finished") and "test" in summary else None


def entries(file: Path) -> tuple[list[dict], int]:
    """The lines of a metrics.jsonl, and how many are damaged (cut short, or no JSON object with a step)."""
    found, lines = [], file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found, len(lines) - len(found)
