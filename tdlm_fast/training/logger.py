"""Log a run: a progress bar or plain lines, metrics.jsonl, and Weights & Biases or TensorBoard if switched on."""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..config import Config
from ..runs.appended import Appended
from ..runs.files import plain
from .tensorboard import Events

WANDB_S = 30  # how long a network may keep a run waiting, at its start and at its end


def peak_memory_mb(device) -> float | None:
    """Return the peak memory so far in MB: of the allocator on a GPU, else of the process; None if it is unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins at what the parent process held
        peak = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        return None if peak is None else int(peak) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def reserved_memory_mb(device) -> float | None:
    """Return the peak memory in MB that PyTorch's allocator held on a GPU, free blocks included; None on a CPU.

    It is more than what tensors took: the pool of a captured step stays reserved while evaluations take memory beside.
    """
    if device.type != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_reserved(device) / 1e6


def _shows_a_bar(stream) -> bool:
    """Return whether a bar can be shown: on a terminal of at least two columns and lines (some containers have 0)."""
    try:
        return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 1
    except OSError:
        return False


class Log(contextlib.AbstractContextManager):
    """Write metrics.jsonl from `step` of `steps` on, show progress, and report to Weights & Biases and TensorBoard."""

    def __init__(self, file: Appended, config: Config, steps: int, step: int):
        self.file = file
        self.file.begin()
        self.terminal = _shows_a_bar(sys.stderr)
        self.steps, self.last, self.started = steps, 0.0, time.monotonic()
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not self.terminal, dynamic_ncols=True)
        self.first = step
        self.wandb = self._wandb(file.path.parent, config)
        self.events = Events(file.path.parent, step) if config.run.tensorboard else None

    def _wandb(self, folder: Path, config: Config):
        mode: Any = config.run.wandb
        if mode == "off":
            return None
        try:
            import wandb

            if mode == "online" and not _has_key(wandb):
                raise RuntimeError("no account here; `wandb login`, WANDB_API_KEY or run.wandb=offline")
            times: dict[str, Any] = {"init_timeout": WANDB_S, "finish_timeout": WANDB_S}
            known = wandb.Settings(**{k: v for k, v in times.items() if k in wandb.Settings.model_fields})
            keys = dataclasses.asdict(config)
            return wandb.init(project="tdlm_fast", dir=str(folder), mode=mode, config=keys, settings=known)
        except Exception as e:  # whatever fails there, training goes on
            return self._off(e)

    def _off(self, e: Exception) -> None:
        self.say(f"Weights & Biases is off: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
        self.wandb = None

    def say(self, line: str) -> None:
        """Print a line that the progress bar does not overwrite."""
        self.bar.write(line, file=sys.stderr)

    def record(self, entry: dict) -> None:
        """Append a line to metrics.jsonl; non-finite numbers are written as null."""
        self.file.append(json.dumps(plain(entry), allow_nan=False) + "\n")
        values = {k: v for k, v in entry.items() if k != "step"}
        self._report(lambda wandb: wandb.log(values, step=entry["step"]))
        if self.events:
            self.events.add(values, entry["step"])

    def starts_here(self, step: int) -> None:
        """Estimate the time that is left from the steps after `step`: those before it compiled kernels."""
        self.first, self.started = step, time.monotonic()

    def result(self, summary: dict) -> None:
        """Report the final results to Weights & Biases and to TensorBoard."""
        self._report(lambda wandb: wandb.summary.update(summary))
        if self.events:
            self.events.add({"final": {name: summary[name] for name in ("valid", "test")}}, self.steps)

    def _report(self, send) -> None:
        if self.wandb is not None:
            try:
                send(self.wandb)
            except Exception as e:
                self._off(e)

    def progress(self, step: int, entry: dict) -> None:
        """Show the state after `step` steps: in the bar, or without a terminal in a line every ten seconds."""
        memory = f"{entry['peak_memory_mb']:.0f} MB" if entry.get("peak_memory_mb") else ""
        rates = f"{entry['tokens_per_s']:,.0f} tok/s, {entry['loss_tokens_per_s']:,.0f} loss-tok/s"
        text = f"loss {entry['loss']:.4f}, {rates}, {memory}"
        if self.terminal:
            self.bar.set_postfix_str(text)
            self.bar.update(step - self.bar.n)
        elif time.monotonic() - self.last > 10 or step == self.steps:
            self.last = time.monotonic()
            left = (self.steps - step) * (self.last - self.started) / max(1, step - self.first)
            print(f"step {step}/{self.steps}  {text}, {left / 60:.1f} min left", file=sys.stderr, flush=True)

    def __exit__(self, *error) -> None:
        self.bar.close()
        if self.events:
            self.events.close()
        if self.wandb is not None:  # in a thread, because an upload may wait for the network for ever
            upload, self.wandb = threading.Thread(target=self._finish, args=(self.wandb,), daemon=True), None
            upload.start()
            upload.join(WANDB_S + 10)
            if upload.is_alive():
                print("Weights & Biases has not finished; `wandb sync` sends what is in the folder", file=sys.stderr)

    def _finish(self, wandb) -> None:
        try:
            wandb.finish()
        except Exception as e:
            print(f"Weights & Biases did not finish: {e}", file=sys.stderr)


def _has_key(wandb) -> bool:
    """Return whether Weights & Biases can log in without asking: by environment, settings or a netrc file."""
    from requests.utils import get_netrc_auth

    s, key = wandb.setup().settings, os.environ.get("WANDB_API_KEY")
    return bool(key or s.api_key or getattr(s, "identity_token_file", None) or get_netrc_auth(s.base_url))
