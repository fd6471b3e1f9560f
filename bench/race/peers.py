"""The peers that our kernels are raced against, each at its best setting.

A side is a function of no arguments that does the whole work, forward and gradients. Only our head takes a row count on
the device and a weight per token in one call. Its peers get only the live rows, as if the host knew the count. Peers
without weights per token do less work. A loss that cannot run here raises Absent with the reason.
"""

import contextlib
import functools
import importlib.util
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.race.cases import Attention, Corrupt, Embed, Gate, Lce, Norm, Update
from tdlm_fast import config as settings
from tdlm_fast.kernels import add_rms_norm, attention, corrupt, embedding, linear_cross_entropy, swiglu
from tdlm_fast.kernels.ops.attention import attention_ref
from tdlm_fast.kernels.ops.corrupt import corrupt_ref
from tdlm_fast.kernels.ops.rms_norm import rms_norm_ref
from tdlm_fast.training import step
from tdlm_fast.training.optimizer import adamw

os.environ.setdefault("CCE_AUTOTUNE", "1")  # cut-cross-entropy reads it when imported; by default it runs untuned
# Each race has one shape: without dynamic=False Dynamo compiles a slower, dynamic form at the second shape it sees.
compiled = functools.partial(torch.compile, dynamic=False)


class Absent(Exception):
    """A side that cannot run here; the message says why."""


@contextlib.contextmanager
def ready_within(seconds: float):
    """Raise Absent where the block, which compiles or tunes a side, takes longer; 0 or no alarms: never."""
    if not seconds or not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*_):
        raise Absent(f"not ready after {seconds:g} s of compiling and tuning")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Side(NamedTuple):
    name: str
    run: Callable | None
    note: str = ""
    recomputes: bool = False  # a product of the forward pass in the backward pass


def why_not(error: Exception) -> str:
    """The reason in one line."""
    if isinstance(error, Absent):
        return str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _need(package: str, device: torch.device) -> None:
    name = package.replace("_", "-")
    if importlib.util.find_spec(package) is None:
        raise Absent(f"pip install {name}")
    if device.type != "cuda":
        raise Absent(f"{name} needs a GPU")


def plain_loss(h, w, y, weights):
    """The sum over rows, with the logits in memory; h (N, D), w (V, D), y (N,) int64, weights (N,) fp32."""
    return (F.cross_entropy((h @ w.T).float(), y, reduction="none") * weights).sum()


def torch_loss(h, w, y, chunk=0):
    """The sum over rows by F.linear_cross_entropy, `chunk` rows at a time; 0: PyTorch chooses."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Absent("needs PyTorch 2.13")
    how = {"options": torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)} if chunk else {}
    return F.linear_cross_entropy(h, w, y, reduction="mean", **how).float() * len(y)  # a sum would be rounded to bf16


def liger_loss(h, w, y, budget=1):
    """The sum over rows by Liger, in chunks whose logits are `budget` times as large as h."""
    _need("liger_kernel", h.device)
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(h, w, y, reduction="sum", chunk_mem_const=budget)


def liger_scaled_loss(h, w, y, weights):
    """The weighted sum over rows by Liger's loss per token: CuTe kernels on Hopper, else chunks in PyTorch."""
    _need("liger_kernel", h.device)
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as of

    return (of.apply(h, w, y) * weights).sum()


def cce_loss(h, w, y):
    """The sum over rows by cut-cross-entropy without its filter; h and w in 16 bits."""
    _need("cut_cross_entropy", h.device)
    from cut_cross_entropy.linear_cross_entropy import LinearCrossEntropyImpl
    from cut_cross_entropy.linear_cross_entropy import linear_cross_entropy as of

    if "CCE_EXACT" in LinearCrossEntropyImpl.__members__:
        return of(h, w, y, reduction="sum", impl="cce_exact")
    return of(h, w, y, reduction="sum", impl="cce", filter_eps=None)  # the release on PyPI, 25.1.1, has no such name


def _seconds(run: Callable, device: str) -> float:
    run()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def tuned(name: str, make: Callable, settings, device: str, note: str = "") -> Side:
    """The fastest of make(setting), by one timed call each; settings that fail drop out."""
    took = {}
    for setting in settings:
        try:
            took[setting] = _seconds(make(setting), device)
        except Exception as error:
            reason = why_not(error)
    if not took:
        return Side(name, None, reason)
    best = min(took, key=took.get)
    return Side(f"{name} of {best}", make(best), note)


