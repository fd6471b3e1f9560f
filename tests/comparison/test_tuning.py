"""Equal tuning: the same trials for both objectives, a choice by validation alone, and arms that compare takes."""

import json
import math

import pytest
import yaml

from tdlm_fast import compare, tune
from tdlm_fast import config as settings
from tdlm_fast.comparison import runner, tuning
from tdlm_fast.comparison.arms import OBJECTIVES
from tdlm_fast.runs.files import write_figures

from .conftest import small_keys, without_folder

BASE = settings.load("configs/tiny.yaml")


def drawn(trials=200, seed=0):
    return {o: [tuning.drawn(BASE, o, i, seed) for i in range(trials)] for o in OBJECTIVES}


def test_both_objectives_have_the_same_learning_rates_decays_and_dropouts():
    trials, shared = drawn(), ("optim.lr", "optim.min_lr", "optim.weight_decay", "model.dropout")
    assert trials["diffusion"][0] == trials["autoregressive"][0] == {}
    for d, a in zip(trials["diffusion"][1:], trials["autoregressive"][1:], strict=True):
        assert [d[k] for k in shared] == [a[k] for k in shared]
        assert set(d) == {*shared, "loss_weight", "noise.sampling"} and set(a) == {*shared, "noise.input_masking"}
    assert drawn(20) == {o: t[:20] for o, t in trials.items()}  # more trials keep the earlier ones
    assert drawn(20, seed=1) != drawn(20)


def test_every_value_of_the_space_is_drawn():
    d, a = (t[1:] for t in drawn().values())
    assert {t["optim.weight_decay"] for t in d} == {0.1, 0.3, 1.0, 3.0}
    assert {t["model.dropout"] for t in d} == {0.0, 0.1, 0.2}
    assert {(t["loss_weight"], t["noise.sampling"]) for t in d} == {
        (w, s) for w in ("elbo", "uniform", "published") for s in ("stratified", "independent", "counts")
    }  # fmt: skip
    assert {t["noise.input_masking"] for t in a} == {0.0, 0.15}
    rates = sorted(math.log(t["optim.lr"] / BASE.optim.lr) for t in d)
    low, high = map(math.log, tuning.RATES)
    assert low - 0.01 <= rates[0] < low + 0.3 and high - 0.3 < rates[-1] <= high + 0.01
    assert sum(r < (low + high) / 2 for r in rates) == pytest.approx(100, abs=25)  # uniform in the logarithm
    assert all(t["optim.min_lr"] == pytest.approx(t["optim.lr"] / 10, rel=0.01) for t in d)


@pytest.mark.parametrize("config", ["configs/tiny.yaml", "configs/published.yaml", "configs/small.yaml"])
def test_every_trial_of_our_configs_is_sound_before_any_is_trained(config, tmp_path):
    jobs = tuning.plan(tmp_path.cwd() / config, ["data.path=text"], 30, 100, 0)
    assert [(j["objective"], j["trial"]) for j in jobs[:4]] == [(o, i) for i in (0, 1) for o in OBJECTIVES]
    for job in jobs:
        flat = settings.flatten(settings.load(config, job["overrides"]))
        assert flat["objective"] == job["objective"] and flat["train.max_steps"] == 100
        assert job["keys"].items() <= flat.items() and flat["data.path"] == "text"
    assert len({json.dumps(j["keys"]) + j["objective"] for j in jobs}) == 60


def test_the_best_has_the_lowest_validation_likelihood_and_did_not_fail():
    def trial(objective, i, valid):
        return {"objective": objective, "trial": i, "valid": valid}

    trials = [trial("diffusion", 0, 5.0), trial("diffusion", 1, None), trial("diffusion", 2, 4.0)]
    trials += [trial("diffusion", 3, 4.0), trial("autoregressive", 0, None)]
    assert tuning.best(trials) == {"diffusion": 2}
    table = tuning.table({"trials": [t | {"keys": {"optim.lr": 0.1} if t["trial"] else {}} for t in trials]})
    assert [row[1:3] for row in table[1:]] == [["2", "≤ 4.0000"], ["3", "≤ 4.0000"], ["0", "≤ 5.0000"], ["1", "failed"],
                                               ["0", "failed"]]  # fmt: skip
    assert table[1][3] == "lr=0.1" and table[3][3] == "(the config as it is)"


@pytest.fixture(scope="module")
def tuned(corpus, tmp_path_factory):
    """A tuning of two trials each on a tiny text: its folder, its command without --trials, and what it printed."""
    folder = tmp_path_factory.mktemp("tune")
    keys = [*small_keys(corpus, folder / "cache"), "optim.lr=3e-4"]
    command = ["configs/tiny.yaml", *keys, "--steps", "30", "--out", str(folder / "out"), "--seed", "2"]
    assert tune.main([*command, "--trials", "3"]) == 0
    return folder / "out", command


