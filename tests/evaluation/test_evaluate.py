"""The command `evaluate`: damaged figures, and options without effect."""

import json

import pytest
import torch
from conftest import torch_free

from tdlm_fast import check, evaluate, table, train
from tdlm_fast.runs import checkpoint, load

pytestmark = pytest.mark.slow


def test_damaged_figures_are_named_and_options_without_effect_refused(run, local, capsys):
    request = [str(run), "--tasks", "piqa", "--data", str(local)]
    for name, verb, command in (("tasks.json", evaluate, request), ("likelihoods.json", table, [str(run)])):
        for text in ("{", "[]"):
            (run / name).write_text(text)
            capsys.readouterr()
            assert verb.main(command) == 2
            error = capsys.readouterr().err
            assert f"error: {run / name} is damaged" in error and "remove it, and it is made again" in error
            (run / name).unlink()
    for command, message in (
        ([*request, "--split", "valid", "--max-samples", "4"], "--split, --max-samples: only without --tasks"),
        ([*request, "--layout", "packed"], "--layout: only without --tasks"),
        ([str(run), "--limit", "2"], "--limit: only with --tasks"),
        ([str(run), "--samples", "4", "--batch-size", "1"], "--samples, --batch-size: only with --tasks"),
        ([str(run), "--data", str(local)], "--data: only with --tasks"),
    ):  # fmt: skip
        assert evaluate.main(command) == 2 and f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("verb, args, says", [
    ("evaluate", "--help", "usage"), ("evaluate", "RUN --limit 2", "--limit: only with --tasks"),
    ("table", "RUN --draws 0", "--draws is 0"), ("check", "RUN --steps 0", "--steps at least 1"),
])  # fmt: skip
def test_options_are_checked_before_torch_is_loaded(verb, args, says):
    assert says in torch_free(verb, *args.split())


@pytest.mark.parametrize("args, message", [
    (["--max-samples", "0"], "--max-samples is 0; it must be at least 2, as one draw shows no error"),
    (["--max-samples", "-5"], "--max-samples is -5; "), (["--max-samples", "1"], "--max-samples is 1; "),
    (["--target-stderr", "nan"], "--target-stderr is nan; it must be at least 0 and finite; with 0 all of "),
    (["--target-stderr", "-1"], "--target-stderr is -1.0; "), (["--target-stderr", "inf"], "--target-stderr is inf; "),
    (["--samples", "0"], "--samples is 0; it must be at least 1"), (["--limit", "-1"], "--limit is -1; "),
    (["--batch-size", "-1"], "--batch-size is -1; it must be at least 0; 0 takes the config's"),
    (["--seed", "-1"], "--seed is -1; it must be at least 0"),
])  # fmt: skip
def test_evaluate_names_the_option_that_is_out_of_range(args, message, capsys):
    assert evaluate.main(["no-such-run", *args]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_another_text_and_weights_that_are_not_numbers_are_refused(tiny, tmp_path, corpus, capsys):
    folder = tmp_path / "run"
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "eval.text=0"]) == 0
    command = [str(folder), "--json", "--device", "cpu"]
    capsys.readouterr()
    assert evaluate.main(command) == 0
    assert json.loads(capsys.readouterr().out)["note"] == ""
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text() + "\nmore text\n")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(corpus), str(other)))
    assert evaluate.main(command) == 2  # what one text holds out may be another's training text
    assert f"error: the text is not what {folder} was trained on" in capsys.readouterr().err
    config.write_text(config.read_text().replace(str(other), str(corpus)))
    _, _, model, state = load.load_run(folder, device="cpu")
    with torch.no_grad():
        model.head[3, 3] = float("nan")
    checkpoint.save(folder / "checkpoints" / "best.safetensors", model, None, state)
    assert evaluate.main(command) == 1
    out, err = capsys.readouterr()
    message = f"error: {folder}/checkpoints/best.safetensors: the likelihood is not finite"
    assert not out and err.splitlines()[-1].startswith(message)
    for verb in (table, check):
        assert verb.main([str(folder), "--sequences", "2", "--device", "cpu"]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {folder}: the likelihood is not finite")
