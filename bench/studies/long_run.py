"""Whether memory and the time of a step stay flat over a long run: `python -m bench.studies.long_run`.

Both objectives train a small model on bytes for 20,000 steps, with evaluations, texts and checkpoints on the way. After
each window of steps the resident memory and the CPU time of the training process are read from /proc (Linux). CPU time
leaves out the time that other programs take, but not what they do to caches and the clock of the processor. The first
tenth of the run warms up. The early figure is that of the next fifth of the run, the late one that of its last fifth.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tdlm_fast.runs.files import write_json
from tdlm_fast.runs.metrics import entries

KEYS = (
    "data.corpus=sotu", "data.tokenizer=bytes", "model.width=32", "model.inner=64", "model.heads=2", "model.layers=1",
    "model.seq_len=32", "train.batch_size=4", "eval.samples=2", "eval.max_samples=2", "eval.early=", "eval.probe=4",
    "eval.published=0", "device=cpu",
)  # fmt: skip
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def read(pid: int) -> tuple[float, float]:
    """Return the resident memory in MB and the CPU seconds of a process, all of its threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1e3, (int(fields[11]) + int(fields[12])) / TICK


def watch(objective: str, steps: int, folder: Path, keys=()) -> list[tuple[int, float, float]]:
    """Train, and return (step, resident MB, CPU seconds) after each fiftieth part of the run."""
    every, run = max(1, steps // 50), folder / objective
    command = [sys.executable, "-m", "tdlm_fast.train", "configs/tiny.yaml", *KEYS, f"objective={objective}"]
    command += [f"train.max_steps={steps}", f"train.log_every={every}", f"eval.every={steps // 4}", f"run.dir={run}"]
    command += [f"train.save_every={steps // 4}", f"data.cache={folder / 'cache'}", *keys]
    windows, seen, size = [], 0, -1
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            file = run / "metrics.jsonl"
            if file.is_file() and file.stat().st_size != size:
                now, size = read(process.pid), file.stat().st_size
                step = max((e["step"] for e in entries(file)[0] if "loss" in e), default=0)
                if step > seen:
                    windows.append((step, *now))
                    seen = step
            time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"error: the run ended with exit code {process.returncode}")
    return windows


def flat(windows: list[tuple[int, float, float]]) -> dict:
    """Return the early and late medians of resident memory and of the CPU time of a step, and late over early.

    A window with an evaluation counts with the others: medians leave its time out.
    """
    steps = windows[-1][0]
    mb = [(step, rss) for step, rss, _ in windows]
    ms = [(b[0], 1e3 * (b[2] - a[2]) / (b[0] - a[0])) for a, b in zip(windows, windows[1:], strict=False)]
    out = {"steps": steps}
    for name, values in (("resident_mb", mb), ("cpu_ms_per_step", ms)):
        early = statistics.median(v for step, v in values if 0.1 * steps < step <= 0.3 * steps)
        late = statistics.median(v for step, v in values if 0.8 * steps < step)
        out[name] = {"early": round(early, 3), "late": round(late, 3), "ratio": round(late / early, 4)}
    return out


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--steps", type=int, default=20_000)
    p.add_argument("--out", type=Path, default=Path("bench/results/long-run.json"))
    args = p.parse_args(argv)
    if not Path("/proc/self/stat").is_file():
        raise SystemExit("error: this study reads /proc, which only Linux has")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for objective in ("diffusion", "autoregressive"):
            found[objective] = flat(watch(objective, args.steps, Path(folder)))
            print(objective, found[objective], flush=True)
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    write_json(args.out, {"cpu": cpu.partition(":")[2].strip(), "runs": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
