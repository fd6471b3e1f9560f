"""Several processes train one run: they draw what one process draws, and lose nothing when one of them dies."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tdlm_fast import __main__ as entry
from tdlm_fast import config as settings
from tdlm_fast.training import ranks
from tests.running import HANG_S, holds, metrics, wait_until

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TRAIN = ["-m", "tdlm_fast.train", "configs/tiny.yaml"]


def several(number: int) -> list[str]:
    """The words that start `number` processes, on a port that nothing else has."""
    return [*TORCHRUN, "--standalone", "--nproc-per-node", str(number)]


def figures(folder):
    """Losses and scores by step, which float sums in another order may change; then what they may not."""
    lines = metrics(folder)
    floats = (
        {e["step"]: e["loss"] for e in lines if "loss" in e},
        {e["step"]: e["valid"]["nats_per_token"] for e in lines if "valid" in e},
    )
    counts = ("batch", "initial_weights", "tokens", "loss_tokens")
    return floats, [{k: e.get(k) for k in ("step", *counts)} for e in lines]


def assert_alike(folder, whole):
    mine, theirs = figures(folder), figures(whole)
    assert mine[1] == theirs[1] and len(mine[1]) > 6
    for a, b in zip(mine[0], theirs[0], strict=True):
        assert a.keys() == b.keys() and list(a.values()) == pytest.approx(list(b.values()), rel=1e-5)
    weights = [load_file(f / "checkpoints" / "last.safetensors") for f in (folder, whole)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5, msg=name)


def pid_of(rank: int, folder) -> int:
    """The process of that rank that trains into the folder, 0 where there is none yet."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as line, open(f"/proc/{pid}/environ", "rb") as environ:
                if f"run.dir={folder}".encode() in line.read() and f"\0RANK={rank}\0".encode() in environ.read():
                    return int(pid)
        except OSError:
            continue
    return 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("objective, keys, first, then, how", [
    ("diffusion", ["data.layout=paragraphs", "loss_weight=uniform", "model.dropout=0.1"], 2, 4, signal.SIGTERM),
    ("autoregressive", ["noise.input_masking=0.15", "data.layout=packed", "model.dropout=0"], 2, 1, signal.SIGKILL),
], ids=["diffusion stopped", "autoregressive killed"])  # fmt: skip
def test_a_run_has_the_same_draws_with_any_number_of_processes(
    tiny, tmp_path, start, objective, keys, first, then, how
):
    """The run is stopped, or one of its processes is killed, and another number of them resumes it.

    It ends as an unbroken run of one process, or where dropout is on, of two.
    """
    folder, whole = tmp_path / "run", tmp_path / "whole"
    size = [
        "train.batch_size=8",
        "model.seq_len=16",
        "train.accumulation=4",
        "train.max_steps=40",
        "eval.every=20",
    ]
    words = [*tiny, *size, f"objective={objective}", *keys, "eval.text=0", "train.log_every=1", f"run.dir={folder}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = start([*several(first), *TRAIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    wait_until(lambda: pid_of(1, folder), process)
    other = pid_of(1, folder)
    while not holds(folder / "metrics.jsonl", '"step": 13'):  # in short bursts, or a fast machine would be at its end
        assert process.poll() is None, process.stderr.read()
        os.kill(other, signal.SIGCONT)
        time.sleep(0.01)
        os.kill(other, signal.SIGSTOP)
    os.kill(other, how)
    with contextlib.suppress(ProcessLookupError):  # killed, and gone already
        os.kill(other, signal.SIGCONT)
    out, err = process.communicate(timeout=HANG_S)
    assert out.count("configs/tiny.yaml: ") == 1 and err.count("parameters: ") == 1  # one process reports
    assert process.returncode
    if how == signal.SIGKILL:
        said = re.findall("error: another process of this run has ended .*; step ([0-9]+) is saved, .*--resume", err)
        assert len(said) == 1 and int(said[0]) >= 13
    else:
        assert "to resume: " in out
    resumed = [*TRAIN, *words, "--resume"]
    command = [*several(then), *resumed] if then > 1 else [sys.executable, *resumed]
    unbroken = [*(several(2) if then > 1 else [sys.executable]), *TRAIN, *words[:-1], f"run.dir={whole}"]
    for each in (command, unbroken):
        ended = subprocess.run(each, capture_output=True, text=True, env=env, timeout=HANG_S)
        assert ended.returncode == 0, ended.stderr
    assert_alike(folder, whole)


EXCHANGE = """
import sys, torch
from tdlm_fast import config
from tdlm_fast.training import ranks
with ranks.joined(config.load("configs/tiny.yaml", ["train.accumulation=4", "device=cpu"])) as group:
    model = torch.nn.Linear(2, 1)
    model.weight.grad = torch.full((1, 2), 10.0 ** group.rank)  # bias has none
    loss, tokens = group.add_up(model, torch.tensor(0.5 + group.rank), torch.tensor(3 + group.rank))
    assert model.weight.grad.tolist() == [[11.0, 11.0]] and model.bias.grad.tolist() == [0.0]
    assert (loss.item(), tokens.item(), loss.dtype, tokens.dtype) == (2.0, 7, torch.float32, torch.int64)
    assert group.agree(False) is False and group.agree(group.rank == 1) is True
    assert group.told("plan" if group.rank == 0 else None) == "plan"
    assert list(group.share(range(0, 8, 2))) == [[0, 2], [4, 6]][group.rank]
    group.check_equal("the text", "same")
    try:
        group.check_equal("the text", group.rank)
    except config.ConfigError as e:
        assert "the text of process 1 differs from that of process 0" in str(e)
    else:
        raise SystemExit("they differ")
    with group.in_turn():
        print(f"rank {group.rank}", file=sys.stderr, flush=True)
    group.told()
    if group.rank == 0:
        try:
            group.agree(False)
        except ranks.Lost as e:
            print(f"alone: {e}", file=sys.stderr, flush=True)
"""


@pytest.mark.slow
def test_processes_exchange_sums_decisions_and_differences(tmp_path):
    file = tmp_path / "exchange.py"
    file.write_text(EXCHANGE)
    env = os.environ | {"PYTHONPATH": os.getcwd()}  # a script is looked up from its own folder
    ended = subprocess.run([*several(2), str(file)], capture_output=True, text=True, env=env, timeout=HANG_S)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.index("rank 0") < ended.stderr.index("rank 1")
    assert ended.stderr.count("alone: another process of this run has ended") == 1


def test_alone_everything_is_shared_with_nobody():
    with ranks.joined(settings.load("configs/tiny.yaml", [])) as alone:
        assert alone is ranks.ALONE and (alone.rank, alone.size) == (0, 1)
    assert alone.share(range(0, 8, 2)) == range(0, 8, 2) and alone.device("auto") == "auto"
    assert alone.agree(True) is True and alone.agree(False) is False and alone.told(3) == 3
    assert alone.add_up(None, 1.0, 2) == (1.0, 2)


@pytest.fixture
def one_of_three(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "3"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)


def test_parts_that_cannot_be_shared_name_the_key(one_of_three, monkeypatch):
    config = settings.load("configs/tiny.yaml", ["train.accumulation=4"])
    with pytest.raises(settings.ConfigError, match="train.accumulation is 4; 3 processes .*, as train.accumulation=3"):
        with ranks.joined(config):
            pass
    monkeypatch.setenv("RANK", "1")  # it leaves the words to process 0
    with pytest.raises(SystemExit) as ended, ranks.joined(config):
        pass
    assert ended.value.code == 2


@pytest.mark.parametrize("name, count, local, device", [
    ("auto", 0, 0, "cpu"), ("cpu", 4, 1, "cpu"), ("auto", 4, 1, "cuda:1"), ("cuda", 4, 3, "cuda:3"),
])  # fmt: skip
def test_each_process_takes_a_gpu_of_its_own(name, count, local, device, monkeypatch):
    group = object.__new__(ranks.Group)
    group.torch, group.local, group.size = torch, local, 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert group.device(name) == device
    if device != "cpu":
        with pytest.raises(settings.ConfigError, match="4 processes take a GPU each; use device=auto"):
            group.device("cuda:0")
        group.local = count
        with pytest.raises(settings.ConfigError, match="PyTorch sees 4 GPUs; torchrun --nproc-per-node 4"):
            group.device("auto")


def test_other_verbs_are_not_started_by_torchrun(one_of_three, capsys):
    for verb in (v for v in entry.VERBS if v != "train"):
        assert entry.main([verb]) == 2
        assert (
            f"error: torchrun starts several processes of train only; run {verb.replace('-', '_')}"
            in capsys.readouterr().err
        )
