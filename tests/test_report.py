"""README and docs say what bench/results holds."""

import pytest

from bench import report


@pytest.mark.parametrize("name", report.TABLES)
def test_tables_are_drawn_from_the_results(name):
    text = (report.ROOT / name).read_text()
    assert report.filled(text, report.TABLES[name]) == text, "run python -m bench.report and commit what changes"


def test_a_missing_mark_is_named():
    with pytest.raises(ValueError, match="begin experiment"):
        report.filled("no marks", report.TABLES["README.md"])


def test_curves_are_drawn_from_every_evaluation(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install -e .[plot]")
    for objective in report.OBJECTIVES:
        found = report.curve(objective)
        steps = report.tables_claims.runs(objective)[0]["summary"]["steps"]
        assert found[-1][0] == steps and found[0][2] > found[-1][2]
    report.plot_curves(tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 5000
