"""Derived constants of claim files: what follows, what does not, and formulas that are not arithmetic."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tdlm_fast import check
from tdlm_fast.comparison import claim_schema, derived
from tdlm_fast.data import dataset, token_cache
from tdlm_fast.data.tokenizer import GPT2
from tdlm_fast.evaluation.published_metric import uniform_factor

SHARED = Path(os.environ.get("TDLM_FAST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def computed(name):
    return {c.id: c for c in derived.constants(claim_schema.read(Path(name)))}


def test_the_constants_of_tdlm_are_those_of_the_closed_forms():
    constants = computed("tdlm-v1.2")
    assert all(c.follows for c in constants.values())
    rows = claim_schema.read()["figures"]["raw_test_rows"]
    lengths = np.repeat(np.arange(1, len(rows) + 1), rows)
    for name, value in (
        ("factor of long rows, 5/6", 5 / 6), ("factor of the raw test set", uniform_factor(lengths)),
        ("published loss", math.log(382.74)), ("test ratio", 611.01 / 382.74),
    ):  # fmt: skip
        assert constants[name].computed == pytest.approx(value, abs=1e-5)
    assert constants["published loss"].stated == "5.947" and constants["factor of the raw test set"].stated == "0.823"
    measured = json.loads(Path("bench/results/claims.json").read_text())["factor"]["raw test"]
    assert constants["factor of the raw test set"].computed == pytest.approx(measured, abs=1e-5)


def test_the_rows_of_the_claim_file_are_those_of_the_raw_test_set():
    file = SHARED / "wikitext-2-raw" / "test.txt"
    if not file.is_file():
        pytest.skip("the raw test set is not here")
    text = file.read_text(encoding="utf-8")
    split = dataset.split_rows(token_cache.tokenize(text, "published", GPT2()), text, "published", 128, GPT2())
    rows = np.bincount(split.lengths, minlength=129)[1:]
    assert rows.tolist() == claim_schema.read()["figures"]["raw_test_rows"]


def test_the_constants_of_parameter_golf_follow_by_hand():
    constants = computed("parameter-golf-1106")
    assert all(c.follows for c in constants.values())
    bytes_per_token = 2.07269931 / math.log(2) / 1.2243657
    assert constants["bytes per token"].computed == pytest.approx(bytes_per_token)
    assert constants["corrected bits per byte"].computed == pytest.approx(1.1465 * 4.3 / bytes_per_token)
    assert constants["bytes per token"].stated == "2.442" and constants["corrected bits per byte"].stated == "2.019"


def test_the_figures_of_claims_are_among_those_that_follow():
    for name, pairs in (
        ("tdlm-v1.2", {"test": "test ratio", "best": "best ratio", "time": "time ratio"}), ("parameter-golf-1106", {}),
    ):  # fmt: skip
        constants, case = computed(name), claim_schema.read(Path(name))
        claims = {c["id"]: c for c in case["claims"]}
        assert all(claims[claim]["ratio"] == float(constants[of].stated) for claim, of in pairs.items())
    figures, claim = case["figures"], claims["test"]
    assert [claim[k] for k in ("diffusion", "autoregressive", "bytes_per_token")] == [
        figures["diffusion_bits_per_byte"], figures["autoregressive_bits_per_byte"], figures["assumed_bytes_per_token"],
    ]  # fmt: skip
    beside = case["beside"]["bits_per_byte"]
    assert list(beside.values()) == [v for k, v in figures.items() if k.startswith("honest")]


@pytest.mark.parametrize("formula, value", [
    ("1 + 2 * 3 ** 2 / 4 - -1", 6.5), ("ln(exp(2)) + sqrt(9) + floor(2.7) + min(1, 2) + max(1, 2)", 10),
    ("integral(m ** 2)", 1 / 3), ("integral(2)", 2), ("integral(floor(4 * m))", 1.5), ("total(rows, n * x)", 160),
    ("total(rows, integral(min(m, 1 / n)))", 2 * 0.5 + 3 * 0.375 + 4 * (1 / 3 - 1 / 18)),
])  # fmt: skip
def test_formulas(formula, value):
    assert derived.evaluate(formula, {"rows": [2, 3, 4], "x": 8.0}) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("formula, message", [
    ("y + 1", "contains y, which is neither a figure"), ("1 +", "is not arithmetic"), ("rows", "outside of total"),
    ("total(x, n)", "are not a list"), ("ln(1, 2)", "contains ln of 2 values"), ("open(1)", "contains open of 1"),
    ("integral(integral(m))", "inside of an integral"), ("m", "contains m"), ("ln(0)", "is -inf"), ("x.real", "x.real"),
    ("__import__('os')", "contains __import__"), ("[1][0]", "not arithmetic"), ("1 if 1 else 2", "not arithmetic"),
    ("x(1)", "contains x of"), ("'a' * 9", "not arithmetic"), ("9.0 ** 9 ** 9", "cannot be computed"),
    ("1 / 0", "cannot be computed"),
    ("(" * 999 + "1", "is not arithmetic"), ("1" + " + 1" * 400, "is longer than"), ("True", "not arithmetic"),
])  # fmt: skip
def test_what_is_not_arithmetic_is_refused(formula, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        derived.evaluate(formula, {"rows": [1], "x": 2.0})


@pytest.mark.parametrize("stated, follows", [
    ("0.8", True), ("0.83", True), ("0.833", True), ("0.8333", True), ("0.834", False), ("0.84", False), ("1", True),
    ("2", False), ("0.8330", False),
])  # fmt: skip
def test_a_constant_follows_to_the_digits_it_is_written_with(stated, follows):
    assert derived.Constant("x", stated, "5 / 6", 5 / 6).follows is follows


def test_check_recomputes_the_installed_files_and_fails_where_one_does_not_follow(tmp_path, capsys):
    assert check.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("pass  ") == sum(len(computed(n)) for n in claim_schema.installed()) and "FAIL" not in printed
    case = json.loads(claim_schema.installed()["parameter-golf-1106"].read_text(encoding="utf-8"))
    case["derived"][1]["value"] = "4.300"
    (tmp_path / "case.json").write_text(json.dumps(case))
    assert check.main(["--claim", str(tmp_path / "case.json")]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  bytes per token: 4.300, computed 2.4423038" in printed
    assert printed.splitlines()[-1] == "1 of the checks failed"
    case["derived"][1]["formula"] = "baseline / 2"
    (tmp_path / "case.json").write_text(json.dumps(case))
    assert check.main(["--claim", str(tmp_path / "case.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'case.json'}: derived[1].formula (bytes per token) contains baseline,")
    assert check.main(["a run", "--claim", "tdlm-v1.2"]) == 2 and "leave a run out" in capsys.readouterr().err
