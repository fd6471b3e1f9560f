"""The step of plain PyTorch in the race is the same training step as ours; the benchmark counts what it trains on."""

import json

import pytest
import torch

from bench.race import plain
from bench.race import step as race
from tdlm_fast import config as settings
from tdlm_fast.data import batches
from tdlm_fast.kernels import corrupt
from tdlm_fast.model import build_model
from tdlm_fast.objective import OBJECTIVES
from tdlm_fast.training import memory_estimate, step
from tests.conftest import corpus_of

SMALL = ["data.tokenizer=bytes", "model.width=32", "model.heads=2", "model.inner=32"]
SMALL += ["model.dropout=0", "precision=fp32"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("padded", [False, True])
def test_plain_pytorch_has_the_same_loss_and_gradients(objective, padded, monkeypatch):
    c = settings.load("configs/tiny.yaml", [*SMALL, f"objective={objective}", "model.seq_len=16"])
    vocabulary = memory_estimate.sizes(settings.Data(tokenizer="bytes"))
    ours, theirs = build_model(c, vocabulary), race.plain_model(c, vocabulary)
    x0 = torch.randint(0, 256, (4, 16))
    valid = torch.arange(16) < torch.tensor([[16], [9], [3], [12]]) if padded else None
    draw = corrupt(x0, seed=c.seed, step=3, mask_token_id=257, valid=valid)
    monkeypatch.setattr(plain, "corrupted", lambda model, x0, valid: (draw.xt, draw.masked, draw.weights))
    a, k = step.objective(c, vocabulary)(ours, x0, step=3, valid=valid)
    b, n = plain.loss_of(theirs, objective, x0, valid, vocabulary.start_token_id)
    torch.testing.assert_close(a, b)
    assert int(k) == int(n)
    a.backward(), b.backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_the_benchmark_writes_its_figures(tiny, tmp_path, capsys):
    file = tmp_path / "step.json"
    run = [*(o for o in tiny if not o.startswith("run.")), "--rounds", "2", "--seconds", "0", "--no-compile"]
    assert race.main([*run, "--no-memory", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {"ours", "plain, bf16", "plain, fp32"} <= set(result["sides"])
    assert "liger-kernel, bf16" in result["absent"] and "cut-cross-entropy, bf16" in result["absent"]
    for side in result["sides"].values():
        assert side["fastest_ms"] <= side["step_ms"] <= side["slowest_ms"] and side["loss"] > 1
        assert side["tokens_per_s"] == pytest.approx(side["tokens_per_step"] / side["step_ms"] * 1e3)
        assert 0 < side["tokens_per_step"] <= 16 * 64
        assert 0 < side["loss_tokens_per_s"] <= side["tokens_per_s"]
    assert 0.5 < sum(row["share"] for row in result["profile"]) <= 1.001
    ops = {row["op"] for row in result["profile"]}
    assert any(op.startswith("tdlm::") for op in ops) and not any("GeneratedBackward" in op for op in ops)
    assert "x ours" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["paragraphs", "packed"])
def test_tokens_are_counted_without_padding(tiny, tmp_path, layout):
    """By the lengths of the rows that the timed steps drew: two of them, after three that warm up."""
    file = tmp_path / "step.json"
    keys = [*(o for o in tiny if not o.startswith("run.")), f"data.layout={layout}", "model.seq_len=96"]
    options = ["--rounds", "2", "--seconds", "0", "--sides", "ours", "plain, fp32", "--no-memory", "--no-profile"]
    assert race.main([*keys, *options, "--json", str(file)]) == 0
    c = settings.load("configs/tiny.yaml", keys)
    split = corpus_of(c).splits["train"]
    order = batches.permutation(batches.usable(split), c.seed, 0)[3 * 16 : 5 * 16]
    tokens = split.lengths[order].sum() / 2
    assert (tokens < 16 * 96) == (layout == "paragraphs")
    found = json.loads(file.read_text())
    assert found["layout"] == layout and set(found["sides"]) == {"ours", "plain, fp32"}
    for side in found["sides"].values():
        assert side["tokens_per_step"] == tokens
        assert side["tokens_per_s"] == pytest.approx(tokens / side["step_ms"] * 1e3)
        assert 0 < side["loss_tokens_per_s"] < side["tokens_per_s"]


@pytest.mark.parametrize("sides, absent, why", [
    ({"ours": {"captured": True}}, {}, ""),
    ({"ours": {}}, {}, ""),  # of a CPU
    ({"plain, bf16": {}}, {}, ""),  # not asked for
    ({"ours": {"captured": False, "why_not": "an op waits"}}, {}, "ours is not captured: an op waits"),
    ({}, {"ours": "failed: RuntimeError: x"}, "ours: failed: RuntimeError: x"),
])  # fmt: skip
def test_a_step_that_is_not_captured_fails_the_benchmark(sides, absent, why):
    assert race.unfit({"sides": sides, "absent": absent}) == why


def test_what_runs_only_on_a_gpu_is_left_out_elsewhere():
    cpu, gpu = (race.names(torch.device(kind), True, None) for kind in ("cpu", "cuda"))
    assert gpu == list(race.SIDES) and [n for n in gpu if n not in cpu] == list(race.ONLY_ON_A_GPU)
    assert "plain, compiled, reduce-overhead, bf16" in gpu
    assert race.names(torch.device("cuda"), False, ["ours", "compiled"]) == ["ours", "ours, eager"]


def test_the_memory_of_earlier_sides_is_not_counted(monkeypatch):
    figures = {"memory_allocated": 100, "memory_reserved": 200, "max_memory_allocated": 350, "max_memory_reserved": 700}
    for name, mb in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, mb=mb: mb * 1e6)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *a: None)
    assert race.GpuMemory(torch.device("cuda")).peaks() == {"peak_mb": 250, "reserved_mb": 500}


def test_ours_is_saved_before_the_peers_are_ready(tiny, monkeypatch):
    """A part of bench/gpu.sh that is cut off while a peer compiles keeps what is most wanted."""
    config = settings.load("configs/tiny.yaml", [o for o in tiny if not o.startswith("run.")])
    corpus, saved, real = corpus_of(config), [], race.Side

    def side(name, *args):
        if name != "ours":
            raise KeyboardInterrupt  # cut off
        return real(name, *args)

    monkeypatch.setattr(race, "Side", side)
    with pytest.raises(KeyboardInterrupt):
        race.bench(config, corpus, torch.device("cpu"), ["ours", "plain, fp32"], 2, 0.01, save=saved.append)
    (figures,) = saved
    assert figures["sides"].keys() == {"ours"} and figures["sides"]["ours"]["tokens_per_s"] > 0
