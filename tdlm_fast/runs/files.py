"""Write files of a run so that each is whole or absent, and read its JSON files."""

import json
import math
import os
import stat
from pathlib import Path

from .. import config as settings

LAST, BEST = Path("checkpoints") / "last.safetensors", Path("checkpoints") / "best.safetensors"


def write_beside(path: Path, write) -> None:
    """Call write(temporary path), flush that file, and rename it to path. If anything fails, path stays as it was.

    The file has the mode of the umask; safetensors would make it readable by its owner only.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
        write(beside)
        beside.chmod(mode)
        with open(beside, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def plain(value):
    """Return value as JSON can hold it: nan and inf become None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: dict, indent: int | None = 2) -> None:
    """Write value to path as JSON, whole or not at all; without an indent on one line."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(plain(value), indent=indent, separators=separators, allow_nan=False) + "\n"
    write_beside(path, lambda p: p.write_text(text, encoding="utf-8"))


def unreadable(file: Path, e: OSError) -> settings.ConfigError:
    """Return the error of a file that is there but cannot be read; it may be sound, so nothing asks to remove it."""
    return settings.ConfigError(f"{file} cannot be read ({e.strerror or e}); see its permissions and its disk")


def figures(file: Path, keys=(), mend: str = "remove it, and it is made again") -> dict:
    """Return what a JSON file of figures holds, {} if the file is missing.

    Raises ConfigError, which ends with `mend`, where the file is damaged or one of `keys` is missing.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if missing := [k for k in keys if k not in content]:
            raise ValueError(f"no {', '.join(missing)}")
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise unreadable(file, e) from None
    except ValueError as e:
        raise settings.ConfigError(f"{file} is damaged ({e}); {mend}") from None
    return content
