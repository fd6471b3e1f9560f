"""The command `evaluate`: damaged figures, and options without effect."""

import pytest
from conftest import torch_free

from tdlm_fast import evaluate, table


def test_damaged_figures_are_named_and_options_without_effect_refused(run, local, capsys):
    asked = [str(run), "--tasks", "piqa", "--data", str(local)]
    for name, verb, command in (("tasks.json", evaluate, asked), ("likelihoods.json", table, [str(run)])):
        for text in ("{", "[]"):
            (run / name).write_text(text)
            capsys.readouterr()
            assert verb.main(command) == 2
            error = capsys.readouterr().err
            assert f"error: {run / name} is damaged" in error and "remove it, and it is made again" in error
            (run / name).unlink()
    for command, message in (
        ([*asked, "--split", "valid", "--max-samples", "4"], "--split, --max-samples: only without --tasks"),
        ([*asked, "--layout", "packed"], "--layout: only without --tasks"),
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
