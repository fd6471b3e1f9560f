"""Kernels against known answers and against plain torch in fp64."""

import sys

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import corrupt, linear_cross_entropy
from tdlm_fast.kernels.cuda import library as native_cuda
from tdlm_fast.kernels.ops.linear_cross_entropy import lce_forward, lce_sum
from tdlm_fast.kernels.philox import philox4x32
from tdlm_fast.kernels.schedules import SCHEDULES
from tdlm_fast.kernels.triton import register as gpu

RANDOM123 = [  # kat_vectors of Random123, philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter,key,answer", RANDOM123)
def test_philox_gives_the_published_answers(counter, key, answer):
    out = philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(o) for o in out) == answer


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mean_weight_of_a_token_is_one_for_every_schedule(schedule):
    """E[weight] = integral of m'(t) dt = 1, so a uniform predictor scores exactly ln V."""
    c = corrupt(torch.zeros(4096, 64, dtype=torch.long), seed=1, step=2, mask_token_id=9, schedule=schedule)
    per_row = c.weights.double().mean(1)
    assert abs(per_row.mean() - 1) < 5 * per_row.std() / 64


@pytest.mark.parametrize("sampling", ["stratified", "antithetic", "independent"])
def test_a_split_batch_is_masked_as_the_whole(sampling):
    x0 = torch.randint(0, 50, (8, 33))
    kw = dict(seed=3, step=7, mask_token_id=50, sampling=sampling, batch_rows=8)
    whole = corrupt(x0, **kw)
    parts = [corrupt(x0[i : i + 2], row_offset=i, **kw) for i in range(0, 8, 2)]
    assert torch.equal(whole.xt, torch.cat([p.xt for p in parts]))
    assert torch.equal(whole.weights, torch.cat([p.weights for p in parts]))
    assert not torch.equal(whole.xt, corrupt(x0, **kw | {"step": 8}).xt)


def test_one_level_a_stratum_and_pairs_add_up():
    x0 = torch.zeros(16, 4, dtype=torch.long)
    strata = (corrupt(x0, seed=0, step=0, mask_token_id=1).t * 16).long()
    assert strata.tolist() == list(range(16))
    t = corrupt(x0, seed=0, step=0, mask_token_id=1, sampling="antithetic").t.view(8, 2)
    torch.testing.assert_close(t.sum(1), torch.ones(8))


def test_compaction_lists_the_masked_tokens_in_order():
    x0 = torch.randint(0, 50, (5, 21))
    valid = torch.rand(5, 21) < 0.8
    c = corrupt(x0, seed=5, step=1, mask_token_id=50, valid=valid)
    n = int(c.n_masked)
    assert torch.equal(c.rows[:n], c.masked.view(-1).nonzero()[:, 0])
    assert torch.equal(c.targets[:n], x0[c.masked]) and torch.equal(c.row_weights[:n], c.weights[c.masked])
    assert not (c.masked & ~valid).any() and torch.equal(c.xt[~c.masked], x0[~c.masked])
    assert c.row_weights[n:].abs().sum() == 0


def problem(N, D, V, dtype=torch.float64):
    g = torch.Generator().manual_seed(N + D + V)
    h = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    w = torch.randn(V, D, generator=g).mul(0.3).to(dtype).requires_grad_()
    return h, w, torch.randint(0, V - 3, (N,), generator=g), torch.rand(N, generator=g)


