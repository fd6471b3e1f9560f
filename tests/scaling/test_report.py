"""The report of a sweep."""

from tdlm_fast.scaling import report
from tdlm_fast.scaling.crossing import crossings
from tdlm_fast.scaling.surface import surfaces
from tdlm_fast.scaling.verdicts import fit_all, verdicts

from .curves import curve_of


def found(curves, failed=()):
    rows = crossings(curves)
    fits = fit_all(curves, rows)
    return {
        "cells": 3, "curves": curves, "crossings": rows, "maps": surfaces(rows), "fits": fits,
        "verdicts": verdicts(curves, rows, fits), "baselines": [
            {"unique_tokens": 2000, "unigram": 5.5, "5-gram": 4.25, "source": 2.5}
        ], "failed": list(failed),
    }  # fmt: skip


AR = curve_of("autoregressive", [9, 5.0, 4.0, 3.5], unique=2000)
CROSSES, NEVER = (curve_of("diffusion", [9, 6.0, 5.0, last], unique=2000) for last in (3.0, 3.9))


def test_it_says_where_diffusion_crosses_or_that_it_was_not_seen():
    one, none = found([CROSSES, AR]), found([NEVER, AR])
    assert report.summary(one).startswith("Diffusion reaches the autoregressive loss in 1 of 1 comparisons")
    assert report.crossing_words(one["crossings"][0]) == "3 (3 to 3)"
    assert report.summary(none).startswith("Diffusion reaches the autoregressive loss in 0 of 1")
    assert report.crossing_words(none["crossings"][0]) == "> 3 (censored)"
    assert report.summary(found([AR])).endswith("no size has finished runs of both objectives yet.")


def test_its_files_hold_all_points_and_every_failure_and_fetch_nothing(tmp_path):
    report.write(found([CROSSES, AR], [["abc", "0.1M U=5", "error: the <memory> is full"]]), tmp_path)
    lines = (tmp_path / "points.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 + 4 and lines[0].startswith("name,size,blocks,unique_tokens,arm")
    assert "diffusion1,0.1M,100,2000,diffusion,diffusion,1,30,3.0,3.0,0.001,3000000.0" in lines
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "the &lt;memory&gt; is full" in page and "the &lt;memory&gt; is full" in text
    assert "src=" not in page and page.count("<svg") == 2
    assert "refused: 1 uncensored points; at least 4 are needed" in text
    assert text.index("Diffusion reaches") < text.index("figures/map.svg") < text.index("## ")
    assert (tmp_path / "figures" / "loss-0.svg").is_file()
