"""The verb: a plan to a report."""

import pytest
from conftest import torch_free

from tdlm_fast import sweep


@pytest.mark.slow
def test_a_plan_becomes_a_report_and_the_same_command_resumes(plan_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert sweep.main([str(plan_file), "--out", str(out)]) == 0
    assert "report" in capsys.readouterr().out
    first = (out / "results.json").read_bytes()
    assert sweep.main([str(plan_file), "--out", str(out)]) == 0
    assert (out / "results.json").read_bytes() == first
    assert sweep.main(["status", str(out)]) == 0
    assert "4 done" in capsys.readouterr().out


def test_a_dry_run_trains_nothing(plan_file, tmp_path, capsys):
    assert sweep.main([str(plan_file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "4 cells" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, says",
    [
        (["work"], "sweep work takes one folder"), (["status", "a", "b"], "sweep status takes one folder"),
        (["nowhere.yaml"], "nowhere.yaml: No such file or directory"), (["report", "nowhere"], "holds no sweep"),
        (["a.yaml", "b.yaml"], "is neither a plan nor one of work, status, report"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(words, says, capsys):
    assert sweep.main(words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_help_loads_no_torch():
    assert "--dry-run" in torch_free("sweep", "--help")
