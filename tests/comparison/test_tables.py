"""The tables of the report."""

import json
import math

from tdlm_fast.comparison import arms, figures, tables


def test_levels_are_shown_in_thirds(done):
    result = json.loads((done[0] / "compare.json").read_text())
    arm = figures.first_arms(result)["diffusion"]
    for r in arm["runs"]:
        r["table"]["levels"] |= {k: [float(i) for i in range(10)] for k in ("loss", "grad_norm")}
    rows = [row for row in tables.level_table(result) if row[0] == "diffusion"]
    assert [row[1].split(",")[0] for row in rows] == ["low", "medium", "high"]
    assert [row[2] for row in rows] == ["1.000", "4.500", "8.000"]


def test_the_row_of_an_artefact_also_has_its_size_with_the_published_training_weight():
    def judged(size):
        return {"id": "test", "as_published": size and {"mean": math.log(size)}, "verdict": "an artefact of the metric"}

    arm = {"label": "diffusion loss_weight=published", "seeds": [42, 43], "claims": [judged(1.51)]}
    other = {"label": "diffusion loss_weight=uniform", "seeds": [42], "claims": [judged(9.0)]}
    words = " (1.51 times with the published training weight, 2 seeds)"
    assert tables.published_weight({"controls": [other, arm]}, judged(1.37)) == words
    assert tables.published_weight({"controls": [other]}, judged(1.37)) == ""
    assert tables.published_weight({"controls": [arm | {"claims": [judged(None)]}]}, judged(1.37)) == ""


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
    rows = tables.task_table({"arms": both})
    assert rows[1] == ["piqa", "20 (limited)", "diffusion, seed 2", "50.0 [40.0,\u00a060.0]", "–", "25.0", "60.0",
                       "-0.250", "3"]  # fmt: skip
    assert [(row[0], row[1], row[2]) for row in rows[2:]] == [
        ("blimp", "20", "diffusion, seed 2"), ("blimp", "20", "autoregressive, seed 2"),
    ]  # fmt: skip
    paradigms = tables.paradigm_table({"arms": both})
    assert paradigms[0][2:4] == ["diffusion, acc %", "autoregressive, acc %"]
    assert [(row[0], row[-1]) for row in paradigms[1:]] == [("a", "-20.0"), ("b", "+40.0")]
    assert paradigms[2][2].startswith("90.0") and paradigms[2][3].startswith("50.0")
