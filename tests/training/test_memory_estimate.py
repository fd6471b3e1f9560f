"""The traced step: nothing waits for the device, and its memory is counted."""

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast.kernels.ops.corrupt import SAMPLINGS
from tdlm_fast.kernels.schedules import SCHEDULES
from tdlm_fast.kernels.triton import tiles
from tdlm_fast.objective import LOSS_WEIGHTS
from tdlm_fast.training import memory_estimate, step
from tests.running import small_config

pytestmark = pytest.mark.slow

LAYOUTS = [("data.layout=paragraphs", "train.accumulation=2"), ("data.layout=packed", "train.accumulation=1")]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda o: " ".join(o))
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_diffusion_step_never_waits_for_the_device(schedule, sampling, layout):
    keys = [f"noise.schedule={schedule}", f"noise.sampling={sampling}", *layout]
    keys += ["loss_weight=published"] * (sampling == "exact")
    memory_estimate.trace(small_config(*keys), tokens=400)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda o: " ".join(o))
@pytest.mark.parametrize("override", ["objective=autoregressive", *(f"loss_weight={w}" for w in LOSS_WEIGHTS)])
def test_nor_does_any_other(override, layout):
    options = "precision=fp32", "model.tied=true", "model.positions=learned", "model.mlp=gelu", "optim.clip=0"
    memory_estimate.trace(small_config(override, *layout), tokens=400)
    memory_estimate.trace(small_config(override, *layout, *options), tokens=400)


@pytest.mark.parametrize(
    "sync",
    [
        lambda x: x.sum().item(),
        lambda x: torch.tensor(3.0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: float(x.sum()),
        lambda x: torch.arange(5)[x.sum().long()],
    ],
)
def test_the_trace_finds_what_would_wait(monkeypatch, sync):
    def waits(*args, **kw):
        sync(args[1].float())
        return real(*args, **kw)

    real = step.OBJECTIVES["diffusion"]
    memory_estimate.trace(small_config(), tokens=400)
    monkeypatch.setitem(step.OBJECTIVES, "diffusion", waits)
    with pytest.raises(Exception) as error:  # ours, or that of fake tensors
        memory_estimate.trace(small_config(), tokens=400)
    assert type(error.value).__name__ in ("HostTransfer", "DynamicOutputShapeException", "DataDependentOutputException")


def test_the_meter_counts_what_is_alive():
    with memory_estimate.FakeTensorMode(), memory_estimate.Meter() as meter:
        a = torch.empty(1000, 1000)
        b = a.view(-1)[5:]  # no new storage
        c = a + 1
        one = 4_000_256  # 512-byte units
        assert meter.live == meter.peak == 2 * one
        del a, b
        c.add_(1)
        torch.empty(1)
        assert meter.peak == 2 * one and meter.live == one


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
@pytest.mark.parametrize("name, limit_mb", [("tiny", 300), ("base", 7500)])  # 8 GB less the CUDA context
def test_the_step_fits(name, limit_mb, objective):
    # A quarter of base's micro-batches, of the same size: the peak is within one of them.
    fewer = ["train.batch_size=8", "train.accumulation=2"] if name == "base" else []
    c = settings.load(f"configs/{name}.yaml", [f"objective={objective}", *fewer])
    tokens = {"tiny": 2_500_000, "base": 120_000_000}[name]  # WikiText-2, WikiText-103
    weights = 16 * {"tiny": 6_539_776, "base": 90_000_000}[name] / 1e6  # weights, gradients, moments in fp32
    step = memory_estimate.estimate(c, tokens=tokens)
    assert weights < step < step + memory_estimate.scoring(c).peak / 1e6 < limit_mb


def test_an_evaluation_is_counted_beside_the_step():
    """The loss of each token and its hidden state live at once; the weights are the step's, and not counted again."""
    c = small_config("data.layout=packed", "precision=fp32", "eval.batch_size=32")
    peak = memory_estimate.scoring(c).peak
    assert 4 * 32 * 16 * 32 < peak < memory_estimate.scoring(small_config("data.layout=packed", "precision=fp32")).peak


def test_the_head_is_counted_with_its_scratch():
    """Stored form: at least the chunk of logits; fused form: its plan."""
    h, w = torch.empty(8192, 768, dtype=torch.bfloat16), torch.empty(50257, 768)
    chunk = tiles.CHUNK_BYTES * 0.9
    for op in ("lce_backward_weight", "lce_sum"):
        assert memory_estimate.head_scratch(op, (h, w, torch.bfloat16)) > chunk + 4 * w.numel()
    forward = memory_estimate.head_scratch("lce_forward", (h, w, torch.bfloat16))
    assert memory_estimate.head_scratch("lce_sum", (h, w, torch.bfloat16)) == forward + 4 * w.numel() > chunk
    rows = tiles.stored_rows(50257, torch.bfloat16)
    parts = tiles.product_parts(tiles.product(86, torch.bfloat16, "towards_h"), rows, 768, memory_estimate.PROCESSORS)
    logits, casts = 2 * rows * tiles.padded(50257), 2 * (8192 + 50257) * 768
    assert forward == logits + casts + 4 * 768 * (8192 + (parts + 1) * rows)
    assert memory_estimate.head_scratch("lce_forward", (h[:, :64], w[:, :64], torch.bfloat16)) < 16 << 20
