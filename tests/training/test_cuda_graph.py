"""The step written for a CUDA graph: the bits of the eager step, and nothing that waits for the device."""

import contextlib
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.data import batches, dataset
from tdlm_fast.kernels import linear_cross_entropy, use_backend
from tdlm_fast.kernels.ops import linear_cross_entropy as head
from tdlm_fast.model import build_model
from tdlm_fast.training import cuda_graph, lazy_rows, memory_estimate, step
from tdlm_fast.training.cuda_graph import DeviceData, DeviceSteps
from tdlm_fast.training.optimizer import adamw
from tdlm_fast.training.step import EagerSteps
from tests.running import metrics, small_config

pytestmark = pytest.mark.slow


def split(padded: bool, rows=20, T=16, vocab=257):
    g = np.random.default_rng(0)
    lengths = g.integers(1, T + 1, rows) if padded else np.full(rows, T)
    starts = np.cumsum(lengths) - lengths
    dtype = np.uint16 if vocab <= 1 << 16 else np.uint32
    return dataset.Split(g.integers(0, vocab - 1, lengths.sum()).astype(dtype), lengths, T, padded, starts, 1, None)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("vocab", [60_000, 100_000])  # uint16 past its sign bit, uint32
def test_the_device_draws_the_same_batches(padded, vocab):
    s = split(padded, vocab=vocab)
    on_device = DeviceData(s, 5, 8, "cpu")
    for i in range(7):  # 2 steps an epoch
        on_device.begin(i)
        x0, valid = on_device.batch(torch.tensor(i))
        truth, seen = batches.batch(s, seed=5, step=i, batch_size=8)
        assert torch.equal(x0, truth) and (valid is None) == (seen is None) == (not padded)
        assert valid is None or torch.equal(valid, seen)


def runs(cls, c, first=0, end=7, model=None, device="cpu", **kw):
    """((model, optimizer), outcomes, runner) of steps first .. end of 9."""
    vocabulary = memory_estimate.sizes(c.data)
    if model is None:
        model = build_model(c, vocabulary).to(device).train()
        model = model, adamw(model, c.optim)
    runner = cls(*model, step.objective(c, vocabulary), split(c.data.padded), c, steps=9, **kw)
    return model, outcomes(runner, first, end), runner


def outcomes(runner, first, end):
    for i in range(first, end):
        runner.run(i)
    runner.mark(first, end)
    ((marked, result),) = runner.read()
    assert marked == first
    return result


CASES = [
    ("objective=diffusion", "data.layout=paragraphs", "train.accumulation=1"),
    ("objective=diffusion", "data.layout=packed", "train.accumulation=4", "noise.sampling=counts"),
    ("objective=diffusion", "data.layout=paragraphs", "train.accumulation=2", "loss_weight=published"),
    (
        "objective=diffusion",
        "data.layout=published",
        "train.accumulation=2",
        "loss_weight=published",
        "noise.sampling=exact",
    ),
    ("objective=autoregressive", "data.layout=paragraphs", "train.accumulation=2"),
    ("objective=autoregressive", "data.layout=packed", "train.accumulation=1", "precision=fp32"),
    ("objective=diffusion", "data.layout=paragraphs", "train.accumulation=2", "model.width=528"),  # the stored head
    ("objective=autoregressive", "data.layout=packed", "train.accumulation=1", "model.width=528"),
]


@pytest.mark.parametrize("overrides", CASES, ids=lambda o: " ".join(o))
def test_the_step_gives_the_eager_steps_bits(overrides):
    c = small_config(*overrides)
    (a, _), eager, _ = runs(EagerSteps, c)
    (b, _), ours, _ = runs(DeviceSteps, c)
    assert eager == ours and len({o["loss"] for o in ours}) == 7
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_later_start_goes_on_with_the_same_bits():
    c = small_config()
    _, whole, _ = runs(EagerSteps, c)
    model, before, _ = runs(EagerSteps, c, end=4)
    vocabulary = memory_estimate.sizes(settings.Data(tokenizer="bytes"))
    runner = DeviceSteps(*model, step.objective(c, vocabulary), split(True), c, steps=9, first=4)
    assert before + outcomes(runner, 4, 7) == whole


