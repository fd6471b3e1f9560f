"""The report's page, words and tables."""

import json
import re
from html.parser import HTMLParser

from tdlm_fast.comparison import arms, figures, report


class _Page(HTMLParser):
    VOID = {"meta", "path", "rect", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_stands_alone(done):
    out, _ = done
    text = (out / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open
    names = {t for t, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe"}) and "url(" not in text and "@import" not in text
    ids = {a.get("id") for _, a in page.tags}
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href")]
    assert len(links) >= 6 and all(v[0] == "#" and v[1:] in ids for v in links)
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    result = json.loads((out / "compare.json").read_text())
    said = "".join(page.text)
    for claim in result["claims"]:
        assert claim["claim"] in said and claim["verdict"] in said
    assert len([t for t, _ in page.tags if t == "svg"]) >= 18 and "nan" not in said.lower()
    markdown = (out / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (out / name).is_file(), name
    assert report.paragraph(result) in markdown and report.paragraph(result) in said.replace("\n", " ")


def test_the_text_follows_the_figures(done):
    """Signs, sides and orders of the report, by figures that are turned round."""
    out, _ = done
    result = json.loads((out / "compare.json").read_text())
    test = next(c for c in result["claims"] if c["id"] == "test")
    first = figures.first_arms(result)
    base = next(r for r in first["diffusion"]["runs"][0]["table"]["rows"] if r["name"] == "unigram baseline")
    for sign, winner, exact, side in (
        (-1, "diffusion's bound is behind", "behind", "above"), (1, "diffusion is ahead", "ahead of", "below"),
    ):  # fmt: skip
        test["right"] = {"mean": 0.5 * sign, "low": 0.5 * sign - 0.1, "high": 0.5 * sign + 0.1}
        test["exact"] = {"mean": 0.25 * sign, "low": 0.25 * sign - 0.1, "high": 0.25 * sign + 0.1}
        base["nats_per_token"] = 5.0 + 3.0 * sign
        text = report.paragraph(result)
        assert f"{winner} by 0.500 nats" in text and f"is 0.250 nats {exact} autoregressive" in text
        assert text.count(f" {side} it") == 2
    zero = result["untrained"]
    zero |= {k: {"mean": m, "low": m - 0.1, "high": m + 0.1} for k, m in (("as_published", 1.8), ("one_scale", 0.3),
                                                                        ("right", -0.2))}  # fmt: skip
    for mean in (0.05, -0.05):  # an interval that holds 0 tells no side
        for key in ("right", "exact"):
            test[key] = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        text = report.paragraph(result)
        assert "the interval of the difference holds 0" in text and "is not told from that of autoregressive" in text
        assert "diffusion is ahead" not in text and "is behind" not in text
    assert "6.05 times better; on one scale the ratio is 1.35, under the right metric 0.82" in text
    zero["as_published"]["low"] = -0.1
    assert "times better" not in report.paragraph(result)
    run = first["diffusion"]["runs"][0]
    for r in first["diffusion"]["runs"]:
        r["table"]["levels"] |= {k: [float(i) for i in range(10)] for k in ("loss", "grad_norm")}
    rows = [row for row in report.level_table(result) if row[0] == "diffusion"]
    assert [row[1].split(",")[0] for row in rows] == ["low", "medium", "high"]
    assert [row[2] for row in rows] == ["1.000", "4.500", "8.000"]
    band = figures._band(first["diffusion"], 0, lambda e: e["seconds"], lambda e: e["valid"]["nats_per_token"])
    seconds, nats = (
        [[f(e) for e in r["evaluations"]] for r in first["diffusion"]["runs"]]
        for f in (lambda e: e["seconds"], lambda e: e["valid"]["nats_per_token"])
    )
    assert band.low == [min(pair) for pair in zip(*nats, strict=True)] != band.high
    assert band.high == [max(pair) for pair in zip(*nats, strict=True)]
    assert band.x == [sum(pair) / 2 for pair in zip(*seconds, strict=True)]
    training = figures._training(first["diffusion"], 0, 4, 1)
    assert training.x[-1] == sum(r["losses"][-1][4] for r in first["diffusion"]["runs"]) / 2
    for e in run["evaluations"]:
        e["diagnostics"]["loss"] = [float(i) for i in range(10)]
    maps = figures._heat_maps(first["diffusion"])["heat-diffusion-loss"]
    places = {name: float(y) for y, name in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(\d+–\d+ %)<', maps)}
    assert places["90–100 %"] < places["0–10 %"]  # most corrupted on top


def test_tables_of_the_evaluation_sets():
    e = {"n": 20, "acc": 0.5, "acc_interval": [0.4, 0.6], "acc_norm": None, "chance": 0.25, "shortest": 0.6,
         "gap": -0.25, "seconds": 3.0, "limit": 20}  # fmt: skip
    groups = [{"b": {"n": 10, "acc": x, "acc_interval": [0.0, 1.0]}, "a": {"n": 10, "acc": y, "acc_interval": [0, 1]}}
              for x, y in ((0.9, 0.2), (0.5, 0.4))]  # fmt: skip
    blimp = [e | {"limit": 0, "groups": g} for g in groups]
    both = [
        {"objective": o, "runs": [{"tasks": None, "config": {"seed": 1}}, {"tasks": t, "config": {"seed": 2}}]}
        for o, t in zip(arms.OBJECTIVES, ({"piqa": e, "blimp": blimp[0]}, {"blimp": blimp[1]}), strict=True)
    ]
    rows = report.task_table({"arms": both})
    assert rows[1] == ["piqa", "20 (limited)", "diffusion, seed 2", "50.0 [40.0,\u00a060.0]", "–", "25.0", "60.0",
                       "-0.250", "3"]  # fmt: skip
    assert [(row[0], row[1], row[2]) for row in rows[2:]] == [
        ("blimp", "20", "diffusion, seed 2"), ("blimp", "20", "autoregressive, seed 2"),
    ]  # fmt: skip
    paradigms = report.paradigm_table({"arms": both})
    assert paradigms[0][2:4] == ["diffusion, acc %", "autoregressive, acc %"]
    assert [(row[0], row[-1]) for row in paradigms[1:]] == [("a", "-20.0"), ("b", "+40.0")]
    assert paradigms[2][2].startswith("90.0") and paradigms[2][3].startswith("50.0")
