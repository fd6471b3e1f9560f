"""Runs of half a second, ended and halted at random moments. TDLM_FAULTS kills; the other faults are scaled by it."""

import contextlib
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from tdlm_fast.runs.files import write_json
from tests.conftest import WORDS
from tests.running import HANG_S, TINY, metrics, started

OBJECTIVES = ("diffusion", "autoregressive")
CASES = int(os.environ.get("TDLM_FAULTS", "8"))
SEED = int(os.environ.get("TDLM_FAULTS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
WRITES = 7  # of checkpoints by a whole run: `last` at steps 3, 6, 9 and 12, `best` at 0, 5, 10 or more
LOADED = ("tdlm_fast.train", "tdlm_fast.training.trainer", "tdlm_fast.evaluation.self_check", "torch._dynamo")
TIMES = ("seconds", "tokens_per_s", "loss_tokens_per_s", "peak_memory_mb")  # what two runs do not share
TIMES += ("sha256", "metrics_sha256")  # and the seals of those


def pytest_addoption(parser):
    parser.addoption("--counts", type=Path, help="write how many cases of each kind passed to this JSON file")


def pytest_report_header(config):
    return f"faults: {CASES} kills, TDLM_FAULTS_SEED={SEED}"


@pytest.fixture(scope="session")
def count(request):
    """Call count(kind) for each case that passed: counts are printed, and written to the file of --counts."""
    counts = {}

    def add(kind: str) -> None:
        counts[kind] = counts.get(kind, 0) + 1

    yield add
    if file := request.config.getoption("--counts", None):
        write_json(file, {"seed": SEED, "cases": dict(sorted(counts.items()))})


@pytest.fixture
def rng(request):
    """Random numbers of this test; the seed is in its output, which pytest shows where it fails."""
    print(f"TDLM_FAULTS_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


class Process:
    """A process that the zygote forked; `wait()` returns its exit status and all that it printed."""

    def __init__(self, zygote, log: Path, request: dict):
        os.mkfifo(log)
        self.zygote, self.log, self.reader = zygote, log, os.open(log, os.O_RDONLY | os.O_NONBLOCK)
        self.pid = zygote.ask(request | {"log": str(log)})

    def send(self, number: int) -> None:
        os.kill(self.pid, number)  # also after its end, it is the zygote's child until `wait`

    def wait(self) -> tuple[int, str]:
        status, text = self.zygote.ask({"wait": self.pid}), b""
        while part := os.read(self.reader, 1 << 16):
            text += part
        os.close(self.reader)
        self.log.unlink()
        return status, text.decode()


class Zygote:
    """The process of zygote.py. `run(verb, *arguments, **faults)` returns (exit status, output) of a new process."""

    def __init__(self, process, folder: Path):
        self.process, self.folder, self.started = process, folder, 0

    def ask(self, request: dict):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], HANG_S)[0], f"hangs: {request}"
        return json.loads(self.process.stdout.readline())

    def start(self, verb: str, *arguments, **faults) -> Process:
        self.started += 1
        request = {"run": [verb, list(map(str, arguments))], **faults}
        return Process(self, self.folder / f"log-{self.started}", request)

    def run(self, verb: str, *arguments, **faults) -> tuple[int, str]:
        return self.start(verb, *arguments, **faults).wait()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    command = [sys.executable, "-m", "tests.faults.zygote", *LOADED]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with started(command, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Zygote(process, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """The arguments of `train` for a run of 12 steps, which has 4 checkpoints and 4 evaluations."""
    folder = tmp_path_factory.mktemp("text")
    lines = [" ".join(WORDS[(i * 7 + j * (1 + i % 3)) % len(WORDS)] for j in range(12)) + "." for i in range(120)]
    (folder / "text.txt").write_text("\n".join(lines))
    return [
        TINY, f"data.path={folder / 'text.txt'}", "data.tokenizer=bytes", f"data.cache={folder / 'cache'}",
        "model.width=16", "model.inner=16", "model.heads=2", "model.layers=1", "model.seq_len=12",
        "train.batch_size=4", "train.max_steps=12", "train.log_every=1", "train.save_every=3", "eval.every=5",
        "eval.early=", "eval.samples=2", "eval.max_samples=2", "eval.published=0", "eval.probe=0", "optim.lr=1e-2",
        "device=cpu",
    ]  # fmt: skip


class Run:
    """One run in its folder: `train(resume, **faults)` starts it or takes it up again."""

    def __init__(self, zygote, folder: Path, keys: list[str]):
        self.zygote, self.folder = zygote, folder
        self.arguments = [*keys, f"run.dir={folder}"]

    def start(self, resume: bool = True, **faults) -> Process:
        return self.zygote.start("train", *self.arguments, *["--resume"] * resume, **faults)

    def train(self, resume: bool = True, **faults) -> tuple[int, str]:
        return self.start(resume, **faults).wait()

    @property
    def text(self) -> Path:
        """The file that it trains on."""
        return [Path(a.removeprefix("data.path=")) for a in self.arguments if a.startswith("data.path=")][-1]

    def result(self) -> dict:
        """All that the run made, without what depends on the clock: figures, weights and moments, text, settings."""
        entries = [{k: v for k, v in e.items() if k not in TIMES} for e in metrics(self.folder)]
        summary = json.loads((self.folder / "summary.json").read_text())
        summary = {k: v for k, v in summary.items() if k not in TIMES}
        config = (self.folder / "config.yaml").read_text()
        config = re.sub(r"(?m)^  dir: .*", "  dir: FOLDER", config).replace(str(self.text), "TEXT")
        held = {"metrics": entries, "summary": summary, "config": config}
        held["samples"] = (self.folder / "samples.txt").read_bytes()
        for name in ("last", "best"):
            with (
                contextlib.suppress(OSError, SafetensorError),
                safe_open(self.folder / "checkpoints" / f"{name}.safetensors", "numpy") as f,
            ):
                held[name] = {k: f.get_tensor(k).tobytes() for k in f.keys()}
        files = (p.relative_to(self.folder) for p in self.folder.rglob("*"))
        held["files"] = sorted(p.as_posix() for p in files if not p.parts[0].startswith("earlier-"))
        return held

    def another(self, folder: Path, *keys: str) -> "Run":
        """A run with the same settings in another folder, which need not be there."""
        return Run(self.zygote, folder, [*(a for a in self.arguments if not a.startswith("run.dir=")), *keys])


@pytest.fixture(scope="session", params=OBJECTIVES)
def whole(request, zygote, keys, tmp_path_factory):
    """A run of each objective that nothing happened to."""
    run = Run(zygote, tmp_path_factory.mktemp(request.param) / "run", [*keys, f"objective={request.param}"])
    code, output = run.train(resume=False)
    assert code == 0, output
    return run


@pytest.fixture(scope="session")
def seconds(whole):
    """How long a run takes here."""
    run = whole.another(whole.folder.with_name("timed"))
    began = time.monotonic()
    code, output = run.train(resume=False)
    assert code == 0, output
    return time.monotonic() - began


@pytest.fixture
def fresh(whole, tmp_path):
    """A run with the settings of `whole` that has not begun; its folder is removed."""
    yield whole.another(tmp_path / "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def same(run, whole):
    """Resume a run; it must end with all that the unbroken run has, and nothing else."""
    code, output = run.train()
    assert code == 0 and "Traceback" not in output, output
    held, expected = run.result(), whole.result()
    assert not {k: (held.get(k), expected[k]) for k in expected if held.get(k) != expected[k]}, output


def one_error(output: str) -> str:
    """The only line of an error in what a process printed; nothing may be printed after it."""
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and output.splitlines()[-1] == errors[0], output
    return errors[0]
