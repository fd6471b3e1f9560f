"""A whole training step of the GPU's kernels is the step of the references."""

import contextlib

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast.kernels import hardware, use_backend
from tdlm_fast.kernels.ops import rms_norm
from tdlm_fast.model import build_model
from tdlm_fast.training import step
from tdlm_fast.training.cuda_graph import DeviceSteps
from tests.kernels.triton.machine import DEVICE, INTERPRETED


def config(*overrides):
    return settings.load("configs/tiny.yaml", [
        "data.tokenizer=bytes", "model.width=32", "model.heads=2", "model.inner=40", "model.seq_len=16",
        "model.dropout=0", "train.batch_size=8", "optim.lr=1e-2", *overrides,
    ])  # fmt: skip


def steps(c, device, runs=3):
    """The outcomes of some steps, and the weights after them."""
    from tdlm_fast.training import memory_estimate
    from tdlm_fast.training.optimizer import adamw
    from tests.training.test_cuda_graph import outcomes, split

    vocabulary = memory_estimate.sizes(settings.Data(tokenizer="bytes"))
    model, loss_of = build_model(c, vocabulary).to(device).train(), step.objective(c, vocabulary)
    rows = split(c.data.layout == "paragraphs")
    runner = DeviceSteps(model, adamw(model, c.optim), loss_of, rows, c, steps=9, mode="off")
    return outcomes(runner, 0, runs), list(model.state_dict().values())


@pytest.fixture
def as_gpu(monkeypatch):
    """Python code sees the CPU's tensors as those of a GPU, whose kernels the interpreter runs."""
    if DEVICE == "cuda":
        return lambda dtype: contextlib.nullcontext()

    monkeypatch.setattr(rms_norm, "PARTS", 12)  # programs of a norm's gradient; of 256 nearly all have no row

    def pretend(dtype):
        # The interpreter multiplies bf16 wrongly, so fp16 stands in for it.
        if dtype == torch.float16 and INTERPRETED:
            monkeypatch.setattr(step, "autocast", lambda device, precision: torch.autocast("cpu", dtype))
        return hardware.pretend(*hardware.INTERPRETER, torch.Tensor)

    return pretend


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["paragraphs", "packed"])
@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_step_of_the_gpus_kernels_is_the_references(objective, layout, precision, as_gpu):
    with use_backend("reference"):
        truth, weights = steps(config(f"objective={objective}", f"data.layout={layout}", "precision=fp32"), "cpu")
    c = config(f"objective={objective}", f"data.layout={layout}", f"precision={precision}")
    with as_gpu(torch.float16 if precision == "bf16" else torch.float32):
        result, mine = steps(c, DEVICE)
    close = 2e-4 if precision == "fp32" else 1e-2
    for a, b in zip(result, truth, strict=True):
        assert (a["tokens"], a["loss_tokens"]) == (b["tokens"], b["loss_tokens"])
        assert a["loss"] == pytest.approx(b["loss"], rel=close)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=3 * close)
    if precision == "fp32":  # AdamW makes a step of the learning rate of any gradient, however small
        for a, b in zip(mine, weights, strict=True):
            assert (a.cpu() - b).abs().mean() < 1e-3