def lce_sides(case: Lce, dtype: torch.dtype, device: str) -> list[Side]:
    h, w, y, weights, n_rows = case.inputs(dtype, device)
    h, w = h.requires_grad_(), w.requires_grad_()
    live = slice(case.live)
    x, y_live, weights_live = h.detach()[live].requires_grad_(), y[live], weights[live]

    def both(loss, *more, **options):
        return lambda: torch.autograd.grad(loss(x, w, y_live, *more, **options), (x, w))

    def ours():
        return torch.autograd.grad(linear_cross_entropy(h, w, y, weights, n_rows=n_rows), (h, w))

    note = "no weight per token"
    # Chunks of 64 rows or fewer are hopeless; each setting costs two calls, which take seconds on a CPU.
    chunks = [c for c in ((512, 2048) if device == "cpu" else (256, 512, 1024, 2048, 4096, 8192)) if c <= case.live]
    chunks = chunks or [case.live]
    budgets = [b for b in (16, 64, 256, 1024) if b * case.D <= 8 * case.V]
    return [
        Side("tdlm_fast", ours, recomputes=device != "cpu" and case.D <= 512),  # the fused form recomputes the logits
        Side("PyTorch", both(plain_loss, weights_live)),
        Side("torch.compile of it", both(compiled(plain_loss), weights_live)),
        Side("F.linear_cross_entropy, auto", both(torch_loss), note),
        tuned("F.linear_cross_entropy, chunks", lambda c: both(torch_loss, chunk=c), chunks, device, note),
        Side("liger-kernel, default", both(liger_loss), note),
        tuned("liger-kernel, budget", lambda b: both(liger_loss, budget=b), budgets, device, note),
        Side("liger-kernel, scaled", both(liger_scaled_loss, weights_live)),
        Side("cut-cross-entropy, exact", both(cce_loss), note, recomputes=True),
    ]


def corrupt_sides(case: Corrupt, device: str) -> list[Side]:
    x0, valid = case.inputs(device)
    rest = (None, None, 50257, "linear", "stratified", 0, case.B)
    step = torch.tensor(7, device=device)
    compiled_ref = compiled(corrupt_ref)
    slow = "not on a CPU: compiling Philox's ten rounds takes minutes there (five were not enough)"
    return [
        Side("tdlm_fast", lambda: corrupt(x0, valid=valid, seed=1, step=7, mask_token_id=50257)),
        Side("tdlm_fast, step on the device", lambda: corrupt(x0, valid=valid, seed=1, step=step, mask_token_id=50257)),
        Side("PyTorch", lambda: corrupt_ref(x0, valid, 1, 7, *rest)),
        Side("torch.compile of it", None, slow)
        if device == "cpu"
        else Side("torch.compile of it", lambda: compiled_ref(x0, valid, 1, 7, *rest)),
    ]


def attention_sides(case: Attention, dtype: torch.dtype, device: str) -> list[Side]:
    qkv, dout, valid = case.inputs(dtype, device)
    qkv = [a.requires_grad_() for a in qkv]
    keep = None
    if valid is not None:
        own = torch.eye(case.T, dtype=torch.bool, device=device)
        keep = valid[:, None, None, :] | own
        keep = keep & torch.ones_like(own).tril() if case.causal else keep

    def both(of):
        return lambda: torch.autograd.grad(of(*qkv), qkv, dout)

    def flash(q, k, v):
        _need("flash_attn", q.device)
        if valid is not None:
            raise Absent("flash-attn takes no mask")
        from flash_attn import flash_attn_func

        return flash_attn_func(*(a.transpose(1, 2) for a in (q, k, v)), causal=case.causal).transpose(1, 2)

    causal = case.causal and keep is None
    plain = functools.partial(attention_ref, valid=valid, segments=None, key=None, causal=case.causal, dropout_p=0.0)
    return [
        Side("tdlm_fast", both(functools.partial(attention, causal=case.causal, valid=valid)), recomputes=True),
        Side("F.scaled_dot_product_attention",
             both(functools.partial(F.scaled_dot_product_attention, attn_mask=keep, is_causal=causal))),
        Side("scores in memory", both(plain)),
        Side("torch.compile of it", both(compiled(plain))),
        Side("flash-attn", both(flash), recomputes=True),
    ]  # fmt: skip


EPS = 1e-6


