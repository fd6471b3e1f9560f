"""Write files of a run so that each is whole or absent, and read its JSON files.

A file of figures ends with "sha256" of all it holds, and a line of kept parts with its "crc32", so that no figure in
them can change unnoticed.
"""

import hashlib
import json
import math
import os
import re
import stat
import zlib
from pathlib import Path

from .. import config as settings

LAST, BEST = Path("checkpoints") / "last.safetensors", Path("checkpoints") / "best.safetensors"


def kept_checkpoint(step: int) -> Path:
    """Return the place of the checkpoint of a step that is kept (train.keep_at), in its run folder."""
    return LAST.with_name(f"step-{step}.safetensors")


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


def seal(value: dict) -> str:
    """Return the SHA-256 of a dict as JSON writes it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_figures(path: Path, value: dict, indent: int | None = 2) -> None:
    """Write value and its seal to path, as write_json does; `figures` reads it."""
    value = json.loads(json.dumps(plain(value)))  # as it will be read
    write_json(path, value | {"sha256": seal(value)}, indent)


def parse(text: str | bytes):
    """Return what JSON text holds. Raises ValueError, also where it is nested too deep for Python."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def line(value: dict) -> str:
    """Return a line of a .jsonl file: value as JSON, and the CRC-32 of its text."""
    text = json.dumps(plain(value), allow_nan=False)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'


def read_line(text: str | bytes) -> dict:
    """Return what a line holds. Raises ValueError where it is damaged; lines of older versions have no checksum."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if value.pop("crc32", None) not in (None, zlib.crc32(json.dumps(value).encode())):
        raise ValueError("it does not match its checksum")
    return value


def unreadable(file: Path, e: OSError) -> settings.ConfigError:
    """Return the error of a file that is there but cannot be read; it may be sound, so nothing asks to remove it."""
    return settings.ConfigError(f"{file} cannot be read ({e.strerror or e}); see its permissions and its disk")


def matches(figures, wanted: dict) -> bool:
    """Return whether what a file holds is a dict of figures whose "key" has all that is wanted."""
    key = figures.get("key") if isinstance(figures, dict) else None
    return isinstance(key, dict) and wanted.items() <= key.items()


def figures(file: Path, keys=(), mend: str = "remove it, and it is made again", *, as_written: bool = True) -> dict:
    """Return what a JSON file of figures holds, {} if the file is missing.

    Raises ConfigError, which ends with `mend`, where the file is damaged or lacks one of `keys`. With `as_written` it
    does so too where the file does not match its seal. Older files have no seal.
    """
    try:
        if file.is_fifo():
            raise ValueError("it is a pipe")
        content = parse(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if missing := [k for k in keys if k not in content]:
            raise ValueError(f"no {', '.join(missing)}")
        sealed, last = content.pop("sha256", None), next(reversed(content), "")
        renamed = sealed is None and re.fullmatch(
            "[0-9a-f]{64}", str(content.get(last))
        )  # damage in the seal's own name
        if as_written and (renamed or sealed not in (None, seal(content))):
            raise ValueError("its contents do not match its checksum")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as e:
        raise unreadable(file, e) from None
    except ValueError as e:
        raise settings.ConfigError(f"{file} is damaged ({e}); {mend}") from None
    return content
