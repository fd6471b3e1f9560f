"""The verb evaluate."""

import json

import pytest
import torch

from tdlm_fast import check, evaluate, table, train
from tdlm_fast.runs import checkpoint, load


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


def test_evaluate_says_what_text_it_read_and_stops_on_weights_that_are_no_numbers(tiny, tmp_path, corpus, capsys):
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
