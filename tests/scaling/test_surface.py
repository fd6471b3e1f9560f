"""The map of E×: what was seen, what is censored, and what a law adds."""

import re

import pytest

from tdlm_fast.scaling.crossing import crossings
from tdlm_fast.scaling.surface import draw, surfaces

from .curves import curve_of


def place(at, **where):
    """Both objectives over 16 epochs, which cross at `at`, None: never."""
    d = [9.0] + [6 - 0.1 * e if at is None or e < at else 3.0 for e in range(1, 17)]
    return [curve_of("diffusion", d, **where), curve_of("autoregressive", [9] + [4.0] * 16, **where)]


def surface(crossed):
    """The map of {(blocks, unique): epochs}."""
    curves = [c for (n, u), at in crossed.items() for c in place(at, blocks=n, unique=u, size=f"{n}M")]
    (only,) = surfaces(crossings(curves))
    return only


SEEN = {(1, 1000): 8, (1, 4000): None, (4, 1000): 4, (4, 4000): 8, (16, 1000): 2}  # E× = c U^0.5 N^-0.5


def test_places_without_a_crossing_and_one_step_beyond_follow_the_law():
    found = surface(SEEN)
    assert [s["value"] for s in found["law"]["slopes"]] == pytest.approx([0.5, -0.5])
    at = {(p["blocks"], p["unique_tokens"]): p for p in found["places"]}
    assert set(at) == {(n, u) for n in (1, 4, 16, 64) for u in (1000, 4000, 16000)}
    expected = {(1, 4000): 16, (16, 4000): 4, (1, 16000): 32, (64, 1000): 1, (64, 16000): 4}
    for where, value in expected.items():
        assert at[where]["projected"]["value"] == pytest.approx(value, rel=1e-6), where
    assert at[1, 4000]["limit"] == 16 and at[16, 4000]["limit"] is None
    assert all(at[where]["projected"] is None for where, epochs in SEEN.items() if epochs)


def test_below_four_crossings_nothing_is_extrapolated():
    found = surface({k: v for k, v in SEEN.items() if k != (16, 1000)})
    assert found["law"]["refused"].startswith("3 uncensored points")
    assert len(found["places"]) == 4 and not any(p["projected"] for p in found["places"])
    assert "hatched" not in draw(found)


def test_the_drawing_marks_seen_censored_and_extrapolated_places():
    drawn = draw(surface(SEEN))
    marks = re.findall(r"<rect [^>]*?( stroke-dasharray[^>]*)? fill=\"rgb[^>]*><title>([^:]*): ((?:&gt; )?\d*)", drawn)
    assert len(marks) == 12
    assert [(name, words) for dashed, name, words in marks if dashed] == [("1M, 4000 tokens", "&gt; 16")]
    assert drawn.count("url(#hatch)") == 12 - 4  # all but the crossings
    assert "hatched: extrapolated" in drawn and "against autoregressive" in drawn
    dark = {words: float(o) for o, words in re.findall(r'fill-opacity="([\d.]+)"><title>[^:]*: (\d+)<', drawn)}
    assert dark["2"] < dark["4"] < dark["8"]
    rows = re.findall(r'text-anchor="end">(\d+M?)[ <]', drawn)
    assert rows == ["64", "16M", "4M", "1M"]  # the smallest at the bottom
