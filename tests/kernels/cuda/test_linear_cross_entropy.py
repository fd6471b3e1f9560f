"""csrc/cuda without a GPU: its source compiled as C++ against mma.h, which runs the kernels block by block.

The kernels are held to fp64 by at most twice the error of the torch reference in the same dtype, whatever the order
in which the emulated threads run, once more under AddressSanitizer and UBSan, and their compiled form to what
bench/results/resources-cuda.json says. With a GPU, TDLM_BACKEND=cuda runs the same cases on it, through the op.
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import dispatch, linear_cross_entropy
from tdlm_fast.kernels.cuda import library
from tdlm_fast.kernels.cuda import linear_cross_entropy as head
from tdlm_fast.kernels.ops.linear_cross_entropy import lce_backward_weight, lce_forward

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
DTYPES = head.TYPES
CXX = shutil.which(os.environ.get("CXX", "g++"))
EMULATED = os.environ.get("TDLM_CUDA_EMULATED")  # a library built before, with sanitizers
CASES = {  # N, D, V, and what else the problem is made of
    "odd": (37, 40, 203, {}),
    "odd width": (29, 33, 131, {}),
    "one row": (1, 64, 300, {}),
    "one word": (5, 16, 1, {}),
    "three words": (13, 16, 3, {}),
    "two blocks of rows": (130, 24, 70, {}),
    "wide": (20, 96, 90, {"valid_vocab": 75}),
    "widest": (18, 256, 50, {}),
    "some rows": (150, 40, 90, {"n_rows": 71, "valid_vocab": 83}),
    "no rows": (9, 16, 50, {"n_rows": 0}),
    "fewer than no rows": (9, 16, 50, {"n_rows": -3}),
    "more rows than there are": (40, 16, 50, {"n_rows": 43}),
    "extreme logits": (40, 64, 300, {"scale": 60.0, "gradients": 1.0}),
    "rising logits": (20, 32, 400, {"rise": 60.0}),
    "tiny gradients": (20, 32, 100, {"gradients": 1e-8}),
}


def build(folder, *flags):
    if CXX is None:
        pytest.skip("the emulator needs g++")
    library = folder / "emulated.so"
    command = [CXX, "-std=c++17", "-g", "-fno-strict-aliasing", "-shared", "-fPIC", "-fvisibility=hidden", *flags]
    command += ["-Wall", "-Wno-unknown-pragmas", "-Werror", f"-I{FOLDER}", "-x", "c++"]
    subprocess.run([*command, ROOT / "csrc/cuda/linear_cross_entropy.cu", "-o", library], check=True)
    return library


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    built, why = library.load(Path(EMULATED) if EMULATED else build(tmp_path_factory.mktemp("cuda"), "-O2"))
    assert not why
    return built


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cuda":
        if not torch.cuda.is_available() or dispatch.chosen("cuda") != "cuda":
            pytest.skip("needs a GPU and TDLM_BACKEND=cuda")
        yield "cuda"
        return
    monkeypatch.setattr(library, "handle", request.getfixturevalue("emulator"))
    monkeypatch.setattr(library, "_missing", "")
    library.handle.emulate_order(0)
    library.device_error.cache_clear()
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN: an element nobody writes shows
    yield "cpu"
    torch.use_deterministic_algorithms(False)
    library.device_error.cache_clear()


def problem(case, dtype, device="cpu"):
    """h, w, y, weights, n_rows, valid_vocab."""
    N, D, V, more = CASES[case]
    g = torch.Generator().manual_seed(N + D + V)
    h = torch.randn(N, D, generator=g)
    w = torch.randn(V, D, generator=g) * 0.3 * more.get("scale", 1)
    if "rise" in more:  # the running maximum moves all the way along the vocabulary
        h, w = h.abs(), w.abs() * torch.linspace(0, more["rise"], V)[:, None]
    valid = more.get("valid_vocab", V)
    y = torch.randint(0, valid, (N,), generator=g)
    weights = torch.randn(N, generator=g) * more.get("gradients", 1)
    if "gradients" not in more:
        weights[1::5], weights[::3] = 1000, 0
    n_rows = torch.tensor(more["n_rows"]) if "n_rows" in more else None
    move = (h.to(dtype), w.to(dtype), y, weights, n_rows)
    return *(a if a is None else a.to(device) for a in move), valid


def answers(forward, backward_weight, h, w, y, weights, n_rows, V, dtype):
    """nll, dh, dw by the two ops, put together as their autograd does."""
    nll, lse, dh = forward(h, w, y, n_rows, V, dtype, True)
    live = torch.arange(len(h)) < len(h) if n_rows is None else torch.arange(len(h)) < n_rows
    g = torch.where(live, weights, 0.0).to(nll.dtype)
    return nll, (dh * g[:, None]).to(h.dtype), backward_weight(h, w, y, lse, g, n_rows, V, dtype)


def ours(case, dtype, device):
    h, w, y, weights, n_rows, V = problem(case, dtype, device)
    if n_rows is not None:  # what lies past the count must not be read
        past = torch.arange(len(h), device=device) >= n_rows
        h[past], y[past] = float("nan"), 2**40
    if device == "cpu":
        forgotten = weights if n_rows is None else weights.masked_fill(past, float("nan"))

        def backward(h, w, y, lse, g, *more):
            return head.backward_weight(h, w, y, lse, torch.where(g == g, forgotten, g), *more)

        return answers(head.forward, backward, h, w, y, weights, n_rows, V, dtype)
    h, w = h.requires_grad_(), w.requires_grad_()
    nll = linear_cross_entropy(h, w, y, valid_vocab=V, n_rows=n_rows, reduction="none")
    return [a.cpu() for a in (nll.detach(), *torch.autograd.grad(nll, (h, w), weights))]


@functools.cache
def truth_and_reference(case, dtype):
    h, w, y, weights, n_rows, V = problem(case, dtype)
    ops = [dispatch.reference(op) for op in (lce_forward, lce_backward_weight)]
    reference = answers(*ops, h, w, y, weights, _clamped(n_rows), V, dtype)
    live = torch.arange(len(h)) < (len(h) if n_rows is None else n_rows)
    h, w = h.double().requires_grad_(), w.double().requires_grad_()
    nll = F.cross_entropy((h @ w.T)[:, :V], y, reduction="none") * live
    return (nll.detach(), *torch.autograd.grad(nll, (h, w), weights.double() * live)), reference


def _clamped(n_rows):
    return None if n_rows is None else n_rows.clamp(min=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_the_references(device, case, dtype):
    truth, reference = truth_and_reference(case, dtype)
    h, w, y, weights, _, _ = problem(case, dtype)
    size = [x.abs().max().item() for x in (h.float() @ w.float().T, w, h)]
    noise, g = 2e-7 * (1 + size[0]), weights.abs().max().item()  # the noise of fp32 logits
    scales = (noise, noise * g * size[1], noise * g * size[2])
    for mine, theirs, true, scale in zip(ours(case, dtype, device), reference, truth, scales, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + 2 * scale
    nll = ours(case, dtype, device)[0]  # sums are fp32 whatever the dtype: no 16-bit logit lies between
    assert (nll - truth[0]).abs().max() <= 4 * noise


def test_the_gradients_of_fp16_keep_what_fp16_would_lose(device):
    truth, reference = truth_and_reference("tiny gradients", torch.float16)
    h, w, y, weights, n_rows, V = problem("tiny gradients", torch.float16, device)
    _, lse, _ = head.forward(h, w, y, n_rows, V, torch.float16, False)
    dw = head.backward_weight(h, w.float(), y, lse, weights, n_rows, V, torch.float16).cpu()
    assert dw.dtype == torch.float32 and (dw - truth[2]).abs().max() < 2e-3 * truth[2].abs().max()
    assert (reference[2] - truth[2]).abs().max() > 0.5 * truth[2].abs().max()  # or this proves nothing


def test_zero_weights_and_rows_past_the_count_give_exactly_zero(device):
    for dtype in DTYPES:
        nll, dh, dw = ours("some rows", dtype, device)
        assert nll[71:].eq(0).all() and dh[71:].eq(0).all() and dh[::3].eq(0).all() and dw[83:].eq(0).all()
        h, w, y, weights, _, V = problem("odd", dtype, device)
        _, lse, _ = head.forward(h, w, y, None, V, dtype, False)
        lse[3] = float("nan")  # not even a broken row comes through a weight of 0
        assert head.backward_weight(h, w, y, lse, weights * 0, None, V, dtype).eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["odd", "rising logits", "some rows"])
def test_no_bit_depends_on_the_order_of_the_threads(device, case, dtype):
    first = ours(case, dtype, device)
    for order in (1, 12345, 777):
        if device == "cpu":
            library.handle.emulate_order(order)
        assert all(torch.equal(a, b) for a, b in zip(first, ours(case, dtype, device), strict=True))


def test_without_dh_the_loss_is_the_same_and_nothing_else_is_written(device):
    for dtype in DTYPES:
        h, w, y, _, n_rows, V = problem("some rows", dtype, device)
        with_dh, without = (head.forward(h, w, y, n_rows, V, dtype, need) for need in (True, False))
        assert torch.equal(with_dh[0], without[0]) and torch.equal(with_dh[1], without[1])
        assert without[2].shape == (0, h.shape[1]) and without[2].dtype == dtype


def test_inputs_of_other_types_are_rounded_to_the_products_type(device):
    h, w, y, weights, n_rows, V = problem("wide", torch.bfloat16, device)
    for other in (torch.float32, torch.float16):  # fp16 holds these bf16 numbers but for the least of them
        mine = head.forward(h.to(other), w.to(other), y, n_rows, V, torch.bfloat16, True)
        same = head.forward(h.to(other).bfloat16(), w.to(other).bfloat16(), y, n_rows, V, torch.bfloat16, True)
        assert torch.equal(mine[0], same[0]) and mine[2].dtype == other
        torch.testing.assert_close(mine[2].float(), same[2].float(), rtol=2**-7, atol=1e-6)
        dw = head.backward_weight(h.to(other), w.to(other), y, mine[1], weights, n_rows, V, torch.bfloat16)
        assert dw.dtype == other and dw.isfinite().all() and dw[:V].abs().sum() > 0


def test_targets_out_of_range_give_nan_and_read_nothing(device):
    for dtype in DTYPES:
        h, w, y, weights, _, V = problem("odd", dtype, device)
        good = head.forward(h, w, y, None, V, dtype, True)
        for bad in (-1, V, 2**40, -(2**63)):
            y[3] = bad
            nll, lse, dh = head.forward(h, w, y, None, V, dtype, True)
            assert nll.isnan().nonzero().tolist() == [[3]] and dh[3].isnan().all() and torch.equal(lse, good[1])
            rest = torch.arange(len(h)) != 3
            assert torch.equal(nll[rest], good[0][rest]) and torch.equal(dh[rest], good[2][rest])
            assert head.backward_weight(h, w, y, lse, weights, None, V, dtype).isfinite().all()


def test_tensors_that_begin_anywhere_and_have_strides(device):
    for dtype in DTYPES:
        h, w, y, weights, _, V = problem("odd", dtype, device)
        same = head.forward(h, w, y, None, V, dtype, True)
        off = torch.cat((h.new_zeros(1), h.flatten()))[1:].view_as(h)  # two or four bytes past an aligned address
        strided = torch.stack((w, w), -1)[..., 0]
        apart = head.forward(off, strided, torch.stack((y, y), -1)[:, 0], None, V, dtype, True)
        assert off.data_ptr() % 16 and not strided.is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(same, apart, strict=True))


def test_what_the_kernels_do_not_serve_they_say(device):
    for N, D, dtype, message in (
        (5, 257, torch.float32, "256 wide"), (5, 8, torch.float64, "fp32, bf16 and fp16"), (0, 8, torch.float32, "wide")
    ):  # fmt: skip
        h, w = torch.zeros(N, D, dtype=dtype, device=device), torch.zeros(20, D, dtype=dtype, device=device)
        assert message in head.serves(h, w, dtype)
    assert head.serves(torch.zeros(5, 256, device=device), torch.zeros(20, 256, device=device), torch.float16) == ""


def test_arguments_that_do_not_fit_are_an_error(device):
    h, w, y, g, _, V = problem("odd", torch.float32, device)
    for change in ({1: w[:, :3]}, {2: y[:3]}, {4: V + 1}, {4: 0}):
        args = [change.get(i, a) for i, a in enumerate((h, w, y, None, V, torch.float32, True))]
        with pytest.raises(ValueError, match="do not fit"):
            head.forward(*args)
    for change in ({3: g[:3]}, {4: g[:3]}, {6: V + 1}):
        args = [change.get(i, a) for i, a in enumerate((h, w, y, g, g, None, V, torch.float32))]
        with pytest.raises(ValueError, match="do not fit"):
            head.backward_weight(*args)


@pytest.mark.skipif(bool(EMULATED), reason="these are the sanitized tests")
def test_emulated_kernels_under_sanitizers(tmp_path):
    library = build(tmp_path, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    of = [[CXX, f"-print-file-name=lib{s}.so"] for s in ("asan", "ubsan")]
    runtimes = [subprocess.check_output(c, text=True).strip() for c in of]
    env = {**os.environ, "TDLM_CUDA_EMULATED": str(library), "ASAN_OPTIONS": "detect_leaks=0",
           "LD_PRELOAD": " ".join(runtimes), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", __file__]
    command += ["-k", "emulated and not bits"]  # -s: a report must not die with pytest
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode and " passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_emulator_stops_at_a_barrier_that_some_threads_do_not_reach(tmp_path):
    if CXX is None:
        pytest.skip("the emulator needs g++")
    source, program = tmp_path / "barrier.cpp", tmp_path / "barrier"
    source.write_text("""#include <mma.h>
        void kernel(int threads) { if ((int)threadIdx.x < threads) __syncthreads(); }
        int main(int n, char **) {
            int threads = n > 1 ? 40 : 64;
            void *args[] = {&threads};
            return cudaLaunchKernel(kernel, dim3(1), dim3(64), args, 0, nullptr);
        }""")
    subprocess.run([CXX, "-std=c++17", f"-I{FOLDER}", source, "-o", program], check=True)
    assert subprocess.run([program]).returncode == 0
    stopped = subprocess.run([program, "diverge"], capture_output=True, text=True)
    assert stopped.returncode < 0 and "a barrier that some of its threads never reach" in stopped.stderr
