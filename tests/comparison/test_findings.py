"""The paragraph that sums a comparison up."""

import json

from tdlm_fast.comparison import figures, findings


def test_the_paragraph_follows_the_figures(done):
    """Signs and sides, by figures that are turned round."""
    out, _ = done
    result = json.loads((out / "compare.json").read_text())
    test = next(c for c in result["claims"] if c["id"] == "test")
    first = figures.first_arms(result)
    base = next(r for r in first["diffusion"]["runs"][0]["table"]["rows"] if r["name"] == "unigram baseline")
    for sign, winner, exact, side in (
        (-1, "diffusion's bound is behind", "behind", "above"), (1, "diffusion is ahead", "ahead of", "below"),
    ):  # fmt: skip
        test["right"] = {"mean": 0.5 * sign, "low": 0.5 * sign - 0.1, "high": 0.5 * sign + 0.1}
        test["exact"] = {"mean": 0.25 * sign, "low": 0.25 * sign - 0.1, "high": 0.25 * sign + 0.1}
        base["nats_per_token"] = 5.0 + 3.0 * sign
        text = findings.paragraph(result)
        assert f"{winner} by 0.500 nats" in text and f"is 0.250 nats {exact} the autoregressive one" in text
        assert text.count(f" {side} it") == 2
    zero = result["untrained"]
    zero |= {k: {"mean": m, "low": m - 0.1, "high": m + 0.1} for k, m in (("as_published", 1.8), ("one_scale", 0.3),
                                                                        ("right", -0.2))}  # fmt: skip
    for mean in (0.05, -0.05):  # an interval that holds 0 tells no side
        for key in ("right", "exact"):
            test[key] = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        text = findings.paragraph(result)
        assert "the interval of the difference contains 0" in text and "is not clearly different from" in text
        assert "diffusion is ahead" not in text and "is behind" not in text
    assert "6.05 times better. With the published metric for both, the ratio is 1.35; on likelihood it is 0.82" in text
    assert "best of each objective" not in text
    result["headline"] = {
        "arms": {"diffusion": "D", "autoregressive": "A"}, "valid": {"D": 6.0, "d": 6.2, "A": 5.1}, "seeds": [1],
        "nats": {"diffusion": 5.972, "autoregressive": 5.151},
        "claim": {"right": {"mean": -0.821, "low": -0.888, "high": -0.753}},
    }  # fmt: skip
    text = findings.paragraph(result)
    assert "Of 3 arms, the best of each objective on validation are D and A: on the test split at most 5.972" in text
    assert "a difference of -0.821 [-0.888, -0.753] (1 seed)" in text
    zero["as_published"]["low"] = -0.1
    assert "times better" not in findings.paragraph(result)
