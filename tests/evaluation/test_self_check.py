"""Every check of `check` fails where the very thing that it checks is broken, and then no other check does."""

import json

import pytest
import torch

from tdlm_fast import check, kernels, train
from tdlm_fast import config as settings
from tdlm_fast.evaluation import exact_likelihood, likelihood, published_metric, self_check, unigram

pytestmark = pytest.mark.slow


def lines_of(capsys, folder, *args):
    """(exit code, {name of a check: whether it passed}, what was printed)."""
    capsys.readouterr()
    code = check.main([str(folder), "--sequences", "12", "--device", "cpu", *args])
    output = capsys.readouterr().out
    result = {
        line[6:64].strip(): line.startswith("pass") for line in output.splitlines() if line[:4] in ("pass", "FAIL")
    }
    return code, result, output


def times(factor):
    return lambda real: lambda *a, **k: factor * real(*a, **k)


def sees_itself(real):
    """The autoregressive loss of a model that sees the tokens it predicts."""

    class Peeking:
        def __init__(self, model):
            self.model, self.head = model, model.head

        def __call__(self, tokens, causal, valid=None):
            return self.model(tokens, causal=False, valid=valid)

    return lambda model, x0, **k: real(Peeking(model), x0, **k)


def without_offset(real):
    """Masks of a part of a batch that are those of its first rows."""
    return lambda *a, row_offset=0, **k: real(*a, **k)


def other_tokens(real):
    """The tokens of few rows read wrongly; those of the training split as they are."""
    return lambda split: real(split) if len(split) > 12 else (real(split) + 1) % 256


def half_the_nats(real):
    """Policies whose tokens cost half of what they do along any order."""

    def changed(*a, **k):
        sure, nll = real(*a, **k)
        return sure, nll / 2

    return changed


UNIFORM, COUNTED = "uniform predictor, {}: ln V", "unigram predictor, {}: counted nats"
PUBLISHED = "uniform predictor, published metric: ln V times its factor"
ENUMERATED = "the bound against all 63 masks of 6 tokens"
STORED = "the stored test figure, computed again"
WRITTEN = "summary.json is as it was written"
OF_THE_BOUND = {UNIFORM.format("diffusion"), COUNTED.format("diffusion"), ENUMERATED, STORED}
BREAKS = {
    "bound": (likelihood, "masked_sums", times(1.03), OF_THE_BOUND),
    "autoregressive": (likelihood, "autoregressive_nll", times(1.03), {
        UNIFORM.format("autoregressive"), COUNTED.format("autoregressive"), "autoregressive against plain log-softmax",
    }),
    "causality": (likelihood, "next_token_nll", sees_itself, {"autoregressive against plain log-softmax"}),
    "unigram": (unigram, "scored_tokens", other_tokens, {COUNTED.format(o) for o in ("diffusion", "autoregressive")}),
    "masks": (published_metric, "masked_sums", times(1.03), {"published metric of both objectives, the same draws"}),
    "factor": (published_metric, "uniform_factor", times(1.3), {PUBLISHED}),
    "orders": (exact_likelihood, "_certainty_and_nll", half_the_nats, {
        "orders of 6 tokens that score less than the best of all",
    }),
    "head": (kernels, "linear_cross_entropy", times(1.03), {"fused head against plain cross-entropy"}),
    "parts": (kernels, "corrupt", without_offset, {"the masks of a step, whole and in two parts, differ in"}),
}  # fmt: skip


def test_all_pass_on_a_run_that_is_whole(sharp_run, capsys):
    code, result, output = lines_of(capsys, sharp_run)
    assert code == 0 and all(result.values()) and "all checks passed" in output, output
    assert set().union(*(names for *_, names in BREAKS.values())) <= set(result) and len(result) == 16


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_fails_and_nothing_else(sharp_run, name, monkeypatch, capsys):
    module, attribute, broken, expected = BREAKS[name]
    monkeypatch.setattr(module, attribute, broken(getattr(module, attribute)))
    code, result, output = lines_of(capsys, sharp_run)
    assert code == 1 and {n for n, passed in result.items() if not passed} == expected, output
    assert f"{len(expected)} of the checks failed" in output


def test_a_stored_figure_that_is_not_that_of_the_weights_fails(sharp_run, capsys):
    file = sharp_run / "summary.json"
    text = file.read_text()
    summary = json.loads(text)
    try:
        summary["test"]["nats_per_token"] += 3e-4
        file.write_text(json.dumps(summary))
        code, result, output = lines_of(capsys, sharp_run)
        assert code == 1 and [n for n, passed in result.items() if not passed] == [WRITTEN, STORED]
        del summary["sha256"]  # as an older version wrote it
        file.write_text(json.dumps(summary | {"finished": False}))  # it may be of other weights than the last
        code, result, _ = lines_of(capsys, sharp_run)
        assert code == 0 and STORED not in result
    finally:
        file.write_text(text)


def test_tokens_that_were_not_those_counted_in_training_fail(sharp_run, capsys):
    file = sharp_run / "metrics.jsonl"
    text = file.read_text()
    try:
        file.write_text(text.replace('"loss_tokens": ', '"loss_tokens": 1', 4))
        code, result, output = lines_of(capsys, sharp_run)
        assert code == 1 and "FAIL  tokens and masks of 6 steps" in output and list(result.values()).count(False) == 2
        assert not result["metrics.jsonl is as it was written"]
    finally:
        file.write_text(text)


def test_a_line_that_was_cut_is_no_line(sharp_run, capsys):
    file = sharp_run / "metrics.jsonl"
    text = file.read_text()
    try:
        file.write_text(text + '{"step": 7, "los')
        code, result, output = lines_of(capsys, sharp_run)
        assert code == 1 and "pass  tokens and masks of 6 steps, replayed" in output, output
        assert [n for n, passed in result.items() if not passed] == ["metrics.jsonl is as it was written"]
    finally:
        file.write_text(text)


def test_our_kernels_run_in_the_precision_of_the_run_and_plain_pytorch_in_fp32(sharp_run, monkeypatch):
    assert settings.load(sharp_run / "config.yaml").precision == "bf16"
    seen, real = [], kernels.linear_cross_entropy

    def spy(h, *a, **k):
        seen.append(torch.is_autocast_enabled("cpu"))
        return real(h, *a, **k)

    monkeypatch.setattr(kernels, "linear_cross_entropy", spy)
    plain = []
    enumerated = self_check.enumerated_bound
    monkeypatch.setattr(
        self_check, "enumerated_bound", lambda *a: plain.append(torch.is_autocast_enabled("cpu")) or enumerated(*a)
    )
    results = {r.name: r for r in self_check.checks(sharp_run, rows=12, device="cpu")}
    assert seen == [True] and plain == [False]
    for name in ("autoregressive against plain log-softmax", "fused head against plain cross-entropy"):
        assert results[name].passed and results[name].value != results[name].expected
        assert results[name].tolerance == self_check.ROUNDING["bf16"] > self_check.ROUNDING["fp32"]


def test_a_check_of_fewer_steps_than_the_first_line_counts_reaches_to_it(tiny, tmp_path, capsys):
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=5", "train.log_every=4"]) == 0
    capsys.readouterr()
    for steps, reached in ((1, 4), (4, 4), (5, 5), (50, 5)):
        args = [str(tmp_path / "run"), "--sequences", "2", "--steps", str(steps), "--device", "cpu"]
        assert check.main(args) == 0
        assert f"pass  tokens and masks of {reached} steps, replayed" in capsys.readouterr().out