@pytest.mark.parametrize("shape", [(1, 16, 11), (37, 24, 101), (130, 64, 1003)])
@pytest.mark.parametrize("chunk_bytes", [1 << 12, 1 << 28])
def test_linear_cross_entropy_is_the_cross_entropy_of_the_logits(shape, chunk_bytes, monkeypatch):
    monkeypatch.setattr(sys.modules[lce_forward._init_fn.__module__], "CHUNK_BYTES", chunk_bytes)
    h, w, y, weights = problem(*shape)
    V, n = shape[2] - 3, max(1, shape[0] - 5)
    live = torch.arange(shape[0]) < n
    truth = F.cross_entropy((h @ w.T)[:, :V], y, reduction="none") * weights * live
    ours = linear_cross_entropy(h, w, y, weights, valid_vocab=V, n_rows=torch.tensor(n), reduction="none")
    torch.testing.assert_close(ours, truth)
    upstream = torch.rand(shape[0], dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, (h, w), upstream), torch.autograd.grad(truth, (h, w), upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_bf16_is_as_accurate_as_torchs_own():
    h, w, y, _ = problem(64, 32, 307)
    truth = torch.autograd.grad(F.cross_entropy(h @ w.T, y, reduction="sum"), (h, w))

    def error(loss_of):
        a, b = h.detach().float().requires_grad_(), w.detach().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(a, b)
        return [(g - t).abs().max() for g, t in zip(torch.autograd.grad(loss, (a, b)), truth, strict=True)]

    ours = error(lambda a, b: linear_cross_entropy(a, b, y))
    torchs = error(lambda a, b: F.cross_entropy((a @ b.T).float(), y, reduction="sum"))
    for mine, theirs in zip(ours, torchs, strict=True):
        assert mine <= 2 * theirs + 1e-3


def test_ops_pass_opcheck():
    h, w, y, _ = problem(7, 16, 33, torch.float32)
    torch.library.opcheck(lce_forward, (h, w, y, torch.tensor(5), 30, torch.float32, True))
    torch.library.opcheck(lce_sum, (h, w, y, torch.rand(7), torch.tensor(5), 30, torch.float32))
    args = (torch.zeros(2, 5, dtype=torch.long), None, 1, 2, None, None, 3, "cosine", "stratified", 0, 2)
    torch.library.opcheck(torch.ops.tdlm.corrupt.default, args)


def test_errors_name_what_is_wrong():
    h, w, y, _ = problem(7, 16, 33)
    with pytest.raises(ValueError, match="must lie in 0..32"):
        linear_cross_entropy(h, w, y + 40)
    with pytest.raises(ValueError, match="one of linear"):
        corrupt(y.view(1, -1), seed=0, step=0, mask_token_id=1, schedule="lineal")


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_compiled_caller_is_one_graph(reduction):
    """torch.compile(fullgraph=True) of a loss through the op: the gradients of the eager call."""
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 16, generator=g, requires_grad=True) for n in (50, 300))
    y, token_weights, n_rows = torch.randint(300, (50,), generator=g), torch.rand(50, generator=g), torch.tensor(40)

    def loss(h):
        return linear_cross_entropy(2 * h, w, y, token_weights, n_rows=n_rows, reduction=reduction).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (a, *da), (b, *db) = ((v, *torch.autograd.grad(v, (h, w))) for v in (compiled(h), loss(h)))
    for found, expected in zip((a, *da), (b, *db), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_doctor_says_what_serves_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "_hardware", lambda device: (86, 46))
    monkeypatch.setattr(gpu, "missing", lambda: "")
    found = gpu.served()
    assert found["corrupt"] == "Triton; with sampling=counts past 4096 tokens a row the torch reference"
    assert found["swiglu"] == "Triton"
    monkeypatch.setattr(gpu, "missing", lambda: "Triton is not installed")
    assert gpu.served()["corrupt"].startswith("torch references") and gpu.served()["rms_norm"] == "PyTorch"


@pytest.mark.parametrize("backend, said", [
    ("native", "native CUDA serves the head on the GPU, torch references the rest. Triton is not installed"),
    ("none", "the torch references run on the GPU. Triton is not installed"),
])  # fmt: skip
def test_the_warning_without_triton_names_what_runs(monkeypatch, backend, said):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(native_cuda, "backend", backend)
    with pytest.warns(UserWarning, match=said):
        gpu.missing.__wrapped__()
