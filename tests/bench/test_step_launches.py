"""The launches of a training step are those of bench/results/launches.json, and do not become more."""

import json

import pytest
import torch

from bench.without_gpu import launches

FILE = json.loads(launches.RESULTS.read_text())
# A change that needs more gives the reason here. Adding up the parts of dW makes the last wave full; rows of the
# embedding catch up and are updated apart, which spares AdamW most of the table.
MOST = {"diffusion": 82, "autoregressive": 82}


@pytest.mark.parametrize("objective", launches.OBJECTIVES)
def test_the_count_is_the_files_and_does_not_rise(objective):
    result = launches.count(objective)
    total = sum(n for ops in result.values() for n in ops.values())
    assert total <= MOST[objective]
    assert result["clip"] == {"tdlm::clip_scale": 2}
    backward = result["backward"]
    assert "cat" not in backward  # attention writes the gradient of qkv as one tensor
    assert backward["tdlm::add_rms_norm_backward"] == 5 and backward["stack"] == backward["sum"] == 1
    if FILE["torch"] == torch.__version__.partition("+")[0]:  # others may take PyTorch's ops apart in another way
        assert result == FILE["launches"][objective] and FILE["totals"][objective] == total


@pytest.mark.parametrize("path, most", [("configs/small.yaml", 800), ("configs/base.yaml", 4600)])
def test_wide_heads_turn_their_queries_and_keys_in_one_launch(path, most):
    found = launches.count("diffusion", path=path)
    assert found["forward"]["tdlm::rotary"] == found["backward"]["tdlm::rotary"] > 0
    assert not {"sin", "cos", "pow"} & found["forward"].keys()
    assert sum(n for ops in found.values() for n in ops.values()) < most


def test_more_work_is_counted_as_more():
    small = launches.count("diffusion")
    deep, parts = launches.count("diffusion", "model.layers=3"), launches.count("diffusion", "train.accumulation=2")
    assert deep["forward"]["tdlm::tile_attention"] == small["forward"]["tdlm::tile_attention"] + 1 == 3
    assert deep["backward"]["mm"] == small["backward"]["mm"] + 8
    assert parts["backward"]["mm"] == 2 * small["backward"]["mm"] and parts["optimizer"] == small["optimizer"]


def test_views_and_memory_cost_nothing_and_unknown_ops_of_ours_are_an_error(monkeypatch):
    meter = launches.Launches()
    with meter:
        x = torch.empty(4, 6)
        x.view(6, 4).t()[1:].expand(5, 3, 6).unbind(0)
        assert not meter.found
        x + 1
        x.add_(1)
        torch.sort(torch.zeros(5000, dtype=torch.int32))
    assert meter.found["draw and log"] == {"add": 1, "add_": 1, "zeros": 1, "sort": 13}
    monkeypatch.delitem(launches.OURS, "lce_sum")
    with pytest.raises(KeyError):
        launches.launches(torch.ops.tdlm.lce_sum.default, (), {})