def norm_sides(case: Norm, dtype: torch.dtype, device: str) -> list[Side]:
    inputs, grads = case.inputs(dtype, device)
    inputs = [a.requires_grad_() for a in inputs]

    def both(norm):
        def plain(x, weight, a=None):
            s = x if a is None else x + a
            return (norm(s, weight),) if a is None else (norm(s, weight), s)

        return lambda: torch.autograd.grad(plain(*inputs), inputs, grads)

    def ours(x, weight, a=None):
        s, y = add_rms_norm(x, a, weight, EPS)
        return (y,) if a is None else (y, s)

    def liger(x, weight):
        _need("liger_kernel", x.device)
        from liger_kernel.transformers.functional import liger_rms_norm

        return liger_rms_norm(x, weight, EPS, in_place=False)  # in place it overwrites dy, which the other sides read

    def fused(x, weight, a):
        _need("liger_kernel", x.device)
        from liger_kernel.transformers.functional import liger_fused_add_rms_norm

        return liger_fused_add_rms_norm(x, a, weight, EPS, in_place=False)

    def torchs(x, weight):
        return F.rms_norm(x, weight.shape, weight, EPS)

    compiled_ref = compiled(lambda x, weight: rms_norm_ref(x, weight, EPS).to(x.dtype))
    sides = [
        Side("tdlm_fast", lambda: torch.autograd.grad(ours(*inputs), inputs, grads)),
        Side("F.rms_norm", both(torchs)),
        Side("torch.compile of the reference", both(compiled_ref)),
        Side("liger-kernel", both(liger)),
    ]
    if case.add:
        sides.append(Side("liger-kernel, fused", lambda: torch.autograd.grad(fused(*inputs), inputs, grads)))
    return sides


def gate_sides(case: Gate, dtype: torch.dtype, device: str) -> list[Side]:
    x, dy = case.inputs(dtype, device)
    x = x.requires_grad_()

    def both(of):
        return lambda: torch.autograd.grad(of(x), x, dy)

    def torchs(x):
        g, u = x.chunk(2, -1)
        return F.silu(g) * u

    def liger(x):
        _need("liger_kernel", x.device)
        from liger_kernel.transformers.functional import liger_swiglu

        return liger_swiglu(*(a.contiguous() for a in x.chunk(2, -1)))  # it takes gate and input as two tensors

    return [
        Side("tdlm_fast", both(swiglu)),
        Side("PyTorch", both(torchs)),
        Side("torch.compile of it", both(compiled(torchs))),
        Side("liger-kernel", both(liger)),
    ]


def embedding_sides(case: Embed, dtype: torch.dtype, device: str) -> list[Side]:
    tokens, w, dx = case.inputs(dtype, device)
    w = w.requires_grad_()

    def both(of):
        return lambda: torch.autograd.grad(of(tokens, w), w, dx)

    def liger(tokens, w):
        _need("liger_kernel", w.device)
        from liger_kernel.ops.experimental.embedding import LigerEmbeddingFunction

        return LigerEmbeddingFunction.apply(w, tokens)

    return [
        Side("tdlm_fast", both(embedding)),
        Side("F.embedding", both(F.embedding)),
        Side("torch.compile of it", both(compiled(F.embedding)), "atomic additions"),
        Side("liger-kernel", both(liger), "atomic additions"),
    ]


class _Weights(torch.nn.Module):
    """Parameters of an Update, the first an embedding table, and their gradients."""

    def __init__(self, case: Update, device: str):
        super().__init__()
        g = torch.Generator().manual_seed(case.D)
        made = [torch.randn(s, generator=g) * 0.02 for s in case.shapes()]
        self.table = torch.nn.Embedding(*made[0].shape, _weight=made[0], device=device)
        self.rest = torch.nn.ParameterList(a.to(device) for a in made[1:])
        self.gradients = [(torch.randn(p.shape, generator=g) * 0.01).to(device) for p in self.parameters()]

    def receive(self) -> None:
        for p, g in zip(self.parameters(), self.gradients, strict=True):
            p.grad = g


def update_sides(case: Update, device: str) -> list[Side]:
    """Every side clips its own gradients to norm 1 and updates its own weights; after the first call the norm is 1."""
    config = settings.Config()
    loss = torch.zeros((), device=device)

    def make(is_compiled=False, **options):
        weights = _Weights(case, device)
        optimizer = adamw(weights, config.optim)
        if options:
            groups = [{k: g[k] for k in ("params", "weight_decay", "lr", "betas")} for g in optimizer.param_groups]
            optimizer = torch.optim.AdamW(groups, **options)

        def plain():
            torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
            optimizer.step()

        of = (lambda: step.update(weights, optimizer, loss, config)) if not options else plain
        of = compiled(of) if is_compiled else of

        def run():
            weights.receive()
            of()
            return weights

        return run

    return [
        Side("tdlm_fast", make()),
        Side("clip_grad_norm_, AdamW fused", make(fused=True)),
        Side("clip_grad_norm_, AdamW foreach", make(foreach=True)),
        Side("torch.compile of it", make(True, foreach=True, capturable=device == "cuda")),
    ]
