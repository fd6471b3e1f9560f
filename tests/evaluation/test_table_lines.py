"""The table of likelihoods as text."""

from tdlm_fast.evaluation.table_lines import cell, lines


def row(name, kind, nats, low, high, sequences):
    return {"name": name, "kind": kind, "nats_per_token": nats, "low": low, "high": high, "sequences": sequences,
            "tokens": 50 * sequences, "ppl": 2.0, "bits_per_byte": 1.5}  # fmt: skip


def test_bounds_subsets_and_intervals_are_marked():
    rows = [row("bound", "upper bound", 5.5, 5.25, 5.75, 2000), row("left-to-right", "exact", 5.25, 5.0, 5.5, 64),
            row("unigram baseline", "exact", 7.0, 7.0, 7.0, 2000)]  # fmt: skip
    metric = {"reweighted_loss": 4.5, "interval": [4.0, 5.0], "published_metric": 90.0}
    heading, bound, exact, base, published = lines({"rows": rows, "published": metric})
    assert bound == ["bound", "upper bound", "2,000", "100,000", "≤ 5.500 [5.250, 5.750]", "2.00", "1.5000"]
    assert exact[0] == "left-to-right of 64 sequences" and exact[4] == "5.250 [5.000, 5.500]"
    assert base[4] == "7.000"  # a point
    assert published[:2] == ["published metric", "not a likelihood"] and published[4] == "(4.500 [4.000, 5.000])"
    assert {len(line) for line in (bound, exact, base, published)} == {len(heading)}


def test_one_sequence_has_no_interval():
    assert cell(row("bound", "upper bound", 5.5, None, None, 1)) == "≤ 5.500"
