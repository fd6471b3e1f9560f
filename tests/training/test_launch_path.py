"""The launches of a whole training step through Triton's own launch path, without a GPU (tests/kernels/fake_gpu.py)."""

import os

import numpy as np
import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast.data.dataset import Split
from tdlm_fast.kernels import hardware
from tdlm_fast.model import build_model
from tdlm_fast.training import memory_estimate, step
from tdlm_fast.training.cuda_graph import DeviceSteps
from tdlm_fast.training.optimizer import adamw

if not hardware.TRITON_INSTALLED or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton, and not its interpreter", allow_module_level=True)

from tests.kernels import fake_gpu  # it imports Triton

MOST_IN_Y_AND_Z = (
    65_535  # programs of a grid, CUDA programming guide, "Technical Specifications per Compute Capability"
)
STEPS = 4
CASES = [(o, layout) for o in ("diffusion", "autoregressive") for layout in ("packed", "paragraphs")]


def runner_of(objective: str, layout: str) -> DeviceSteps:
    """The steps of configs/tiny.yaml at its full size, on rows of zeros: no launch depends on the tokens."""
    c = settings.load("configs/tiny.yaml", [f"objective={objective}", f"data.layout={layout}", "precision=bf16"])
    rows, T = 3 * c.train.batch_size, c.model.seq_len
    starts = np.arange(rows) * T
    split = Split(np.zeros(rows * T, np.uint16), np.full(rows, T), T, layout == "paragraphs", starts, 1, None)
    vocabulary = memory_estimate.sizes(c.data)
    model = build_model(c, vocabulary).train()
    return DeviceSteps(model, adamw(model, c.optim), step.objective(c, vocabulary), split, c, steps=STEPS, mode="off")


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def run(request):
    """(launches, compiled kernels) of each of some steps where the tensors lie on GPU 1."""
    with fake_gpu.FakeGpu(index=1) as gpu:
        runner, started, compiled = runner_of(*request.param), [], []
        for i in range(STEPS):
            runner.step.fill_(i)  # the kernel that counts the steps does not run
            launched, known = len(gpu.launches), len(gpu.compiled)
            runner.run(i)
            started.append(gpu.launches[launched:])
            compiled.append(gpu.compiled[known:])
    return started, compiled


def test_every_kernel_is_compiled_in_the_first_step(run):
    """A later compile would fall into a captured graph, or wait in the middle of training."""
    started, (first, *later) = run
    assert not any(later)
    assert {launch.kernel for launches in started for launch in launches} == set(first)
    assert 20 <= len(first) <= 36  # each is about a second of the start of a run


def test_every_grid_is_one_that_a_gpu_takes(run):
    started, _ = run
    assert all(launches == started[1] for launches in started[2:])
    for kernel, (x, y, z), _ in started[0] + started[1]:
        assert 0 < x < 2**31 and 0 < y <= MOST_IN_Y_AND_Z and 0 < z <= MOST_IN_Y_AND_Z, kernel


def test_every_kernel_is_started_on_the_gpu_of_its_tensors(run):
    started, _ = run
    assert {launch.kernel for launches in started for launch in launches if launch.current != 1} == set()


def test_a_fake_gpu_sees_what_these_tests_forbid():
    from tdlm_fast.kernels.triton import embedding, swiglu, tiles

    x = torch.randn(5, 32)
    with fake_gpu.FakeGpu(index=1) as gpu:
        for N in (33, 35, 32):  # Triton has code of its own for multiples of 16
            embedding.backward(torch.randn(N, 16), torch.zeros(N, dtype=torch.int64), 9)
        swiglu.forward_kernel[(0, 70_000)](x, x, 5, 16, ROWS=16, BLOCK_D=16, PDL=False, **tiles.SMALL)
    assert gpu.compiled.count("embedding.chunk_kernel") == 2
    assert gpu.launches[-1] == fake_gpu.Launch("swiglu.forward_kernel", (0, 70_000, 1), 0)


def test_a_fake_gpu_leaves_nothing_behind():
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from tdlm_fast.kernels import dispatch
    from tdlm_fast.kernels.triton import swiglu

    def state():
        chains = {key: list(chain) for key, chain in dispatch._chains.items() if chain}
        return (
            driver._active, JITFunction._do_compile, torch.empty, torch.cuda.device, torch.cuda.current_device, chains,
            {name: vars(torch.Tensor).get(name) for name in ("is_cuda", "is_cpu", "device", "new_empty")},
            dict(swiglu.forward_kernel.device_caches),
        )  # fmt: skip

    before, x = state(), torch.randn(5, 32)
    found = fake_gpu.launches(lambda: swiglu.forward(x), index=3)
    assert found == [fake_gpu.Launch("swiglu.forward_kernel", (1, 1, 1), 3)]
    assert state() == before and x.device.type == "cpu"
