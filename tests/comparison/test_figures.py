"""Curves and heat maps against the figures they are drawn from."""

import json
import re

from tdlm_fast.comparison import figures


def test_bands_hold_the_lowest_and_highest_seed(done):
    result = json.loads((done[0] / "compare.json").read_text())
    arm = figures.first_arms(result)["diffusion"]
    curve = figures.band(arm, 0, lambda e: e["seconds"], lambda e: e["valid"]["nats_per_token"])
    seconds, nats = (
        [[f(e) for e in r["evaluations"]] for r in arm["runs"]]
        for f in (lambda e: e["seconds"], lambda e: e["valid"]["nats_per_token"])
    )
    assert curve.low == [min(pair) for pair in zip(*nats, strict=True)] != curve.high
    assert curve.high == [max(pair) for pair in zip(*nats, strict=True)]
    assert curve.x == [sum(pair) / 2 for pair in zip(*seconds, strict=True)]
    training = figures.training_loss(arm, 0, 4, 1)
    assert training.x[-1] == sum(r["losses"][-1][4] for r in arm["runs"]) / 2


def test_the_most_corrupted_level_is_on_top(done):
    result = json.loads((done[0] / "compare.json").read_text())
    arm = figures.first_arms(result)["diffusion"]
    for e in arm["runs"][0]["evaluations"]:
        e["diagnostics"]["loss"] = [float(i) for i in range(10)]
    maps = figures.heat_maps(arm)["heat-diffusion-loss"]
    places = {name: float(y) for y, name in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(\d+–\d+ %)<', maps)}
    assert places["90–100 %"] < places["0–10 %"]  # most corrupted on top
