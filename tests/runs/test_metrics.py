"""summary.json and metrics.jsonl when they are damaged."""

import json

import pytest

from tdlm_fast import config as settings
from tdlm_fast import evaluate, sample, table, train
from tdlm_fast.comparison import records
from tdlm_fast.runs import files
from tdlm_fast.runs import metrics as run_metrics
from tests.running import TINY


@pytest.mark.parametrize("text", ["", '{"finished": tr', '{"finished": true}', "[]"])
def test_a_summary_cut_short_is_made_again(trained, text):
    folder, args = trained
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(text)
    with pytest.raises(settings.ConfigError, match="summary.json is damaged .*; remove it, and .* makes it again"):
        records.read(folder)
    assert train.main([TINY, *args, "--resume"]) == 0
    assert json.loads((folder / "summary.json").read_text())["test"] == whole["test"]


def test_a_summary_that_lacks_a_key_is_made_again_as_its_error_says(trained):
    folder, args = trained
    whole = json.loads((folder / "summary.json").read_text())
    for key in run_metrics.REPORTED:
        (folder / "summary.json").write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        message = rf"summary.json is damaged \(no {key}\); remove it, and .*train CONFIG --resume makes it again"
        with pytest.raises(settings.ConfigError, match=message):
            records.read(folder)
    (folder / files.LAST).rename(folder / "kept")
    with pytest.raises(settings.ConfigError, match="damaged .*; restore it: without .*last.safetensors"):
        records.read(folder)
    (folder / "kept").rename(folder / files.LAST)
    (folder / "summary.json").unlink()
    with pytest.raises(settings.ConfigError, match="is not finished: .*train CONFIG --resume finishes it"):
        records.read(folder)
    assert train.main([TINY, *args, "--resume"]) == 0
    assert records.read(folder)["summary"]["test"] == whole["test"]


def test_a_record_that_was_changed_is_refused_by_what_compares(trained):
    folder, _ = trained
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "valid": {"nats_per_token": 5.1}\n')
    with pytest.raises(settings.ConfigError, match="metrics.jsonl was changed after the run had written it; restore"):
        records.read(folder)


def test_a_damaged_summary_never_means_the_last_weights(trained, capsys):
    folder, args = trained
    whole = (folder / "summary.json").read_text()
    for text in (whole.replace('"seed": 42', '"seed": 43'), "[" * 100_000, '{"a":' * 100_000, whole[:-100], "[]"):
        (folder / "summary.json").write_text(text)
        for verb in (evaluate, sample, table):
            assert verb.main([str(folder), *(["--tokens", "4"] if verb is sample else [])]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {folder / 'summary.json'} is damaged (") and error.count("\n") == 1
    assert train.main([TINY, *args, "--resume"]) == 0
    assert sample.main([str(folder), "--tokens", "4"]) == 0
