"""The bytes and products that a call of a step is charged, and the least time of each op."""

import time
import types

import pytest
import torch

from bench.race import rates
from bench.without_gpu import launches, work
from tdlm_fast import config as settings


def call(op, *args, **kwargs):
    """(bytes, flop) that a call of an aten op is charged."""
    return work.traffic(op, args, kwargs, op(*args, **kwargs)), work.flop(op, args)


def test_a_call_is_charged_what_it_reads_and_writes():
    aten, a, b = torch.ops.aten, torch.ones(30, 20), torch.ones(20, 50)
    assert call(aten.add.Tensor, a, a) == (2 * 2400, 0)  # the same tensor is read once
    assert call(aten.add.Tensor, a, torch.ones(30, 20)) == (3 * 2400, 0)
    assert call(aten.mm.default, a, b) == (2400 + 4000 + 6000, 2 * 30 * 20 * 50)
    assert call(aten.add_.Tensor, a, torch.ones(30, 20)) == (3 * 2400, 0)
    assert call(aten.copy_.default, a, torch.ones(30, 20, dtype=torch.bfloat16)) == (2400 + 1200, 0)
    assert call(aten.add.Tensor, a, torch.ones(1).expand(30, 20)) == (2 * 2400 + 4, 0)
    assert call(aten.embedding.default, a, torch.arange(5)) == (2 * 400, 0)  # not the whole table
    assert call(aten.sum.default, a) == (2400 + 4, 0)
    pair = [torch.ones(30, 20), torch.ones(30, 20)]
    assert call(aten._foreach_add_.List, [a, b], [torch.ones(30, 20), torch.ones(20, 50)]) == (3 * 6400, 0)
    assert call(aten._foreach_copy_.default, pair, [a, a.clone()]) == (4 * 2400, 0)


def test_limits_of_a_step_follow_rates_and_rows(monkeypatch):
    gpu = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    config = settings.load("configs/tiny.yaml", ["objective=autoregressive"])

    def of(flops, bandwidth, live=1.0):
        return work.limits(config, torch.device("cuda"), {"flops": flops, "bytes": bandwidth}, live, 100_000)

    bound = of(1e12, 1e30)
    assert bound["tdlm::lce_gathered"] == pytest.approx(2 * 2 * 8192 * 64 * 50257 / 1e12 * 1e3)
    assert bound["tdlm::lce_gathered"] == pytest.approx(bound["tdlm::lce_gathered_backward"])
    assert of(1e12, 1e30, 0.5)["tdlm::lce_gathered"] == pytest.approx(bound["tdlm::lce_gathered"] / 2)
    mm = sum(2 * 8192 * 64 * n for n in (192, 64, 384, 192)) * 2 * 3  # of two layers, with both gradients
    assert bound["aten::mm"] == pytest.approx(mm / 1e12 * 1e3)
    moved = of(1e30, 1e9)
    # Weights, gradients and both moments, read and written: PyTorch writes back what it scaled. The table is not in it.
    table, rows = 50258 * 64, 8192 + 2
    floats = 8 * (6_539_776 - table)
    assert moved["aten::_fused_adamw_"] == pytest.approx(4 * floats / 1e9 * 1e3, rel=0.001)
    assert of(1e30, 2e9)["aten::_fused_adamw_"] == pytest.approx(moved["aten::_fused_adamw_"] / 2)
    assert moved["tdlm::catch_up"] == pytest.approx((6 * rows * 64 * 4 + 8 * 8192) / 1e9 * 1e3)
    assert moved["tdlm::update_rows"] == pytest.approx((7 * rows * 64 * 4 + 4 * 50258) / 1e9 * 1e3)


def test_a_wide_head_makes_three_products_of_the_rows_that_bear_loss(monkeypatch):
    gpu = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    config = settings.load("configs/tiny.yaml", ["model.width=768", "model.heads=12", "model.layers=1"])

    def of(**rate):
        live = rate.pop("live", 1.0)
        return work.limits(config, torch.device("cuda"), {"flops": 1e30, "bytes": 1e30} | rate, live, 100_000)

    products = of(flops=1e12)["tdlm::lce_sum"]
    assert products == pytest.approx(3 * 2 * 8192 * 768 * 50257 / 1e12 * 1e3)
    assert of(flops=1e12, live=0.5)["tdlm::lce_sum"] == pytest.approx(products / 2)
    moved = of(bytes=1e9)["tdlm::lce_sum"]
    assert of(flops=1e12, bytes=1e9)["tdlm::lce_sum"] == max(moved, products)  # of one call: the longer, not both


def test_a_work_keeps_the_last_step():
    meter = launches.counted("diffusion", meter=work.Work())
    assert sum(n for _, _, n, _, _ in meter.calls) == sum(sum(ops.values()) for ops in meter.found.values())


def test_rates_of_this_machine(monkeypatch):
    monkeypatch.setitem(rates.SIZES, "cpu", (64, 1 << 16))
    result = rates.measure("cpu", times=3)
    assert result["flops"] > 1e6 and result["bytes"] > 1e6
    assert rates.rates("cpu", {"product": 1.0, "copy": 2.0}) == {"flops": 2 * 64**3, "bytes": 1 << 16}


def test_the_rate_of_a_product_is_that_of_the_faster_type(monkeypatch):
    """A bf16 product of 4096 x 4096 takes over a minute on a CPU without instructions for bf16."""
    slow = {torch.float32}
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: time.sleep(0.02 * (a.dtype in slow)))
    assert rates.product_dtype("cpu") == torch.bfloat16 and rates.product_dtype("cuda") == torch.bfloat16
    slow.clear()
    slow.add(torch.bfloat16)
    assert rates.product_dtype("cpu") == torch.float32
