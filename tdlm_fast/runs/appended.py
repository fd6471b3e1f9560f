"""metrics.jsonl and samples.txt: files that a run appends to. A checkpoint keeps what they held when it was written.

    "written"   {file name: {"bytes": length, "sha256": of these bytes}}, in a checkpoint's state

A resumed run cuts each file to that length and writes the later lines again. So no line can be lost, doubled or changed
unnoticed, whenever the process was killed.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from ..config import ConfigError
from .files import unreadable, write_beside
from .metrics import parsed


class Appended:
    """One of the files, of a new run, or with the state of a checkpoint as it was then. `begin` writes it.

    Raises ConfigError where it does not hold what the run had written.
    """

    def __init__(self, path: Path, state: dict | None = None):
        self.path = path
        self.head = _held(path, state) if state else b""
        self.sha, self.bytes = hashlib.sha256(self.head), len(self.head)

    def begin(self) -> None:
        """Cut the file to what is resumed, nothing for a new run."""
        write_beside(self.path, lambda p: p.write_bytes(self.head))
        self.head = b""

    def append(self, text: str) -> None:
        """Write text behind what is there. Raises OSError."""
        data = text.encode()
        with open(self.path, "ab") as f:
            f.write(data)
        self.sha.update(data)
        self.bytes += len(data)

    def mark(self) -> dict:
        """Return {"bytes", "sha256"} of what the run has written, when it is on the disk."""
        if self.path.is_file():
            with open(self.path, "rb+") as f:
                os.fsync(f.fileno())
        return {"bytes": self.bytes, "sha256": self.sha.hexdigest()}


def _held(path: Path, state: dict) -> bytes:
    """Return what a file held when a checkpoint with this state was written, without an evaluation to be repeated."""
    mark = state.get("written", {}).get(path.name)  # versions up to 0.2.0 kept none
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if mark and mark["bytes"]:
            print(f"{path} is missing: what it held up to step {state['step']} is lost", file=sys.stderr)
        return b""
    except OSError as e:
        raise unreadable(path, e) from None
    if mark:
        content = content[: mark["bytes"]]
        if hashlib.sha256(content).hexdigest() != mark["sha256"]:
            lost = "cut short" if len(content) < mark["bytes"] else "changed"
            fix = "restore it, or move it away, and --resume continues without these lines; the checkpoints are intact"
            raise ConfigError(f"{path} was {lost} after the run had written it, up to step {state['step']}; {fix}")
    return _until(path, content, state["step"], state.get("evaluated"))


def _until(path: Path, content: bytes, step: int, evaluated: int | None) -> bytes:
    """Return the lines of a file, known by their steps, that a run resumed at `step` does not write again.

    `evaluated` is the step of its last evaluation. Damaged lines are dropped.
    """
    if path.name == "metrics.jsonl":
        lines, damaged = parsed(content)
        if damaged:
            print(f"{path}: {damaged} damaged line{'s' * (damaged > 1)} dropped", file=sys.stderr)
        held = (e for e in lines if e["step"] < step or e["step"] == step and ("valid" not in e or evaluated == step))
        return "".join(json.dumps(entry) + "\n" for entry in held).encode()
    # as bytes, because a write that was cut short may end inside a character
    parts = re.split(rb"(?m)^(--- step (\d+)\r?\n)", content)
    samples = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    held = b"".join(h + text for h, at, text in samples if int(at) < step or int(at) == step == evaluated)
    return held + b"\n" * bool(held and not held.endswith(b"\n"))  # the next heading needs a line of its own
