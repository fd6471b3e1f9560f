"""Runs grouped into arms, and what is alike between them."""

import json
from pathlib import Path

import pytest

from tdlm_fast import compare
from tdlm_fast import config as settings
from tdlm_fast.comparison import arms, judge, records, runner

from .conftest import copy_of

pytestmark = pytest.mark.slow


def test_control_arms_stand_in_for_the_first_of_their_objective(done):
    """On the seeds that both have; the first pair beside it on the same seeds."""
    runs = records.recorded(done[0] / "compare.json")
    d, a = ({r["config"]["seed"]: r for r in runs if r["config"]["objective"] == o} for o in arms.OBJECTIVES)
    better = json.loads(json.dumps(d[43]))
    better["config"]["loss_weight"] = "uniform"
    better["table"]["rows"][0] |= {"nats_per_token": 0.5, "low": 0.4, "high": 0.6}
    worse = json.loads(json.dumps(a[42]))
    worse["config"]["model.dropout"] = 0.0
    worse["table"]["rows"][0]["nats_per_token"] = 90.0
    other = json.loads(json.dumps(a[42]))
    other["config"] |= {"model.dropout": 0.3, "seed": 7}  # a seed that no diffusion run has
    grouped = arms.arms_of([*runs, better, worse, other])
    result = {c["label"]: c for c in judge.controls(grouped)}
    assert list(result) == ["diffusion loss_weight=uniform", "autoregressive dropout=0.0"]
    first, second = result.values()
    assert (first["seeds"], second["seeds"]) == ([43], [42])
    test = {c["id"]: c for c in first["claims"]}["test"]
    exact = a[43]["table"]["rows"][0]["nats_per_token"]
    assert test["right"].mean == pytest.approx(exact - 0.5) and test["verdict"] in ("holds", "does not hold")
    assert first["first"].mean == pytest.approx(exact - d[43]["table"]["rows"][0]["nats_per_token"])
    bound = d[42]["table"]["rows"][0]["nats_per_token"]
    assert {c["id"]: c for c in second["claims"]}["test"]["right"].mean == pytest.approx(90.0 - bound)
    assert {c["kind"] for c in first["claims"]} == {"loss"}


def test_runs_of_other_tokens_are_not_compared(done, tmp_path, capsys):
    out, _ = done
    d, a = (out / f"{o}-seed42" for o in arms.OBJECTIVES)
    for name, changed, says in (
        ("layout", {"data.layout": "packed"}, "data.layout is paragraphs, packed"),
        ("length", {"model.seq_len": 16}, "model.seq_len is 32, 16"),
        ("tokenizer", {"data.tokenizer": "gpt2"}, "data.tokenizer is bytes, gpt2"),
        ("text", {"corpus_hash_": "0", "corpus_": "other"}, "other, not the same"),
    ):
        other = copy_of(a, tmp_path / name, **changed)
        assert compare.main(["--from", str(d), str(other), "--sequences", "0", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "not scored on the same tokens" in error and says in error and not (tmp_path / "out").exists()


def test_differences_are_named_first(done, tmp_path):
    """Each of the four findings by itself, and the sentence that opens the report."""
    out, _ = done
    d, a = (records.read(out / f"{o}-seed42") for o in arms.OBJECTIVES)
    assert "DIFFERENT" not in arms.alike([(d, a)])[0]
    first = {"evaluations": [a["evaluations"][0] | {"initial_weights": "0"}, *a["evaluations"][1:]]}
    for other, says in (
        ({"config": a["config"] | {"optim.lr": 1.0}}, "settings apart from the objective DIFFERENT: optim.lr"),
        ({"summary": a["summary"] | {"corpus_hash": "0"}}, "text DIFFERENT"), (first, "first step DIFFERENT"),
        ({"evaluations": [*a["evaluations"][:-1], a["evaluations"][-1] | {"batch": "0"}]}, "3 evaluations DIFFERENT"),
    ):  # fmt: skip
        message = arms.alike([(d, a | other)])[0]
        assert says in message and message.count("DIFFERENT") == 1
    assert "batches before 3 evaluations equal" in arms.alike([(d, a)])[0]
    for run in (d, a):  # like runs from before batches were recorded
        run["evaluations"] = [{k: v for k, v in e.items() if k != "batch"} for e in run["evaluations"]]
    assert "logged steps equal" in arms.alike([(d, a)])[0]
    more = a | {"losses": [(s, loss, n + (s == 12), *rest) for s, loss, n, *rest in a["losses"]]}
    assert "logged steps DIFFERENT" in arms.alike([(d, more)])[0]
    for run in (d, a):  # whose rows are all full, so that their number says nothing
        run["config"] = run["config"] | {"data.layout": "packed"}
    assert "batches not recorded" in arms.alike([(d, a)])[0]
    other = copy_of(out / "autoregressive-seed42", tmp_path / "other", **{"optim.lr": 1e-3})
    runs = ["--from", str(out / "diffusion-seed42"), str(other)]
    assert compare.main([*runs, "--sequences", "0", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "NOT alike" in text and "DIFFERENT: optim.lr" in text and "alike in everything" not in text
    judged = json.loads((tmp_path / "out" / "compare.json").read_text())["claims"]
    reason = "the runs were not alike: seed 42: settings apart from the objective DIFFERENT: optim.lr"
    assert {(c["verdict"], c["reason"]) for c in judged} == {("undecided", reason)}
    whole = (out / "report.md").read_text()
    assert "alike in everything but the objective" in whole and "not the published experiment" in whole
    assert "data.tokenizer bytes instead of gpt2" in whole


CONTROLS = {
    "ar-input-masking": {"objective", "noise.input_masking"}, "ar-no-dropout": {"objective", "model.dropout"},
    "ar-more-decay": {"objective", "optim.weight_decay"}, "diffusion-uniform": {"loss_weight"},
    "diffusion-published": {"loss_weight"},
}  # fmt: skip


def test_controls_change_what_their_name_says():
    base = settings.flatten(settings.load("configs/tiny.yaml"))
    assert {f.stem for f in Path("configs/controls").glob("*.yaml")} == set(CONTROLS)
    for name, keys in CONTROLS.items():
        other = settings.flatten(settings.load(f"configs/controls/{name}.yaml"))
        assert {k for k in base if base[k] != other[k]} == keys, name
    assert arms.label(settings.flatten(settings.load("configs/controls/ar-no-dropout.yaml")), base) == (
        "autoregressive dropout=0.0"
    )


def test_autoregressive_is_compared_with_any_weight_of_diffusion():
    file, configs = Path("configs/controls/diffusion-uniform.yaml"), {}
    for objective in arms.OBJECTIVES:
        keys = runner.keys_of(file, [f"objective={objective}", "loss_weight=published"])
        configs[objective] = settings.flatten(settings.load(file, keys))
    assert [c["loss_weight"] for c in configs.values()] == ["published", "elbo"]
    assert arms.differences(*configs.values()) == ["objective"]
    other = configs["diffusion"] | {"loss_weight": "uniform"}
    assert arms.label(other, configs["diffusion"]) == "diffusion loss_weight=uniform"
