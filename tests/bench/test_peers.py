"""The sides of bench/race/ops.py compute the same thing, and sides that cannot run here name the reason."""

import enum
import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from bench.race import conftest, ops, peers
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


def test_peers_run_at_their_best():
    """cut-cross-entropy is tuned, and torch.compile makes no slower code for every shape."""
    assert os.environ["CCE_AUTOTUNE"] == "1" and peers.compiled.keywords == {"dynamic": False}
    assert "torch.compile(" not in Path(peers.__file__).read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs alarms")
def test_a_peer_that_is_not_ready_in_time_is_absent():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(peers.Absent, match="not ready after 0.05 s"), peers.ready_within(0.05):
        time.sleep(5)
    with peers.ready_within(600):
        pass
    with peers.ready_within(0):
        time.sleep(0.1)
    assert signal.getsignal(signal.SIGALRM) is before


def test_every_race_begins_with_an_empty_compiler(monkeypatch):
    """Else Dynamo's limit of recompiles, which counts per function, lets the later shapes run eagerly."""
    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    case = Norm("small", 7, 32)
    request = types.SimpleNamespace(config=types.SimpleNamespace(getoption=lambda name: 1))
    benchmark = types.SimpleNamespace(extra_info={}, pedantic=lambda run, rounds, warmup_rounds: [run(), run()])
    sides = [peers.Side("tdlm_fast", lambda: None), peers.Side("host", lambda: None, "a note")]
    beside = {"product": lambda: None, "copy": lambda: None}
    late = iter([(1.0, False)] * 4 + [(1.0, True)] * 100)
    monkeypatch.setattr(ops, "DEVICE", "cuda")
    monkeypatch.setattr(ops, "peak_mb", lambda run: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(ops, "seconds", lambda run, calls: (1.0, run is sides[1].run))
    ops.race(benchmark, request, sides, beside, case, 8)
    assert resets == [1]
    assert benchmark.extra_info["sides"]["host"]["note"] == "a note; timed with its host"
    assert "note" not in benchmark.extra_info["sides"]["tdlm_fast"]
    monkeypatch.setattr(ops, "seconds", lambda run, calls: next(late))
    with pytest.raises(AssertionError, match="ours is timed with its host"):
        ops.race(benchmark, request, sides, beside, case, 8)


def test_the_cases_that_matter_most_are_raced_first():
    names = ["test_a[small]", "test_a[D 128]", "test_a[tiny]", "test_b[tiny, masked half]", "test_b[wide, added]"]
    ordered = sorted(names, key=conftest.place)
    assert ordered == ["test_a[tiny]", "test_b[tiny, masked half]", "test_a[small]", "test_b[wide, added]",
                       "test_a[D 128]"]  # fmt: skip
