"""README, docs and configs hold the figures of bench/results, and the page of the kept comparison holds its parts."""

import json
from html.parser import HTMLParser

import pytest

from bench import report
from bench.docs_tables import claims
from tdlm_fast.comparison import arms, records, runner

pytestmark = pytest.mark.docs

AGAIN = "run python -m bench.report and commit what changes"
HEADINGS = (
    "The published claims", "Control arms", "Curves", "Runs", "Every evaluation", "Likelihoods: diffusion, first seed",
    "Likelihoods: autoregressive, first seed", "Evaluation sets", "At equal budgets", "Diagnostics", "What was alike",
    "Machines",
)  # fmt: skip
NARROW = ("Validation, nats per token, by time", "Training loss by time", "Perplexity progression")  # first arms only


@pytest.mark.parametrize("name", report.TABLES)
def test_tables_are_drawn_from_the_results(name):
    text = (report.ROOT / name).read_text()
    assert report.filled(text, report.TABLES[name]) == text, AGAIN


@pytest.mark.parametrize("name", report.PICTURES)
def test_pictures_are_drawn_from_the_results(name):
    file, svg = report.ROOT / name, report.PICTURES[name]()
    assert (file.read_text() if file.exists() else "") == report.sized(svg), AGAIN


@pytest.mark.parametrize("file", report.CONFIGS, ids=lambda file: file.stem)
def test_configs_say_what_was_measured(file):
    assert report.noted(file) == file.read_text(), AGAIN


def test_a_missing_mark_is_named():
    with pytest.raises(ValueError, match="begin demo"):
        report.filled("no marks", report.TABLES["README.md"])


def test_curves_are_drawn_from_every_evaluation():
    for name in ("docs/curves.svg", "docs/curves-by-time.svg"):
        evaluated = [len(claims.runs(o)[0]["evaluations"]) for o in report.OBJECTIVES]
        assert report.PICTURES[name]().count("<circle") == sum(evaluated) > 30


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(the comparison made again from what its runs recorded, the folder that it was written to)."""
    out = tmp_path_factory.mktemp("compare")
    return runner.compare(arms.arms_of(records.recorded(report.KEPT.with_name("compare.json"))), out), out


def test_the_kept_comparison_is_what_its_runs_make(drawn):
    result, out = drawn
    assert json.loads(json.dumps(result)) == claims.comparison()
    assert report.KEPT.read_text() == report.kept_report(), AGAIN
    text = (out / "report.md").read_text()
    for line in report.KEPT.read_text().splitlines():
        assert line in text or line.startswith("The charts are drawn by")
    names = {f"figures/{f.name}" for f in (out / "figures").iterdir()}
    assert len(names) == text.count("](figures/") > 20 and all(f"]({name})" in text for name in names)


class Page(HTMLParser):
    """The headings, links, anchors, tables and charts ({title: texts}) of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.path, self.headings, self.links, self.ids, self.tables, self.charts = [], [], [], [], 0, {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.path.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src")]
        self.ids += [v for k, v in attrs if k == "id"]
        self.tables += tag == "table"

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, data):
        if self.path[-1:] == ["h2"]:
            self.headings.append(data)
        elif self.path[-2:] == ["svg", "title"]:
            self.chart = self.charts.setdefault(data, [])
        elif "svg" in self.path and self.path[-1] == "text":
            self.chart.append(data)


def test_the_page_holds_its_parts(drawn):
    result, out = drawn
    page = Page((out / "report.html").read_text())
    assert tuple(page.headings) == HEADINGS
    assert page.links == [f"#{name}" for name in page.ids] and len(set(page.ids)) == len(HEADINGS)
    assert page.tables == (out / "report.md").read_text().count("|---|\n") > 8
    assert len(page.charts) == len(list((out / "figures").iterdir()))
    labels = [arm["label"] for arm in result["arms"]]
    for title in ("Validation, nats per token, by step", "The last four fifths of the steps",
                  "Validation, nats per token, by loss token", "Loss by noise level, nats"):  # fmt: skip
        assert set(labels) <= set(page.charts[title]), title
    for title in NARROW:
        assert set(labels) & set(page.charts[title]) == set(labels[:2]), title
    for name in ("Diffusion", "Autoregressive"):
        heat = page.charts[f"{name}: loss by noise level"]
        assert "0–10 %" in heat and "90–100 %" in heat