@pytest.mark.slow
def test_the_command_tunes_both_objectives_on_validation_alone(tuned):
    out, _ = tuned
    result = json.loads((out / "tune.json").read_text())
    assert [(t["objective"], t["trial"]) for t in result["trials"]] == [(o, i) for i in range(3) for o in OBJECTIVES]
    for t in result["trials"]:
        summary = json.loads((out / f"{t['objective']}-{t['trial']:03d}" / "summary.json").read_text())
        assert t["valid"] == summary["valid"]["nats_per_token"] and summary["steps"] == 30
        assert "test" not in t
    assert set(result["best"]) == set(OBJECTIVES) and any(result["best"].values())  # the learning rate is too low here
    for objective, trial in result["best"].items():
        file = out / f"tuned-{objective}.yaml"
        flat = settings.flatten(settings.load(file))
        keys = next(t["keys"] for t in result["trials"] if (t["objective"], t["trial"]) == (objective, trial))
        assert keys.items() <= flat.items() and flat["objective"] == objective and flat["run.dir"] == ""
        assert flat["train.max_steps"] == 0 and flat["eval.published"] == 1 and flat["model.width"] == 16
        assert file.read_text().startswith(f"# {objective}, the best of 3 trials of 30 steps") and yaml.safe_load(
            file.read_text()
        )


@pytest.mark.slow
def test_a_finished_trial_is_kept_and_more_trials_are_added(tuned, monkeypatch, capsys):
    out, command = tuned
    trained = []
    real = runner.subprocess.Popen
    monkeypatch.setattr(runner.subprocess, "Popen", lambda words, **kw: trained.append(words) or real(words, **kw))
    before = json.loads((out / "tune.json").read_text())
    assert tune.main([*command, "--trials", "3"]) == 0 and not trained
    assert json.loads((out / "tune.json").read_text()) == before
    printed = capsys.readouterr().out
    assert "compare python" in printed.replace(" -m", "") or "tdlm_fast.compare configs/tiny.yaml" in printed
    assert tune.main([*command, "--trials", "4"]) == 0 and len(trained) == 2
    after = json.loads((out / "tune.json").read_text())
    assert after["trials"][:6] == before["trials"] and len(after["trials"]) == 8
    assert tune.main([*command[:-1], "3", "--trials", "4"]) == 2
    assert "holds trials of other seed; tune into another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_the_test_split_has_no_part_in_the_choice(tuned, tmp_path, capsys):
    """A finished trial whose test figure is far better, and whose validation figure is not."""
    out, command = tuned
    before = json.loads((out / "tune.json").read_text())
    worst = max((t for t in before["trials"] if t["objective"] == "diffusion"), key=lambda t: t["valid"])
    file = out / f"diffusion-{worst['trial']:03d}" / "summary.json"
    text = file.read_text()
    summary = json.loads(text)
    summary.pop("sha256")
    summary["test"]["nats_per_token"] = 0.001
    write_figures(file, summary)
    try:
        assert tune.main([*command, "--trials", str(len(before["trials"]) // 2)]) == 0
        assert json.loads((out / "tune.json").read_text())["best"] == before["best"]
    finally:
        file.write_text(text)


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_not_tried_again(tiny, tmp_path, monkeypatch, capsys):
    tried = []

    def train(config_file, overrides, folder):
        tried.append(folder.name)
        if folder.name == "diffusion-001":
            raise settings.NonFinite("the loss is nan")
        (folder).mkdir(parents=True, exist_ok=True)
        write_figures(folder / "summary.json", {"valid": {"nats_per_token": 5.0, "stderr": 0.0}, "seconds": 1.0})

    monkeypatch.setattr(tuning, "train", train)
    monkeypatch.setattr(tuning, "summary_of", lambda folder: json.loads((folder / "summary.json").read_text()))
    command = ["configs/tiny.yaml", *without_folder(tiny)[:3], "--trials", "2", "--out", str(tmp_path / "out")]
    assert tune.main(command) == 0 and tried.count("diffusion-001") == 1
    assert "failed" in capsys.readouterr().out
    assert tune.main(command) == 0 and tried.count("diffusion-001") == 1 and tried.count("diffusion-000") == 2
    assert "diffusion: the config as it is was best, so it needs no arm" in capsys.readouterr().out

    def broken(*_):
        raise settings.NonFinite("the loss is nan")

    monkeypatch.setattr(tuning, "train", broken)
    assert tune.main([*command[:-1], str(tmp_path / "other")]) == 1
    assert "every trial of diffusion and of autoregressive failed; lower optim.lr" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_takes_the_tuned_arms_as_the_headline(tuned, capsys):
    out, command = tuned
    result = json.loads((out / "tune.json").read_text())
    files = [str(out / f"tuned-{o}.yaml") for o, trial in result["best"].items() if trial]
    keys = [c for c in command[1:] if "=" in c]
    words = ["configs/tiny.yaml", *keys, "train.max_steps=30", "eval.probe=0", "eval.text=0", "eval.early=10"]
    words += ["--arms", *files, "--out", str(out.parent / "compare"), "--sequences", "0"]
    assert compare.main(words) == 0
    compared = json.loads((out.parent / "compare" / "compare.json").read_text())
    assert len(compared["arms"]) == 2 + len(files) and len(compared["controls"]) == len(files)
    valid = compared["headline"]["valid"]
    for objective, trial in result["best"].items():
        best = compared["headline"]["arms"][objective]
        assert valid[best] == min(v for label, v in valid.items() if label.startswith(objective))
        assert (best != objective) == bool(trial)
