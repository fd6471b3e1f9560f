"""Training whose embedding waits has the bits of training that updates every row at every step."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.kernels import hardware, use_backend
from tdlm_fast.model import build_model
from tdlm_fast.runs import checkpoint
from tdlm_fast.runs.files import LAST
from tdlm_fast.training import lazy_rows, memory_estimate, step
from tdlm_fast.training.cuda_graph import DeviceSteps
from tdlm_fast.training.device_adamw import DeviceAdamW
from tdlm_fast.training.lazy_rows import LazyRows
from tdlm_fast.training.optimizer import adamw
from tests.running import metrics
from tests.training.test_cuda_graph import outcomes, split

STEPS = 12
SMALL = [
    "data.tokenizer=bytes", "model.layers=1", "model.width=16", "model.heads=2", "model.inner=16", "model.seq_len=16",
    "train.batch_size=8", "optim.lr=1e-2", "precision=fp32", "optim.warmup=0.3",
]  # fmt: skip
CASES = [
    ("objective=diffusion", "data.layout=paragraphs", "train.accumulation=2"),
    ("objective=diffusion", "data.layout=packed", "model.positions=learned"),
    ("objective=autoregressive", "data.layout=paragraphs"),
    ("objective=autoregressive", "data.layout=packed", "noise.input_masking=0.2"),
]
VOCABULARY = memory_estimate.sizes(settings.Data(tokenizer="bytes"))


def config(*overrides):
    return settings.load("configs/tiny.yaml", [*SMALL, *overrides])


@pytest.fixture
def gpu(monkeypatch):
    """Python code takes CPU tensors for a GPU's, whose ops run their references; rows catch up every five steps."""
    monkeypatch.setattr(lazy_rows, "SETTLE_EVERY", 5)
    with use_backend("reference", ("cpu",)), hardware.pretend((8, 6), 4, torch.Tensor):
        yield


def start(c, first=0, loss_of=None, path=None):
    """(model, runner) of a config from step `first` on, of a checkpoint if there is one."""
    model = build_model(c, VOCABULARY).train()
    optimizer = adamw(model, c.optim)
    if path is not None:
        checkpoint.load(path, model, optimizer)
    rows, loss_of = split(c.data.layout == "paragraphs"), loss_of or step.objective(c, VOCABULARY)
    return model, DeviceSteps(model, optimizer, loss_of, rows, c, steps=STEPS, first=first)


def without_waiting(monkeypatch):
    """Let every row count as one that the batch reads."""
    real = LazyRows.catch_up
    monkeypatch.setattr(LazyRows, "catch_up", lambda self, tokens: real(self, torch.arange(len(self.table))))


def same(a, b) -> bool:
    """Whether all weights and moments are equal."""
    (model, ours), (other, theirs) = a, b
    x, y = model.state_dict(), other.state_dict()
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    states = [(ours.optimizer.state[p], theirs.optimizer.state[q]) for p, q in pairs]
    return all(torch.equal(x[k], y[k]) for k in x) and all(torch.equal(s[k], t[k]) for s, t in states for k in s)


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_a_run_has_the_same_bits(overrides, gpu, monkeypatch):
    c = config(*overrides)
    lazy = start(c)
    losses = outcomes(lazy[1], 0, STEPS)
    unsettled = lazy[0].embedding.weight.detach().clone()
    with monkeypatch.context() as patch:
        without_waiting(patch)
        dense = start(c)
        assert outcomes(dense[1], 0, STEPS) == losses
    assert not torch.equal(unsettled, dense[0].embedding.weight)
    assert same(lazy, dense)
    with monkeypatch.context() as patch:  # PyTorch's AdamW rounds otherwise
        patch.setattr("tdlm_fast.training.device_adamw.can_wait", lambda *_: False)
        theirs = start(c)
        assert [o["loss"] for o in outcomes(theirs[1], 0, STEPS)] == pytest.approx(
            [o["loss"] for o in losses], rel=1e-4
        )
    assert theirs[1].lazy is None and lazy[1].lazy is not None


def test_evaluation_between_steps_sees_settled_weights(gpu, monkeypatch):
    c, x = config(), torch.arange(VOCABULARY.vocab)[None, :16]

    def evaluated():
        model, runner = start(c)
        found = []
        for i in range(STEPS):
            runner.run(i)
            if i in (2, 3, 8):
                model.eval()
                found.append(model(x, causal=False).detach())
                model.train()
            if i == 9:
                found.append(checkpoint.weights_hash(model))
            if i == 7:
                found += [s["exp_avg"].clone() for s in runner.optimizer.state_dict()["state"].values()]
        return found, (model, runner)

    ours, lazy = evaluated()
    without_waiting(monkeypatch)
    truth, dense = evaluated()
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(ours, truth, strict=True))
    assert same(lazy, dense)


