"""README and docs say what bench/results holds."""

import json

import pytest

from bench import report
from tdlm_fast.comparison import arms, records, runner


@pytest.mark.parametrize("name", report.TABLES)
def test_tables_are_drawn_from_the_results(name):
    text = (report.ROOT / name).read_text()
    assert report.filled(text, report.TABLES[name]) == text, "run python -m bench.report and commit what changes"


@pytest.mark.parametrize("file", report.CONFIGS, ids=lambda file: file.stem)
def test_configs_say_what_was_measured(file):
    assert report.noted(file) == file.read_text(), "run python -m bench.report and commit what changes"


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


def test_the_kept_comparison_is_what_its_runs_make(tmp_path):
    """Verdicts, tables and every mark of every chart, from what the runs recorded."""
    kept = report.RESULTS / "wikitext-2-compare"
    found = runner.compare(arms.arms_of(records.recorded(kept / "compare.json")), tmp_path)
    assert json.loads(json.dumps(found)) == json.loads((kept / "compare.json").read_text())
    figures = sorted(f.name for f in (tmp_path / "figures").iterdir())
    assert figures == sorted(f.name for f in (kept / "figures").iterdir()) and len(figures) > 20
    for name in ("report.md", "report.html", *(f"figures/{f}" for f in figures)):
        assert (tmp_path / name).read_text() == (kept / name).read_text(), f"{name}: python -m tdlm_fast.compare --from"
