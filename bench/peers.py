"""The other ways to do what our kernels do, each at its best setting: what they are raced against.

A side is a function of no arguments that does the whole work, forward and both gradients; None says why it is absent.
Only ours takes the row count from the device and a weight a token in one call; the others get the live rows alone,
as if the host had known the count, and where they know no weight a token they go without, which is less work.
"""

import functools
import importlib.util
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tdlm_fast.kernels import corrupt, linear_cross_entropy
from tdlm_fast.kernels.cases import Corrupt, Lce
from tdlm_fast.kernels.corrupt import corrupt_ref


class Side(NamedTuple):
    name: str
    run: Callable | None
    note: str = ""


def _seconds(run: Callable, device: str) -> float:
    run()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def tuned(name: str, make: Callable, settings, device: str, note: str = "") -> Side:
    """The fastest of make(setting), by one timed call each; settings that do not fit in memory drop out."""
    took = {}
    for setting in settings:
        try:
            took[setting] = _seconds(make(setting), device)
        except torch.cuda.OutOfMemoryError:
            continue
    if not took:
        return Side(name, None, "out of memory at every setting")
    best = min(took, key=took.get)
    return Side(f"{name} (best: {best})", make(best), note)


def _absent(package: str, device: str) -> str:
    if importlib.util.find_spec(package) is None:
        return f"{package.replace('_', '-')} is not installed"
    return "" if device == "cuda" else "needs a GPU"


def plain(h, w, y, weights):
    return (F.cross_entropy((h @ w.T).float(), y, reduction="none") * weights).sum()


def lce_sides(case: Lce, dtype: torch.dtype, device: str) -> list[Side]:
    h, w, y, weights, n_rows = case.inputs(dtype, device)
    h, w = h.requires_grad_(), w.requires_grad_()
    live = slice(case.live)
    x, y_live, weights_live = h.detach()[live].requires_grad_(), y[live], weights[live]

    def both(loss_of, x=x):
        return lambda: torch.autograd.grad(loss_of(), (x, w))

    sides = [
        Side("tdlm_fast", both(lambda: linear_cross_entropy(h, w, y, weights, n_rows=n_rows), h)),
        Side("PyTorch", both(lambda: plain(x, w, y_live, weights_live))),
        Side("torch.compile of it", both(functools.partial(torch.compile(plain), x, w, y_live, weights_live))),
    ]
    no_weights = "no weight a token"
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions

        def torchs(chunk):
            how = options() if chunk is None else options(batch_chunk_size=chunk)
            return both(lambda: F.linear_cross_entropy(x, w, y_live, reduction="sum", options=how))

        sides.append(Side("F.linear_cross_entropy, auto", torchs(None), no_weights))
        chunks = [c for c in (256, 512, 1024, 2048, 4096, 8192) if c <= case.live]
        sides.append(tuned("F.linear_cross_entropy, chunk", torchs, chunks, device, no_weights))
    else:
        sides.append(Side("F.linear_cross_entropy", None, "needs PyTorch 2.13"))
    return sides + _liger(case, both, x, w, y_live, device, no_weights) + _cce(both, x, w, y_live, device, no_weights)


def _liger(case, both, x, w, y, device, note) -> list[Side]:
    if why := _absent("liger_kernel", device):
        return [Side("liger-kernel", None, why)]
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as of

    # liger cuts the rows so that a chunk of logits is chunk_mem_const times as large as the hidden states.
    def ligers(budget):
        return both(lambda: of(x, w, y, reduction="sum", chunk_mem_const=budget))

    budgets = [b for b in (16, 64, 256, 1024) if b * case.D <= 8 * case.V]
    return [Side("liger-kernel, default", ligers(1), note), tuned("liger-kernel, chunk", ligers, budgets, device, note)]


def _cce(both, x, w, y, device, note) -> list[Side]:
    if why := _absent("cut_cross_entropy", device):
        return [Side("cut-cross-entropy", None, why)]
    from cut_cross_entropy import linear_cross_entropy as of

    def exact():
        try:
            return of(x, w, y, reduction="sum", impl="cce_exact")
        except (NotImplementedError, ValueError):  # the release on PyPI knows it by its filter
            return of(x, w, y, reduction="sum", impl="cce", filter_eps=None)

    return [Side("cut-cross-entropy, exact", both(exact), note)]


def corrupt_sides(case: Corrupt, device: str) -> list[Side]:
    x0, valid = case.inputs(device)
    rest = (50257, "linear", "stratified", 0, case.B)
    step = torch.tensor(7, device=device)
    compiled = torch.compile(corrupt_ref)
    return [
        Side("tdlm_fast", lambda: corrupt(x0, valid=valid, seed=1, step=7, mask_token_id=50257)),
        Side("tdlm_fast, step on the device", lambda: corrupt(x0, valid=valid, seed=1, step=step, mask_token_id=50257)),
        Side("PyTorch", lambda: corrupt_ref(x0, valid, 1, 7, *rest)),
        Side("torch.compile of it", lambda: compiled(x0, valid, 1, 7, *rest)),
    ]
