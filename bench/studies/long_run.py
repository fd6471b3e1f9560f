"""Whether memory and the time of a step stay flat over a long run: `python -m bench.studies.long_run`.

Both objectives train a small model on bytes for 20,000 steps, with evaluations, texts and checkpoints on the way. The
resident memory is that of the run from 10 to 30 % of its steps and in its last fifth.

A processor shared with others is now faster and now slower, and of two processes alike one may be faster all along, by
more than a leak would cost. So the time of a step is measured against a second run of the same settings, the clock,
early and late: each of the two trains for a window of steps while the other one is halted (SIGSTOP), in turns, on one
core. Each window's CPU time a step is divided by that of the clock's window beside it. The figure is the median of
these ratios late in the run over their median early, with a 95 % interval by resampling the windows. The clock has
trained for less than a quarter of the steps by then. All is read from /proc (Linux).
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tdlm_fast.runs.files import write_json
from tdlm_fast.runs.metrics import entries

KEYS = (
    "data.corpus=sotu", "data.tokenizer=bytes", "model.width=32", "model.inner=64", "model.heads=2", "model.layers=1",
    "model.seq_len=32", "train.batch_size=4", "eval.samples=2", "eval.max_samples=2", "eval.early=", "eval.probe=4",
    "eval.published=0", "device=cpu",
)  # fmt: skip


class Run:
    """A training process that is let run and halted: its steps, CPU time and memory."""

    def __init__(self, objective: str, steps: int, folder: Path, name: str):
        self.folder, self.steps, self.memory, self.size, self.step = folder / f"{objective}-{name}", steps, [], -1, 0
        every = max(1, steps // 800)
        command = [sys.executable, "-m", "tdlm_fast.train", "configs/tiny.yaml", *KEYS, f"objective={objective}"]
        command += [f"train.max_steps={steps}", f"train.log_every={every}", f"run.dir={self.folder}"]
        command += [f"eval.every={steps // 4}", f"train.save_every={steps // 4}", f"data.cache={folder / 'cache'}"]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread)
        os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})  # no core is faster for one of the two

    def until(self, step: int) -> None:
        """Wait until the run has recorded this step, reading its memory at each. Exits where the run failed."""
        file = self.folder / "metrics.jsonl"
        while self.step < step:
            if self.process.poll() is not None and not self._read(file):
                raise SystemExit(f"error: the run in {self.folder} ended at step {self.step}")
            if not self._read(file):
                time.sleep(0.002)

    def _read(self, file: Path) -> bool:
        """Read a changed file of metrics; return whether it had changed."""
        if not file.is_file() or file.stat().st_size == self.size:
            return False
        self.size = file.stat().st_size
        self.step = max((e["step"] for e in entries(file)[0] if "loss" in e), default=0)
        if self.process.poll() is None:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if found := status.partition("VmRSS:")[2].split():
                self.memory.append((self.step, int(found[0]) / 1e3))
        return True

    def cpu_seconds(self) -> float:
        """CPU time of the process, all of its threads, to the nanosecond."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(f.read_text().split()[0]) for f in threads) / 1e9

    def window(self, steps: int) -> float:
        """Let a halted run train for some steps; return its CPU time of a step in ms."""
        before, at = self.cpu_seconds(), self.step
        self.process.send_signal(signal.SIGCONT)
        self.until(at + steps)
        self.process.send_signal(signal.SIGSTOP)
        return 1e3 * (self.cpu_seconds() - before) / (self.step - at)


def measure(objective: str, steps: int, folder: Path) -> dict:
    """Return the early and late memory of a run, and its early and late time of a step beside that of a clock."""
    run, clock = (Run(objective, steps, folder, name) for name in ("run", "clock"))
    try:
        early = turns(run, clock, steps // 20)
        late = turns(run, clock, steps * 8 // 10)
        run.process.send_signal(signal.SIGCONT)
        run.until(steps)
    finally:
        for each in (run, clock):
            each.process.kill()
            each.process.wait()
    return {"steps": steps, "resident_mb": flat(run.memory, steps), "cpu_ms_per_step": drift(early, late)}


def turns(run: Run, clock: Run, start: int) -> np.ndarray:
    """Return (76, 2): CPU ms of a step of the run, from step `start` on, and of the clock, in windows in turns."""
    for each, first in ((clock, min(start, clock.steps // 20)), (run, start)):
        each.process.send_signal(signal.SIGCONT)
        each.until(first)
        each.process.send_signal(signal.SIGSTOP)
    size = run.steps // 800  # so that neither evaluates in a window
    return np.array([(run.window(size), clock.window(size)) for _ in range(76)])


def flat(memory: list[tuple[int, float]], steps: int) -> dict:
    """Return the median of the memory early and late in a run, and late over early."""
    early = statistics.median(mb for step, mb in memory if 0.1 * steps < step <= 0.3 * steps)
    late = statistics.median(mb for step, mb in memory if 0.8 * steps < step)
    return {"early": round(early, 2), "late": round(late, 2), "ratio": round(late / early, 4)}


def drift(early: np.ndarray, late: np.ndarray) -> dict:
    """Return the median times of a step, and late over early as the clock shows it, with its interval."""
    ratios, rng = [each[:, 0] / each[:, 1] for each in (early, late)], np.random.default_rng(0)
    draws = [np.median(rng.choice(r, (10_000, len(r))), axis=1) for r in ratios]
    low, high = np.quantile(draws[1] / draws[0], (0.025, 0.975))
    found = {"early": np.median(early[:, 0]), "late": np.median(late[:, 0])}
    found |= {"ratio": np.median(ratios[1]) / np.median(ratios[0]), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in found.items()}


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--steps", type=int, default=20_000)
    p.add_argument("--out", type=Path, default=Path("bench/results/long-run.json"))
    args = p.parse_args(argv)
    if not Path("/proc/self/stat").is_file():
        raise SystemExit("error: this study reads /proc, which only Linux has")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for objective in ("diffusion", "autoregressive"):
            found[objective] = measure(objective, args.steps, Path(folder))
            print(objective, found[objective], flush=True)
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    write_json(args.out, {"cpu": cpu.partition(":")[2].strip(), "runs": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
