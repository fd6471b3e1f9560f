"""The native CPU kernels against fp64: at most twice the error of the torch reference in the same dtype."""

import functools
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.race.cases import LCE, Lce
from tdlm_fast.kernels import linear_cross_entropy, rms_norm, swiglu
from tdlm_fast.kernels.cpu import library as native
from tdlm_fast.kernels.cpu import linear_cross_entropy as head
from tdlm_fast.kernels.ops.linear_cross_entropy import lce_backward_weight, lce_forward, lce_sum

pytestmark = pytest.mark.slow

DTYPES = (torch.float32, torch.bfloat16)
CASES = {c.name: c for c in (*LCE, Lce("rising logits", 40, 64, 2000, rise=200.0)) if c.D < 512}
MANY = {c.name: c for c in (  # more rows than keep their probabilities at a time
    Lce("many rows", 700, 33, 50257, n_rows=650), Lce("rising logits of many rows", 600, 16, 50257, rise=200.0),
)}  # fmt: skip


@pytest.fixture(params=native.available())
def isa(request):
    native.use(request.param)
    yield request.param
    native.use(os.environ.get("TDLM_CPU_ISA"))


def problem(case, dtype):
    return (CASES | MANY)[case].inputs(dtype)[:4]


def answers(h, w, y, weights, of):
    h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
    nll = of(h, w, y)
    return [nll.detach(), *torch.autograd.grad(nll, (h, w), weights.to(nll.dtype))]


def ours(case, dtype, reduction="none"):
    h, w, y, weights = problem(case, dtype)
    n_rows, V = (CASES | MANY)[case].inputs(dtype)[4], (CASES | MANY)[case].valid_vocab
    if n_rows is not None:
        h[int(n_rows) :] = float("nan")  # what lies past the count must not be read
        y[int(n_rows) :] = -100
    of = functools.partial(linear_cross_entropy, valid_vocab=V, n_rows=n_rows, reduction=reduction)
    if reduction == "sum":  # gradients of 3 sum_i weights_i nll_i
        return answers(h, w, y, torch.tensor(3.0), functools.partial(of, token_weights=weights))
    return answers(h, w, y, weights, of)


def weighted(answer, case, dtype):
    """What "sum" gives where "none" gives `answer`."""
    nll, dh, dw = answer
    return [nll.double() @ problem(case, dtype)[3].double(), 3 * dh, 3 * dw]


@functools.cache
def truth_and_reference(case, dtype):
    h, w, y, weights = problem(case, dtype)
    V, live = (CASES | MANY)[case].valid_vocab, torch.arange(len(y)) < (CASES | MANY)[case].live
    truth = answers(
        h.double(), w.double(), y, weights * live,
        lambda h, w, y: F.cross_entropy((h @ w.T)[:, :V], y, reduction="none") * live,
    )  # fmt: skip
    native.use("none")
    return truth, ours(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_the_references(isa, case, dtype):
    truth, reference = truth_and_reference(case, dtype)
    native.use(isa)
    h, w, _, _ = problem(case, dtype)
    size = [x.abs().max().item() if x.numel() else 0 for x in (h.float() @ w.float().T, w, h)]
    noise = 2e-7 * (1 + size[0]) + (3e-6 if dtype == torch.bfloat16 else 0)  # of fp32 logits, of the 2^x of bf16
    scales = (1, 1000 * size[1], 1000 * size[2])
    for mine, theirs, true, scale in zip(ours(case, dtype), reference, truth, scales, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        if true.numel():
            rounding = torch.finfo(mine.dtype).eps * true.abs().max()  # a gradient is rounded to its type twice
            assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + noise * scale + rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES, *MANY])
def test_error_of_three_products_is_at_most_twice_the_references(isa, case, dtype):
    truth, reference = (weighted(a, case, dtype) for a in truth_and_reference(case, dtype))
    native.use(isa)
    h, w, _, weights = problem(case, dtype)
    size = [x.abs().max().item() if x.numel() else 0 for x in (h.float() @ w.float().T, w, h)]
    noise = 2e-7 * (1 + size[0]) + (3e-6 if dtype == torch.bfloat16 else 0)
    scales = (weights.abs().sum().item(), 3000 * size[1], 3000 * size[2])
    for mine, theirs, true, scale in zip(ours(case, dtype, "sum"), reference, truth, scales, strict=True):
        assert mine.dtype in (torch.float32, dtype) and mine.shape == theirs.shape
        if true.numel():
            rounding = torch.finfo(mine.dtype).eps * true.abs().max()  # a gradient is rounded to its type twice
            assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + noise * scale + rounding


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("right", [False, True], ids=["any target", "the most probable target"])
@pytest.mark.parametrize("spread", [1, 28, 220])
def test_fp32_gradients_of_large_logits_are_within_twice_pytorchs_error(isa, spread, right, reduction):
    """Logits of a standard deviation up to 220 reach 1,000. D = 768: long sums round more than short ones."""
    native.use(isa)
    g = torch.Generator().manual_seed(spread)
    h, w = torch.randn(64, 768, generator=g), torch.randn(3000, 768, generator=g) * (spread / 768**0.5)
    logits = h.double() @ w.double().T
    y = logits.argmax(1) if right else torch.randint(3000, (64,), generator=g)
    assert spread < 220 or logits.abs().max() > 900

    def gradients(of, dtype):
        a, b = h.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
        return [x.double() for x in torch.autograd.grad(of(a, b).sum(), (a, b))]

    def plain(a, b):
        return F.cross_entropy(a @ b.T, y, reduction=reduction)

    exact = gradients(plain, torch.float64)
    theirs = gradients(plain, torch.float32)
    mine = gradients(lambda a, b: linear_cross_entropy(a, b, y, reduction=reduction), torch.float32)
    most = 6 if isa == "portable" else 2  # without fused multiply-add the exponent of a large logit is rounded twice
    for name, a, b, e in zip(("dh", "dw"), mine, theirs, exact, strict=True):
        rms = [(x - e).square().mean().sqrt().item() for x in (a, b)]
        assert rms[0] <= most * rms[1] + 1e-9, (name, rms)