def test_the_trainer_records_samples_and_saves_settled_weights(gpu, tiny, tmp_path, monkeypatch):
    def run(folder):
        args = [*tiny, "precision=fp32", "train.max_steps=20", f"run.dir={folder}"]
        assert train.main(["configs/tiny.yaml", *args]) == 0
        measured = "seconds", "tokens_per_s", "loss_tokens_per_s", "peak_memory_mb"
        entries = [{k: v for k, v in e.items() if k not in measured} for e in metrics(folder)]
        summary = json.loads((folder / "summary.json").read_text())
        return entries, [summary[k] for k in ("weights", "valid", "test")], (folder / "samples.txt").read_text()

    ours = run(tmp_path / "lazy")
    without_waiting(monkeypatch)
    assert ours == run(tmp_path / "dense")
    last = [load_file(tmp_path / name / LAST) for name in ("lazy", "dense")]
    assert all(torch.equal(last[0][k], last[1][k]) for k in last[0])


def test_a_run_resumes_with_the_same_bits(gpu, tmp_path):
    c, path = config(), tmp_path / "last.safetensors"
    whole = start(c)
    expected = outcomes(whole[1], 0, STEPS)
    model, runner = start(c)
    before = outcomes(runner, 0, 7)
    checkpoint.save(path, model, runner.optimizer, {"step": 7} | dict.fromkeys(checkpoint.COUNTERS, 0))
    resumed = start(c, first=7, path=path)
    assert before + outcomes(resumed[1], 7, STEPS) == expected
    assert same(whole, resumed)


def test_a_checkpoint_moves_between_a_cpu_and_a_gpu(tmp_path):
    c, path, state = config(), tmp_path / "last.safetensors", {"step": 7} | dict.fromkeys(checkpoint.COUNTERS, 0)
    with use_backend("reference", ("cpu",)):
        truth = outcomes(start(c)[1], 0, STEPS)
        model, runner = start(c)
        outcomes(runner, 0, 7)
        checkpoint.save(path, model, runner.optimizer, state)
        with hardware.pretend((8, 6), 4, torch.Tensor):
            model, runner = start(c, first=7, path=path)
            assert runner.optimizer.steps() == 7 and runner.lazy is not None
            after = outcomes(runner, 7, 9)
            checkpoint.save(path, model, runner.optimizer, state | {"step": 9})
        model, runner = start(c, first=9, path=path)
        assert type(runner.optimizer) is torch.optim.AdamW
        after += outcomes(runner, 9, STEPS)
    assert [o["loss"] for o in after] == pytest.approx([o["loss"] for o in truth[7:]], rel=1e-4)


def test_a_step_that_is_skipped_counts_for_no_row(gpu, monkeypatch):
    c = config()
    real = step.objective(c, VOCABULARY)

    def broken(*args, step, **kwargs):
        loss, n = real(*args, step=step, **kwargs)
        return torch.where(step == 3, math.nan, 1.0) * loss, n

    broken.keywords = real.keywords  # pyright: ignore[reportFunctionMemberAccess]
    lazy = start(c, loss_of=broken)
    outcomes(lazy[1], 0, STEPS)
    without_waiting(monkeypatch)
    dense = start(c, loss_of=broken)
    outcomes(dense[1], 0, STEPS)
    assert same(lazy, dense) and lazy[1].optimizer.steps() == STEPS - 1
    assert all(p.isfinite().all() for p in lazy[0].parameters())


def test_weights_that_are_loaded_stay_as_they_are(gpu):
    c = config()
    model, runner = start(c)
    first = {k: v.clone() for k, v in model.state_dict().items()}
    outcomes(runner, 0, 7)
    model.load_state_dict(first)
    assert all(torch.equal(v, first[k]) for k, v in model.state_dict().items())


def test_a_second_runner_takes_over(gpu):
    c = config()
    whole = start(c)
    outcomes(whole[1], 0, STEPS)
    model, first = start(c)
    outcomes(first, 0, 7)
    rows, loss_of = split(True), step.objective(c, VOCABULARY)
    second = DeviceSteps(model, first.optimizer, loss_of, rows, c, steps=STEPS, first=7)
    outcomes(second, 7, STEPS)
    assert same(whole, (model, second))


@pytest.mark.parametrize("overrides, capability, backend", [
    (["model.tied=true"], (8, 6), None), ([], (7, 5), None), ([], (8, 6), "reference"),
])  # fmt: skip
def test_other_tables_do_not_wait(overrides, capability, backend):
    with use_backend(backend), hardware.pretend(capability, 4, torch.Tensor):
        _, runner = start(config(*overrides))
        assert isinstance(runner.optimizer, DeviceAdamW) and runner.lazy is None
