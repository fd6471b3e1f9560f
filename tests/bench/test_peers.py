"""The sides of bench/race/ops.py compute the same thing, and sides that cannot run here name the reason."""

import enum
import sys
import types

import pytest
import torch

from bench.race import peers
from bench.race.cases import Attention, Embed, Gate, Lce, Norm, Update


def gradients(sides) -> dict:
    """{side: gradients} of those that can run here, without those that must be compiled."""
    result = {}
    for side in sides:
        if side.run is not None and "compile" not in side.name:
            try:
                result[side.name] = side.run()
            except peers.Absent:
                continue
    return result


@pytest.mark.parametrize("n_rows", [None, 21])
def test_every_head_has_the_same_gradients(n_rows):
    case = Lce("small", 40, 32, 300, n_rows=n_rows, weights="ones")
    result = gradients(peers.lce_sides(case, torch.float32, "cpu"))
    dh, dw = result.pop("tdlm_fast")
    assert dh[case.live :].eq(0).all() and "PyTorch" in result
    assert not hasattr(torch.nn.functional, "linear_cross_entropy") or len(result) == 3
    for name, (theirs, weights) in result.items():
        torch.testing.assert_close(dh[: case.live], theirs, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(dw, weights, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", [0.0, 0.4])
def test_every_attention_has_the_same_gradients(causal, padding):
    case = Attention("small", 3, 2, 20, 16, causal, padding)
    result = gradients(peers.attention_sides(case, torch.float32, "cpu"))
    mine = result.pop("tdlm_fast")
    assert set(result) == {"F.scaled_dot_product_attention", "scores in memory"}
    for theirs in result.values():
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides, present", [
    (lambda: peers.norm_sides(Norm("small", 7, 32), torch.float32, "cpu"), {"F.rms_norm"}),
    (lambda: peers.norm_sides(Norm("small", 7, 32, add=True), torch.float32, "cpu"), {"F.rms_norm"}),
    (lambda: peers.gate_sides(Gate("small", 7, 24), torch.float32, "cpu"), {"PyTorch"}),
    (lambda: peers.embedding_sides(Embed("small", 70, 24, 50, 0.4), torch.float32, "cpu"), {"F.embedding"}),
])  # fmt: skip
def test_every_norm_gate_and_embedding_has_the_same_gradients(sides, present):
    result = gradients(sides())
    mine = result.pop("tdlm_fast")
    assert set(result) == present
    for a, b in zip(mine, result[present.pop()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_update_ends_at_the_same_weights():
    case = Update("small", 8, 2, 12, V=40)
    runs = {s.name: s.run for s in peers.update_sides(case, "cpu") if "compile" not in s.name}
    assert len(runs) == 3
    for _ in range(3):
        ends = {name: [p.detach().clone() for p in run().parameters()] for name, run in runs.items()}
    mine = ends.pop("tdlm_fast")
    assert sum(p.numel() for p in mine) * 32 == case.bytes()
    for theirs in ends.values():
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_share_of_the_tokens_is_one():
    tokens, w, dx = Embed("small", 4000, 8, 50, 0.4).inputs(torch.float32)
    assert tokens.max() == 49 and abs((tokens == 49).float().mean() - 0.4) < 0.03 and len(w) == 50 and len(dx) == 4000


@pytest.mark.parametrize("names, chosen", [
    (["CCE", "TORCH_COMPILE"], {"impl": "cce", "filter_eps": None}),  # 25.1.1
    (["CCE", "TORCH_COMPILE", "CCE_EXACT"], {"impl": "cce_exact"}),
])  # fmt: skip
def test_cut_cross_entropy_runs_without_its_filter_and_its_errors_come_through(monkeypatch, names, chosen):
    def of(h, w, y, **how):
        calls.append(how)
        raise ValueError("of the kernel's own")

    calls, module = [], types.ModuleType("cut_cross_entropy.linear_cross_entropy")
    module.LinearCrossEntropyImpl, module.linear_cross_entropy = enum.IntEnum("Impl", names), of
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", types.ModuleType("cut_cross_entropy"))
    monkeypatch.setitem(sys.modules, "cut_cross_entropy.linear_cross_entropy", module)
    monkeypatch.setattr(peers, "_need", lambda *a: None)
    with pytest.raises(ValueError, match="of the kernel's own"):
        peers.cce_loss(*(torch.zeros(1) for _ in range(3)))
    assert calls == [{"reduction": "sum"} | chosen]


def test_who_is_absent_says_why():
    sides = {s.name: s for s in peers.lce_sides(Lce("small", 8, 16, 50), torch.bfloat16, "cpu")}
    assert "liger-kernel" in sides["liger-kernel, budget"].note and sides["liger-kernel, budget"].run is None
    with pytest.raises(peers.Absent, match="cut-cross-entropy"):
        sides["cut-cross-entropy, exact"].run()
