"""The verb `check`: its exit code, and its one line where it cannot check."""

import pytest

from tdlm_fast import check
from tdlm_fast.config import NonFinite
from tdlm_fast.evaluation import self_check


class Result:
    """A check that passed or failed, as self_check.checks yields them."""

    def __init__(self, name: str, passed: bool):
        self.name, self.passed = name, passed

    def __str__(self):
        return f"{'ok' if self.passed else 'FAIL'}  {self.name}"


@pytest.mark.parametrize("outcomes, code, last", [
    ([True, True], 0, "all checks passed"), ([True, False, False], 1, "2 of the checks failed"),
])  # fmt: skip
def test_every_result_is_printed_and_a_failure_is_exit_code_1(outcomes, code, last, monkeypatch, capsys):
    options = {}

    def checks(run, **given):
        options.update(given, run=str(run))
        return (Result(f"check {i}", passed) for i, passed in enumerate(outcomes))

    monkeypatch.setattr(self_check, "checks", checks)
    assert check.main(["a run", "--sequences", "5", "--steps", "7", "--device", "cpu"]) == code
    assert options == {"run": "a run", "rows": 5, "steps": 7, "device": "cpu"}
    out, err = capsys.readouterr()
    assert out.splitlines() == [*(str(Result(f"check {i}", p)) for i, p in enumerate(outcomes)), last] and not err


@pytest.mark.parametrize("args", [["--sequences", "1"], ["--steps", "0"], ["--steps", "-1"]])
def test_counts_that_check_nothing_are_refused(args, capsys):
    assert check.main(["no-such-run", *args]) == 2
    assert capsys.readouterr() == ("", "error: --sequences must be at least 2 and --steps at least 1\n")


def test_a_folder_that_is_not_a_run_is_one_line(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"error: {tmp_path} is not a run folder: it holds no config.yaml\n")


def test_weights_that_are_not_finite_are_exit_code_1_and_name_the_run(monkeypatch, capsys):
    def broken(*_, **__):
        raise NonFinite("the likelihood is not finite")

    monkeypatch.setattr(self_check, "checks", broken)
    assert check.main(["a run"]) == 1
    assert capsys.readouterr() == ("", "error: a run: the likelihood is not finite\n")