def test_zero_weights_and_rows_past_the_count_give_exactly_zero(isa):
    for dtype in DTYPES:
        nll, dh, _ = ours("some rows", dtype)
        assert nll[61:].eq(0).all() and dh[61:].eq(0).all() and dh[::3].eq(0).all()
        h, w, y, _ = problem("wide", dtype)
        assert (
            answers(h, w, y, torch.zeros(len(y)), functools.partial(linear_cross_entropy, reduction="none"))[2]
            .eq(0)
            .all()
        )


def test_inputs_of_two_types_under_autocast(isa):
    h, w, y, weights = problem("wide", torch.bfloat16)
    of = functools.partial(linear_cross_entropy, reduction="none")
    same = answers(h, w, y, weights, of)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = answers(h, w.float(), y, weights, of)
    assert torch.equal(mixed[0], same[0]) and torch.equal(mixed[1], same[1])
    assert mixed[2].dtype == torch.float32 and torch.equal(mixed[2].bfloat16(), same[2])
    one, of = torch.tensor(1.0), functools.partial(linear_cross_entropy, token_weights=weights)
    same = answers(h, w, y, one, of)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = answers(h.float(), w, y, one, of)
    assert mixed[1].dtype == torch.float32
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(same, mixed, strict=True))


def test_a_weighted_sum_takes_three_products_only_where_both_gradients_are_wanted(isa, monkeypatch):
    h, w, y, weights = problem("wide", torch.float32)
    calls = []
    monkeypatch.setattr(head, "_call", lambda name, *a, real=head._call: calls.append(name) or real(name, *a))

    def grads(h_too, w_too, reduction, weights):
        a, b, calls[:] = h.clone().requires_grad_(h_too), w.clone().requires_grad_(w_too), []
        loss = linear_cross_entropy(a, b, y, weights, reduction=reduction).sum()
        wanted = [x for x in (a, b, weights) if x.requires_grad]
        result = iter(torch.autograd.grad(loss, wanted, torch.tensor(0.5)))
        return [next(result) if x.requires_grad else None for x in (a, b, weights)]

    whole = grads(True, True, "sum", weights)
    assert calls == ["tdlm_lce_sum"]
    for h_too, w_too, reduction in ((True, False, "sum"), (False, True, "sum"), (True, True, "none")):
        for mine, same in zip(grads(h_too, w_too, reduction, weights), whole, strict=True):
            if mine is not None:
                torch.testing.assert_close(mine, same, rtol=1e-4, atol=1e-3)
        assert "tdlm_lce_sum" not in calls
    per_weight = grads(True, True, "sum", weights.clone().requires_grad_())[2]
    assert "tdlm_lce_sum" not in calls
    torch.testing.assert_close(per_weight, 0.5 * linear_cross_entropy(h, w, y, reduction="none"))


def test_gradients_of_a_weighted_sum_can_be_taken_again(isa):
    h, w, y, weights = problem("wide", torch.float32)
    h, w = h.requires_grad_(), w.requires_grad_()
    loss = linear_cross_entropy(h, w, y, weights)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        if times == 1:
            first = h.grad.clone(), w.grad.clone()
    for mine, once in zip((h.grad, w.grad), first, strict=True):
        torch.testing.assert_close(mine, 3 * once)


