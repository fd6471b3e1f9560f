"""What surrounds the model in a step (drawing, ordering, clipping, the log), and the whole step as a GPU runs it."""

import contextlib
import math

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast.kernels import dispatch, hardware, use_backend
from tdlm_fast.kernels.ops import stable_sort
from tdlm_fast.kernels.ops.batch import draw
from tdlm_fast.kernels.ops.next_token import next_token
from tdlm_fast.kernels.ops.stable_sort import stable_order
from tdlm_fast.kernels.ops.step_scalars import clip_scale, record
from tdlm_fast.kernels.triton import tiles
from tdlm_fast.model import build_model
from tdlm_fast.training import step
from tdlm_fast.training.cuda_graph import DeviceSteps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ---- drawing -----------------------------------------------------------------------------------------------------


def split_of(T, dtype, g):
    lengths = torch.randint(1, T + 1, (11,), generator=g)
    tokens = torch.randint(torch.iinfo(dtype).min, torch.iinfo(dtype).max, (int(lengths.sum()),), generator=g)
    parts = tokens.to(dtype), lengths.cumsum(0) - lengths, lengths, torch.randperm(11, generator=g)
    return [a.to(DEVICE) for a in parts]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("T, dtype", [(1, torch.int16), (33, torch.int32), (1500, torch.int16)])
def test_draw_gives_the_references_rows(T, dtype, padded):
    g = torch.Generator().manual_seed(T)
    parts, mask = split_of(T, dtype, g), 2 ** (8 * dtype.itemsize) - 1
    for number in (0, 1, 2, 7):  # 2 steps an epoch
        args = *parts, torch.tensor(number, device=DEVICE), 4, 2, T, mask, padded
        for a, b in zip(draw(*args), dispatch.reference(draw)(*args), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
    assert draw(*args)[0].max() > mask // 2 or T == 1  # unsigned


# ---- the order of tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["any", "few", "alike", "int32"])
@pytest.mark.parametrize("N", [1, 31, 32, 129, 700])
def test_the_order_is_torchs(kind, N):
    g = torch.Generator().manual_seed(N)
    bound = {"few": 3, "alike": 8}.get(kind, 50258)
    keys = torch.randint(0, bound, (N,), generator=g).to(DEVICE)
    keys = {"alike": keys * 0 + 7, "int32": keys.int()}.get(kind, keys)
    ordered, where = stable_order(keys, bound)
    truth, place = torch.sort(keys.int(), stable=True)
    assert ordered.dtype == torch.int32 and torch.equal(ordered, truth) and torch.equal(where, place)


def test_what_is_too_long_or_too_large_is_sorted(monkeypatch):
    keys = torch.tensor([2**30, 5, 2**30, 0], device=DEVICE)
    assert (
        not stable_sort.serves(4, 2**31) and stable_sort.serves(2**13, 50258) and not stable_sort.serves(2**13 + 1, 2)
    )
    assert stable_order(keys, 2**31)[1].tolist() == [3, 1, 0, 2]
    monkeypatch.setattr(stable_sort, "MAX_N", 3)
    assert stable_order(keys % 100, 100)[1].tolist() == [3, 1, 0, 2]


# ---- what next-token reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["some", "none", "all", "anywhere"])
@pytest.mark.parametrize("B, T", [(1, 1), (3, 17), (5, 1030)])
def test_next_token_gives_the_references_rows(B, T, padding, monkeypatch):
    g = torch.Generator().manual_seed(T)
    x0, read = (torch.randint(0, 50258, (B, T), generator=g).to(DEVICE) for _ in range(2))
    valid = torch.arange(T) < torch.randint(0, T + 1, (B, 1), generator=g)
    valid = {"none": valid | True, "all": valid & False, "anywhere": torch.rand(B, T, generator=g) < 0.5}.get(
        padding, valid
    )
    args = read, x0, valid.to(DEVICE), 50256
    found, truth = next_token(*args), dispatch.reference(next_token)(*args)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, truth, strict=True))
    monkeypatch.setattr(tiles, "MAX_T", T - 1)
    assert all(torch.equal(a, b) for a, b in zip(next_token(*args), truth, strict=True))
    with pytest.raises(ValueError, match="must be"):
        monkeypatch.undo()
        next_token(read, x0, valid.to(DEVICE)[:, :0], 50256)