def test_a_capture_that_fails_says_why_and_the_steps_go_on():
    c = small_config()
    _, eager, _ = runs(EagerSteps, c)
    vocabulary = memory_estimate.sizes(settings.Data(tokenizer="bytes"))
    model = build_model(c, vocabulary).train()
    runner = DeviceSteps(model, adamw(model, c.optim), step.objective(c, vocabulary), split(True), c, steps=9)
    assert runner.why == "CUDA graphs need a GPU"
    if not torch.cuda.is_available():
        runner.why = ""  # as on a GPU; a PyTorch without CUDA fails in the capture
    assert outcomes(runner, 0, 7) == eager and runner.why
    assert torch.cuda.is_available() or runner.why.startswith("the step cannot be captured: ")


def test_a_broken_capture_names_the_error_that_broke_it_and_leaves_the_stream(monkeypatch):
    """The end of a capture that an error broke raises another one, and skips what restores the current stream."""
    streams = ["the caller's"]

    class Graph:
        def __init__(self, graph, stream):
            self.stream = stream

        def __enter__(self):
            streams.append(self.stream)

        def __exit__(self, *_):
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    class Generator:
        def clone_state(self):
            return "before"

        def graphsafe_set_state(self, state):
            streams.append(f"generator {state}")

    def body(self):
        raise ValueError("a copy from the host\nand more")

    c = small_config()
    model = build_model(c, memory_estimate.sizes(settings.Data(tokenizer="bytes"))).train()
    loss_of = step.objective(c, memory_estimate.sizes(settings.Data(tokenizer="bytes")))
    runner = DeviceSteps(model, adamw(model, c.optim), loss_of, split(True), c, steps=9)
    runner.stream, runner.generator = "the capture's", Generator()
    monkeypatch.setattr(DeviceSteps, "body", body)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    runner._capture()
    assert streams == ["the caller's", "the capture's", "the caller's", "generator before"]
    assert runner.why.startswith("the step cannot be captured: a copy from the host (test_cuda_graph.py:")
    assert runner.why.endswith("; train.capture=off does not try")


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_gradients_that_a_gpu_scales_in_place_are_right_and_can_be_taken_again(factor, monkeypatch):
    h, w = torch.randn(40, 32, requires_grad=True), torch.randn(300, 32, requires_grad=True)
    y, weights = torch.randint(300, (40,)), torch.rand(40)
    truth = torch.autograd.grad(factor * linear_cross_entropy(h, w, y, weights), (h, w))
    monkeypatch.setattr(head, "_unread", lambda grad: True)
    loss = factor * linear_cross_entropy(h, w, y, weights)
    for keep in (True, True, False):
        result = torch.autograd.grad(loss, (h, w), retain_graph=keep)
        for a, b in zip(result, truth, strict=True):
            torch.testing.assert_close(a, b)
            assert not a.requires_grad


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._schema.name)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("D, reduction, backend, sums", [
    (768, "sum", "triton", True), (512, "sum", "triton", False), (768, "none", "triton", False),
    (768, "sum", "reference", False),
])  # fmt: skip
def test_a_gpu_makes_both_gradients_of_a_wide_head_at_once(D, reduction, backend, sums):
    """Where the weights are known in the forward pass; the backward pass then scales in place."""
    choice = use_backend(None if backend == "triton" else backend)
    gpu = memory_estimate.hardware.pretend(memory_estimate.CAPABILITY, memory_estimate.PROCESSORS)
    with choice, FakeTensorMode(), gpu, Ops() as ops:
        h, w = torch.empty(40, D, requires_grad=True), torch.empty(300, D, requires_grad=True)
        y, weights = torch.empty(40, dtype=torch.int64), torch.empty(40)
        linear_cross_entropy(h, w, y, weights, reduction=reduction).sum().backward()
        assert h.grad.shape == h.shape and w.grad.shape == w.shape
    assert ("tdlm::lce_sum" in ops.seen) == sums != ("tdlm::lce_backward_weight" in ops.seen)
    assert ops.seen.count("aten::mul_") == 2 * sums