def test_no_bit_depends_on_the_number_of_threads(isa):
    threads = torch.get_num_threads()
    try:
        runs = []
        for n in (1, 5):
            torch.set_num_threads(n)
            case = "odd" if isa.startswith("avx512") else "extreme logits"
            runs.append(ours(case, torch.bfloat16) + ours(case, torch.bfloat16, "sum"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_targets_out_of_range_are_an_error(isa):
    h, w, y, weights = problem("wide", torch.float32)
    for bad in (-1, 515, 2**40):
        y[3] = bad
        with pytest.raises(ValueError, match="must lie in 0..514"):
            lce_forward(h, w, y, None, 515, torch.float32, True)
        with pytest.raises(ValueError, match="must lie in 0..514"):
            lce_backward_weight(h, w, y, weights, weights, None, 515, torch.float32)
        with pytest.raises(ValueError, match="must lie in 0..514"):
            lce_sum(h, w, y, weights, None, 515, torch.float32)


def test_arguments_that_do_not_fit_are_an_error(isa):
    h, w, y, g = problem("wide", torch.float32)
    forward = (h, w, y, None, 515, torch.float32, True)
    backward = (h, w, y, g, g, None, 515, torch.float32)
    for op, good, change in (
        (lce_forward, forward, {1: w[:, :3]}), (lce_forward, forward, {2: y[:3]}),
        (lce_forward, forward, {4: 516}), (lce_sum, (h, w, y, g, None, 515, torch.float32), {3: g[:3]}),
        (lce_backward_weight, backward, {3: g[:3]}), (lce_backward_weight, backward, {4: g[:3]}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="do not fit"):
            op(*(change.get(i, a) for i, a in enumerate(good)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of PyTorch's own forward-mode code
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_second_and_forward_derivatives_are_refused_and_not_wrong(isa, reduction):
    h, w = (torch.randn(n, 16, requires_grad=True) for n in (5, 9))
    loss = linear_cross_entropy(h, w, torch.arange(5), reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, h, create_graph=True)
    x, one = torch.randn(3, 32), torch.ones(3, 32)
    with pytest.raises(RuntimeError, match="no forward-mode derivatives"):
        torch.func.jvp(lambda a: linear_cross_entropy(a, torch.randn(9, 32), torch.arange(3)), (x,), (one,))
    weight = torch.randn(32)
    for of, plain in (
        (lambda a: rms_norm(a, weight, 1e-6), lambda a: F.rms_norm(a, (32,), weight, 1e-6)),
        (swiglu, lambda a: F.silu(a[..., :16]) * a[..., 16:]),
    ):
        torch.testing.assert_close(torch.func.jvp(of, (x,), (one,)), torch.func.jvp(plain, (x,), (one,)))


def test_no_number_stays_no_number(isa):
    h, w = torch.randn(3, 16), torch.randn(7, 16)
    h[1, 2] = float("nan")
    for grad in (False, True):
        nll = linear_cross_entropy(h.requires_grad_(grad), w, torch.arange(3), reduction="none")
        assert nll.isnan().tolist() == [False, True, False]


def test_a_confident_tokens_nll_is_not_negative(isa):
    g = torch.Generator().manual_seed(0)
    h, w = torch.randn(40, 64, generator=g), torch.randn(900, 64, generator=g) * 1000
    y = (h @ w.T).argmax(1)
    for grad in (False, True):
        nll = linear_cross_entropy(h.requires_grad_(grad), w, y, reduction="none")
        assert (nll >= 0).all() and nll.min() == 0


FUZZ = os.environ.get("TDLM_FUZZ")  # as many examples, another set each time: make fuzz


@settings(max_examples=int(FUZZ or 150), deadline=None, derandomize=not FUZZ)
@given(
    st.integers(0, 70), st.integers(1, 140), st.integers(1, 600), st.integers(-3, 80), st.booleans(),
    st.sampled_from(native.available() or ["none"]), st.sampled_from((0, -1, 1, 2**62)),
    st.sampled_from((0.0, 1.0, 1e4, 1e30, float("inf"), float("nan"))),
)  # fmt: skip
def test_hostile_inputs_never_crash(N, D, V, n, bf16, isa, off, scale):
    """Any shape, count, magnitude and target: an answer like the references', or ValueError."""
    g = torch.Generator().manual_seed(N + D + V)
    dtype = DTYPES[bf16]
    # Odd strides: views of larger buffers, so that nothing may lean on contiguity.
    h, w = (
        torch.randn(D, N, generator=g).T.to(dtype),
        (torch.randn(V, 2 * D, generator=g) * scale)[:, ::2].to(dtype),
    )
    y = torch.randint(0, V, (N,), generator=g)
    if N and off:
        y[N // 2] += off
    rows = torch.tensor(n)
    live = min(max(n, 0), N)
    bad = bool(((y < 0) | (y >= V))[:live].any())
    native.use(isa)
    try:
        try:
            nll, lse, dh = lce_forward(h, w, y, rows, V, dtype, True)
        except ValueError:
            assert bad
            return
        assert not bad and nll.shape == (N,) and dh.shape == (N, D)
        dw = lce_backward_weight(h, w, y, lse, torch.randn(N, generator=g), rows, V, dtype)
        loss, dh2, dw2 = lce_sum(h, w, y, torch.randn(N, generator=g), rows, V, dtype)
        assert loss.shape == () and dh2.shape == (N, D) and dw2.shape == (V, D) and dh2[live:].eq(0).all()
        assert dw.shape == (V, D) and nll[live:].eq(0).all() and dh[live:].eq(0).all()
        if scale <= 1:
            assert nll.isfinite().all() and dh.isfinite().all() and dw.isfinite().all()
            assert loss.isfinite() and dh2.isfinite().all() and dw2.isfinite().all()
    finally:
        native.use(os.environ.get("TDLM_CPU_ISA"))