# ---- clipping and the log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("P", [1, 15, 300])
@pytest.mark.parametrize("clip", [1.0, 0.01, math.inf])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_clipping_by_scale_is_clip_grad_norm(P, clip, size):
    grads = [torch.randn(5, device=DEVICE) * size for _ in range(P)]
    norms, loss = torch.stack(torch._foreach_norm(grads)), torch.tensor(3.0, device=DEVICE)
    norm, scale, skip = clip_scale(norms, loss, clip)
    scaled = [g / scale for g in grads]
    for p in (leaves := [torch.zeros(5, device=DEVICE, requires_grad=True) for _ in grads]):
        p.grad = grads.pop(0)
    truth = torch.nn.utils.clip_grad_norm_(leaves, clip)
    torch.testing.assert_close(norm, truth)
    assert skip == 0 and all(torch.allclose(a, p.grad, rtol=1e-5) for a, p in zip(scaled, leaves, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_skipped(bad):
    one, none = torch.ones(3, device=DEVICE), torch.tensor(0.0, device=DEVICE)
    assert clip_scale(one, none + bad, 1.0)[2] == 1 and clip_scale(one * bad, none, 1.0)[2] == 1
    assert clip_scale(one, none, 1.0)[2] == 0


def test_the_log_takes_a_line_a_step():
    log, number = torch.zeros(3, 4, dtype=torch.float64, device=DEVICE), torch.tensor(1, device=DEVICE)
    for i in range(1, 5):
        scalars = [torch.tensor(v, device=DEVICE) for v in (i + 0.5, i / 3, 2**40 + i, i)]
        record(log, number, *scalars)
    assert number == 5
    lines = {i % 3: [i + 0.5, float(torch.tensor(i / 3)), 2.0**40 + i, i] for i in (2, 3, 4)}
    assert log.tolist() == [lines[i] for i in range(3)]


def test_opcheck():
    g, log = torch.Generator().manual_seed(0), torch.zeros(3, 4, dtype=torch.float64, device=DEVICE)
    scalar = torch.tensor(1.0, device=DEVICE)
    torch.library.opcheck(draw, (*split_of(9, torch.int16, g), scalar.long(), 4, 2, 9, 65535, True))
    torch.library.opcheck(draw, (*split_of(9, torch.int16, g), scalar.long(), 4, 2, 9, 65535, False))
    x0 = torch.tensor([[3, 1, 3]], device=DEVICE)
    torch.library.opcheck(next_token, (x0, x0, x0 > 1, 4))
    torch.library.opcheck(stable_order, (torch.tensor([3, 1, 3], device=DEVICE), 4))
    torch.library.opcheck(clip_scale, (torch.ones(3, device=DEVICE), scalar, 1.0))
    torch.library.opcheck(record, (log, scalar.long(), scalar, scalar, scalar.long(), scalar.long()))


# ---- the whole step ----------------------------------------------------------------------------------------------


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

    vocabulary = memory_estimate.TOKENIZERS["bytes"]
    model, loss_of = build_model(c, vocabulary).to(device).train(), step.objective(c, vocabulary)
    rows = split(c.data.layout == "paragraphs")
    runner = DeviceSteps(model, adamw(model, c.optim), loss_of, rows, c, steps=9, mode="off")
    return outcomes(runner, 0, runs), [p.detach() for p in model.parameters()]


@pytest.fixture
def as_gpu(monkeypatch):
    """Python code sees the CPU's tensors as those of a GPU, whose kernels the interpreter runs."""
    if DEVICE == "cuda":
        return lambda dtype: contextlib.nullcontext()

    def pretend(dtype):
        # The interpreter multiplies bf16 wrongly, so fp16 stands in for it.
        if dtype == torch.float16:
            monkeypatch.setattr(step, "autocast", lambda device, precision: torch.autocast("cpu", dtype))
        return hardware.pretend((8, 6), 4, torch.Tensor)

    return pretend


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["paragraphs", "packed"])
@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_step_of_the_gpus_kernels_is_the_references(objective, layout, precision, as_gpu):
    with use_backend("reference"):
        truth, weights = steps(config(f"objective={objective}", f"data.layout={layout}", "precision=fp32"), "cpu")
    c = config(f"objective={objective}", f"data.layout={layout}", f"precision={precision}")
    with as_gpu(torch.float16 if precision == "bf16" else torch.float32):
        found, mine = steps(c, DEVICE)
    close = 2e-4 if precision == "fp32" else 1e-2
    for a, b in zip(found, truth, strict=True):
        assert (a["tokens"], a["loss_tokens"]) == (b["tokens"], b["loss_tokens"])
        assert a["loss"] == pytest.approx(b["loss"], rel=close)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=3 * close)
    if precision == "fp32":  # AdamW makes a step of the learning rate of any gradient, however small
        for a, b in zip(mine, weights, strict=True):
            assert (a.cpu() - b).abs().mean() < 1e-3
