"""Files of a run that are whole or absent: written beside, flushed, then renamed."""

import json
import math
import os
from pathlib import Path

from .. import config as settings

LAST, BEST = Path("checkpoints") / "last.safetensors", Path("checkpoints") / "best.safetensors"


def write_beside(path: Path, write) -> None:
    """write(temporary path), flush it to the disk, then rename it to path; whatever fails, path stays as it was."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        with open(beside, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def plain(value):
    """value as JSON can hold it: a number that is none (nan, inf) becomes None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: dict, indent: int | None = 2) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(plain(value), indent=indent, separators=separators, allow_nan=False) + "\n"
    write_beside(path, lambda p: p.write_text(text, encoding="utf-8"))


def figures(file: Path, keys=(), mend: str = "remove it, and it is made again") -> dict:
    """What a JSON file of figures holds, {} where there is none. Raises ConfigError where it is damaged or lacks keys;
    mend: what then helps."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        if lacks := [k for k in keys if k not in found]:
            raise ValueError(f"no {', '.join(lacks)}")
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise settings.ConfigError(f"{file} is damaged ({e}); {mend}") from None
    return found
