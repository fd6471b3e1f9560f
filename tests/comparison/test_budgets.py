"""Both objectives at equal budgets, counted by hand."""

import math

import pytest
import torch

from tdlm_fast import statistics
from tdlm_fast.comparison import budgets, records, tables

pytestmark = pytest.mark.slow


def arm(objective, *evaluations, seed=1):
    """Evaluations (step, nats, loss tokens, seconds) of a made-up run."""
    run = {
        "config": {"seed": seed, "train.batch_size": 2, "model.seq_len": 8, "model.layers": 1, "model.width": 4},
        "summary": {"parameters_by_part": {"blocks": 10, "head": 20}}, "losses": [],
        "evaluations": [
            {"step": s, "tokens": 16 * s, "loss_tokens": k, "seconds": t}
            | {"valid": {"nats_per_token": n, "stderr": 0.03}}
            for s, n, k, t in evaluations
        ],
    }  # fmt: skip
    return {"label": objective, "objective": objective, "runs": [run]}


def test_ledgers_stop_both_at_what_both_reached():
    d = arm("diffusion", (0, 9.0, 0, 0.0), (10, 7.0, 80, 5.0), (20, 6.0, 160, 10.0))
    a = arm("autoregressive", (0, 9.0, 0, 0.0), (10, 5.0, 160, 20.0), (20, 4.0, 320, 40.0))
    pair = d["runs"][0], a["runs"][0]
    rows = {row["ledger"]: row for row in budgets.ledgers([pair])}

    def row(name):
        return tuple(rows[name][k] for k in ("budget", "diffusion", "autoregressive"))

    assert row("optimizer steps") == (20, 6.0, 4.0)
    assert row("loss-bearing tokens") == (160, 6.0, 5.0)
    assert row("seconds of training") == (10.0, 6.0, 7.0)  # half way between 9 and 5
    places = 16 * (6 * 10 + 12 * 1 * 4 * 8)
    budget = 20 * places + 6 * 20 * 160
    at = (budget - (10 * places + 6 * 20 * 160)) / (10 * places + 6 * 20 * 160)
    assert row("training FLOPs") == (budget, 6.0, pytest.approx(5.0 - at))
    half = 1.96 * math.hypot(0.03, 0.03) + statistics.ONE_SEED
    ahead = rows["seconds of training"]["difference"]
    assert (ahead.mean, ahead.low, ahead.high) == pytest.approx((1.0, 1 - half, 1 + half))
    shown = tables.ledger_table({"ledgers": [rows["seconds of training"] | {"difference": vars(ahead)}]})
    assert shown[1][-3:] == ["6.000", "7.000", "+1.000 [+0.867,\u00a0+1.133]"]
    e = arm("diffusion", (0, 9.0, 0, 0.0), (20, 6.4, 160, 10.0), seed=2)["runs"][0]
    b = arm("autoregressive", (0, 9.0, 0, 0.0), (20, 4.2, 320, 40.0), seed=2)["runs"][0]
    two = budgets.ledgers([pair, (e, b)])[0]  # optimizer steps
    assert two["diffusion"] == pytest.approx(6.2) and two["difference"].mean == pytest.approx(-2.1)
    assert two["difference"].high == pytest.approx(-2.1 + 12.706 * 0.1)  # Student's t over the two differences
    b["evaluations"][1]["loss_tokens"] = None  # as older runs
    assert [row["ledger"] for row in budgets.ledgers([pair, (e, b)])] == ["optimizer steps", "seconds of training"]


def test_flops_are_the_count_of_their_products(done, references):
    """Against PyTorch's own counter on the plain model: forward and backward are three times the forward."""
    from torch.utils.flop_counter import FlopCounterMode

    from tdlm_fast.runs.load import load_run

    out, _ = done
    run = records.read(out / "autoregressive-seed42")
    model = load_run(out / "autoregressive-seed42", "last", "cpu")[2]
    x = torch.randint(0, 256, (16, 32))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(x, causal=False) @ model.head.T
    # Norms have parameters but no product: 6 x 16 a norm and place.
    assert budgets.flops(run, 1, 512) == pytest.approx(3 * counter.get_total_flops() + 6 * 512 * 4 * 16)
    assert budgets.flops(run, 1, None) is None
