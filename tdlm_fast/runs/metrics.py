"""Read the figures of a run: summary.json and metrics.jsonl."""

import contextlib
import hashlib
from pathlib import Path

from .. import config as settings
from ..cli import command
from .files import LAST, figures, parse, unreadable

# What a comparison reads of a summary.
REPORTED = (
    "finished", "test", "corpus", "corpus_hash", "note", "steps", "best_step", "seconds", "parameters",
    "parameters_by_part", "device", "versions",
)  # fmt: skip


PRINTED = ("valid", "tokens_per_s", "peak_memory_mb")  # what `train` prints besides
SCORE = ("nats_per_token", "stderr", "samples", "ppl", "bits_per_byte", "bound")  # of "valid" and "test"


def summary_of(folder: Path, as_written: bool = True) -> dict:
    """Return the summary of a run, finished or not, {} if it is missing.

    Raises ConfigError where it is damaged, or with `as_written` was changed after it was written.
    """
    resume, last = command("train", "CONFIG", "--resume"), (folder / LAST).is_file()
    mend = f"remove it, and {resume} makes it again" if last else f"restore it: without {LAST} it cannot be made again"
    file = folder / "summary.json"
    summary = figures(file, (*REPORTED, *PRINTED), mend, as_written=as_written)
    for name in ("valid", "test") if summary else ():
        if not isinstance(summary[name], dict) or any(k not in summary[name] for k in SCORE):
            raise settings.ConfigError(f"{file} is damaged (no score of the {name} split); {mend}")
    return summary


def finished(folder: Path, remake: bool = False) -> dict | None:
    """Return the summary of a finished run, else None.

    Raises ConfigError where it cannot be read or is damaged; with `remake` a damaged one counts as missing.
    """
    file = folder / "summary.json"
    if remake and file.is_dir():
        return None
    try:
        summary = summary_of(folder)
    except settings.ConfigError:
        with contextlib.suppress(OSError), open(file, "rb"):
            if remake:
                return None
        raise
    return summary if summary.get("finished") else None


def sha256(file: Path) -> str | None:
    """Return the SHA-256 of a file, None if there is none. Raises ConfigError where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    except OSError as e:
        raise unreadable(file, e) from None


def as_written(folder: Path, summary: dict, name: str = "metrics.jsonl") -> bool:
    """Return whether metrics.jsonl or samples.txt is what the run of this summary wrote. Old ones tell nothing."""
    return summary.get(f"{Path(name).stem}_sha256") in (None, sha256(folder / name))


def entries(file: Path) -> tuple[list[dict], int]:
    """Return the entries of a metrics.jsonl and the number of damaged lines."""
    try:
        return parsed(file.read_bytes() if file.is_file() else b"")
    except OSError as e:
        raise unreadable(file, e) from None


def parsed(content: bytes) -> tuple[list[dict], int]:
    """Return the entries of the content of a metrics.jsonl and the number of damaged lines."""
    whole, lines = [], content.decode("utf-8", errors="replace").splitlines()
    for text in lines:
        try:
            entry = parse(text)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            whole.append(entry)
    return whole, len(lines) - len(whole)
