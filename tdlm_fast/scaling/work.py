"""Train the cells of a sweep. Any number of workers, also on several machines, share one folder.

    cells/NAME/    the run folder of a cell
    claims/NAME/   locked while a worker has the cell; the operating system ends the lock with the worker
    failed/NAME.json, logs/NAME.log   why a cell failed

The run folder has a lock of its own, so no two processes ever train one cell, and a run that was killed is resumed.
"""

import subprocess
import sys
import time
from pathlib import Path

from .. import config as settings
from ..comparison.runner import ends_with_parent
from ..runs.files import figures, write_json
from ..runs.folder import in_use, locked
from ..runs.metrics import entries, finished, summary_of
from .plan import Cell

WAIT_S = 2.0  # between looks at cells that other workers have


def folder_of(out: Path, cell: Cell) -> Path:
    """Return the run folder of a cell."""
    return out / "cells" / cell.name


def failure(out: Path, cell: Cell) -> str:
    """Return why a cell failed, "" where it did not."""
    return figures(out / "failed" / f"{cell.name}.json").get("reason", "")


def state(out: Path, cell: Cell) -> str:
    """Return "done", "failed", "running" or "free"."""
    if finished(folder_of(out, cell), remake=True):
        return "done"
    if failure(out, cell):
        return "failed"
    return "running" if in_use(out / "claims" / cell.name) or in_use(folder_of(out, cell)) else "free"


def work(cells: list[Cell], out: Path, retry: bool = False) -> None:
    """Train every free cell; return when all cells are done or have failed. retry: failed ones are free again."""
    if retry:
        for cell in cells:
            (out / "failed" / f"{cell.name}.json").unlink(missing_ok=True)
    while True:
        free = [cell for cell in cells if state(out, cell) == "free"]
        claimed = [cell for cell in free if _claim(out, cell)]
        if claimed:
            continue
        if not [cell for cell in cells if state(out, cell) in ("free", "running")]:
            return
        time.sleep(WAIT_S)


def _claim(out: Path, cell: Cell) -> bool:
    """Train a cell, unless another worker has it; return whether it was trained or has failed."""
    claim = out / "claims" / cell.name
    if in_use(claim):
        return False
    try:
        with locked(claim):
            if state_inside(out, cell) != "free":  # another worker ended it since
                return False
            print(f"{cell.name}  {cell.title}", file=sys.stderr)
            return _train(out, cell)
    except settings.ConfigError as e:
        if " is in use by " in str(e):
            return False
        raise


def state_inside(out: Path, cell: Cell) -> str:
    """Return the state of a cell whose claim this process holds."""
    if finished(folder_of(out, cell), remake=True):
        return "done"
    return "failed" if failure(out, cell) else "free"


def _train(out: Path, cell: Cell) -> bool:
    """Train a cell in a process of its own; return False where the run folder is in use after all."""
    folder, log = folder_of(out, cell), out / "logs" / f"{cell.name}.log"
    for each in (log.parent, out / "failed"):
        each.mkdir(parents=True, exist_ok=True)
    file = out / "configs" / f"{cell.name}.yaml"
    command = [sys.executable, "-m", "tdlm_fast.train", str(file), f"run.dir={folder}", "--resume"]
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True, preexec_fn=ends_with_parent()
        )  # fmt: skip
        try:
            code = process.wait()
        finally:
            if process.poll() is None:  # the run saves, then ends
                process.terminate()
                process.wait()
    if code == 0:
        return True
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    if " is in use by " in reason:
        return False
    if code in (130, -2, -15):
        raise KeyboardInterrupt
    if code == -9:  # killed, as where the memory is full: the next worker resumes it, once it has saved anything
        reason = reason or "it was killed"
    write_json(out / "failed" / f"{cell.name}.json", {"reason": reason or f"exit code {code}", "code": code})
    print(f"{cell.name}  failed: {reason}", file=sys.stderr)
    return True


def progress(out: Path, cell: Cell) -> dict:
    """Return {"state", "step", "steps", "seconds", "reason"} of a cell, as it is now; steps is 0 before it begins."""
    lines = entries(folder_of(out, cell) / "metrics.jsonl")[0]
    first, last = (lines[0], lines[-1]) if lines else ({}, {})
    return {
        "state": state(out, cell), "step": last.get("step", 0), "steps": first.get("steps", 0),
        "seconds": last.get("seconds", 0.0),
        "reason": failure(out, cell) or _damage(folder_of(out, cell)),
    }  # fmt: skip


def _damage(folder: Path) -> str:
    """Return what is damaged of a run that was finished, and that the next worker makes again; "" where nothing is."""
    try:
        summary_of(folder)
    except settings.ConfigError as e:
        return str(e)
    return ""


def minutes_left(cells: list[Cell], now: list[dict]) -> list[float | None]:
    """Return the minutes of training that each cell still needs, from its `progress` and that of the others.

    The rate is the mean of cells with its objective, shape and batch, and the number of steps follows from a cell with
    its text and batch. None where no such cell has begun. Evaluations are not counted.
    """
    rates: dict[tuple, list[float]] = {}
    per_epoch = {}
    for cell, n in zip(cells, now, strict=True):
        if n["steps"]:
            per_epoch[_text(cell)] = n["steps"] / cell.epochs
        if n["seconds"]:
            rates.setdefault(_kind(cell), []).append(n["seconds"] / n["step"])
    out = []
    for cell, n in zip(cells, now, strict=True):
        rate, steps = rates.get(_kind(cell)), per_epoch.get(_text(cell), 0) * cell.epochs
        ended = n["state"] in ("done", "failed")
        known = sum(rate) / len(rate) * max(steps - n["step"], 0) / 60 if rate and steps else None
        out.append(0.0 if ended else known)
    return out


def _kind(cell: Cell) -> tuple:
    c = cell.config
    return c.objective, c.model, c.train.batch_size, c.precision


def _text(cell: Cell) -> tuple:
    c = cell.config
    return c.data, c.model.seq_len, c.train.batch_size


def status(cells: list[Cell], out: Path) -> list[list[str]]:
    """Return the table of a sweep: a row for each cell, and last the count of each state and the time left.

    The time left of the sweep is divided by the cells that are running; cells of unknown length are counted beside it.
    """
    rows, counts = [["cell", "what", "state", "steps", "minutes", "minutes left"]], {}
    now = [progress(out, cell) for cell in cells]
    left = minutes_left(cells, now)
    for cell, n, minutes in zip(cells, now, left, strict=True):
        counts[n["state"]] = counts.get(n["state"], 0) + 1
        words = f"{n['state']}: {n['reason']}" if n["reason"] else n["state"]
        steps = f"{n['step']:,} of {n['steps']:,}" if n["steps"] else f"{n['step']:,}"
        needed = "unknown" if minutes is None else f"{minutes:.1f}" if n["state"] in ("free", "running") else ""
        rows.append([cell.name, cell.title, words, steps, f"{n['seconds'] / 60:.1f}", needed])
    running, unknown = max(1, counts.get("running", 0)), left.count(None)
    total = f"{sum(m or 0.0 for m in left) / running:.1f}" + f" by {running} workers" * (running > 1)
    total += f", and {unknown} cells of unknown length" * (unknown > 0)
    states = ", ".join(f"{n} {s}" for s, n in sorted(counts.items()))
    rows.append(["all", f"{len(cells)} cells", states, "", f"{sum(n['seconds'] for n in now) / 60:.1f}", total])
    return rows