@pytest.fixture
def on_device(monkeypatch):
    """Makes train.py run DeviceSteps, as it does on a GPU."""

    def start(*args, steps, first):
        return DeviceSteps(*args, steps=steps, first=first, window=args[-1].train.log_every)

    return lambda: monkeypatch.setattr(cuda_graph, "start", start)


def losses(folder):
    return [(e["step"], e["loss"], e["lr"], e["grad_norm"], e["tokens"]) for e in metrics(folder) if "loss" in e]


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_run_resumes_and_logs_as_the_eager_one(tiny, tmp_path, monkeypatch, on_device, objective):
    args = [*tiny, f"objective={objective}", "train.log_every=3", "train.max_steps=20", "eval.text=0"]
    assert train.main(["configs/tiny.yaml", *args]) == 0
    on_device()
    real, count = DeviceSteps.run, 0

    def interrupted(self, step):
        nonlocal count
        count += 1
        if count == 8:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, step)

    monkeypatch.setattr(DeviceSteps, "run", interrupted)
    resumed = [*args, f"run.dir={tmp_path / 'device'}"]
    assert train.main(["configs/tiny.yaml", *resumed]) == 130
    assert metrics(tmp_path / "device")[-1]["step"] == 8
    assert train.main(["configs/tiny.yaml", *resumed, "--resume"]) == 0
    eager, ours = losses(tmp_path / "run"), losses(tmp_path / "device")
    assert [e[0] for e in ours if e[0] < 9] == [3, 5, 6, 8]  # log_every, save_every, and where it was stopped
    assert [e for e in ours if e[0] != 8] == eager


def test_a_loss_that_is_no_number_stops_it_too(tiny, on_device, capsys):
    on_device()
    args = [*tiny, "optim.lr=1e18", "optim.clip=0", "optim.min_lr=0", "train.log_every=4"]
    assert train.main(["configs/tiny.yaml", *args]) == 1
    assert "not finite at step" in capsys.readouterr().err


@contextlib.contextmanager
def waiting_is_an_error():
    """Let PyTorch raise where the host waits for the device. The mode is the process's: it must end with the block."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PyTorch warns of the prototype after it has set the mode. As an error, the warning would leave the mode on.
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("message", ["Synchronization debug mode is a prototype feature", "another warning"])
def test_the_mode_that_refuses_to_wait_ends_whatever_it_warns_of(message, monkeypatch):
    modes, said = ["default"], []

    def choose(mode):
        modes.append(mode)
        if not said:
            said.append(message)
            warnings.warn(message, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", choose)
    expected = contextlib.nullcontext() if "prototype" in message else pytest.raises(UserWarning)
    with expected, waiting_is_an_error():
        assert modes[-1] == "error"
    assert modes == ["default", "error", "default"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("overrides", CASES, ids=lambda o: " ".join(o))
def test_captured_steps_give_the_eager_bits_and_never_wait(overrides, monkeypatch):
    c = small_config(*overrides)
    (a, _), eager, _ = runs(DeviceSteps, c, device="cuda", mode="off")
    monkeypatch.setattr(lazy_rows, "SETTLE_EVERY", 5)  # between two replays too
    (b, _), ours, runner = runs(DeviceSteps, c, device="cuda", end=cuda_graph.WARM_UP)  # fills tables and compiles
    with waiting_is_an_error():
        ours += outcomes(runner, cuda_graph.WARM_UP, 7)
    assert runner.graph is not None, runner.why
    assert eager == ours
    weights, truth = b.state_dict(), a.state_dict()
    assert all(torch.equal(weights[k], truth[k]) for k in truth)
