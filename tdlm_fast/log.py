"""What a run says while it runs: a progress bar or plain lines, metrics.jsonl, and Weights & Biases as a switch."""

import json
import sys
import time
from pathlib import Path

from tqdm import tqdm


def peak_memory_mb(device) -> float | None:
    """Most memory in use so far, in MB: the allocator's on a GPU, else the process's; None where it is not known."""
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


class Log:
    """metrics.jsonl, the terminal and Weights & Biases. Resumed at `step`, later lines go: they come again."""

    def __init__(self, folder: Path, steps: int, step: int, wandb: str, config: dict):
        self.file = folder / "metrics.jsonl"
        lines = self.file.read_text().splitlines() if step and self.file.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        self.file.write_text("".join(f"{line}\n" for line in kept))
        self.steps, self.terminal, self.last = steps, sys.stderr.isatty(), 0.0
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not self.terminal, dynamic_ncols=True)
        self.started, self.first = time.monotonic(), step
        self.wandb = self._wandb(folder, wandb, config)

    def _wandb(self, folder: Path, mode: str, config: dict):
        if mode == "off":
            return None
        try:
            import wandb

            settings = wandb.Settings(init_timeout=30)
            return wandb.init(project="tdlm_fast", dir=str(folder), mode=mode, config=config, settings=settings)
        except Exception as e:  # whatever fails there, training goes on
            self.say(f"Weights & Biases is off: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
            return None

    def say(self, line: str) -> None:
        """A line that the progress bar does not overwrite."""
        self.bar.write(line, file=sys.stderr)

    def record(self, entry: dict) -> None:
        """A line of metrics.jsonl; non-finite numbers are written as null."""
        with open(self.file, "a") as f:
            f.write(json.dumps(entry) + "\n")
        if self.wandb is not None:
            try:
                self.wandb.log({k: v for k, v in entry.items() if k != "step"}, step=entry["step"])
            except Exception as e:
                self.say(f"Weights & Biases is off: {e}")
                self.wandb = None

    def progress(self, step: int, entry: dict) -> None:
        """Show the state after `step` steps: the bar, or a line every ten seconds where there is no terminal."""
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

    def close(self) -> None:
        self.bar.close()
        if self.wandb is not None:
            try:
                self.wandb.finish()
            except Exception as e:
                print(f"Weights & Biases did not finish: {e}", file=sys.stderr)
