"""The verb `tune`: what it refuses, and that it answers without torch. Its work is tested in test_tuning.py."""

import pytest
from conftest import torch_free

from tdlm_fast import tune


@pytest.mark.parametrize("words, message", [
    (["--trials", "1"], "--trials is 1; it must be at least 2, the config itself and another"),
    (["--steps", "-1"], "--steps is -1"), (["seed=3"], "seed=3: tune sets objective, seed"),
    (["objective=diffusion"], "objective=diffusion: tune sets"), (["optim.weight_decay=0"], "optim.weight_decay is 0"),
    (["optim.lrr=1"], "did you mean optim.lr?"), (["--out", "/"], "--out is /"),
    (["--out", "README.md/x"], "--out README.md/x: README.md is a file; give a folder"),
])  # fmt: skip
def test_what_cannot_be_tuned_is_one_line(words, message, capsys):
    assert tune.main(["configs/tiny.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and error.count("error: ") == 1


def test_it_plans_without_torch():
    assert "trials of each objective" in torch_free("tune", "--help")
    assert "did you mean optim.lr?" in torch_free("tune", "configs/tiny.yaml", "optim.lrr=3")
