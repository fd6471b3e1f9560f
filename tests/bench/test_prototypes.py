"""docs/gpu.md holds the figures of prototypes.json, which holds what the compiler gives."""

import importlib.util
import json
import os

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (pip install triton)", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

import triton

from bench import report
from bench.prototypes import __main__ as prototypes
from bench.without_gpu.rates import RATES

FILE = json.loads(prototypes.FILE.read_text())


def test_the_page_holds_the_figures_of_the_file():
    page = (report.ROOT / "docs" / "gpu.md").read_text().partition("## Two larger designs")[2].partition("\n## ")[0]
    words = " ".join(page.split())
    of, laptop = FILE["arithmetic"]["90"], FILE["arithmetic"]["86"]
    product, tma, specialised = FILE["head"].values()
    for text in (
        f"{of['residual_kb']:.0f} KB", f"{of['weight_kb_a_layer']:.1f} KB in bf16", f"{of['partial_mb']:.1f} MB",
        f"{of['gflop_forward']:.2f} GFLOP", f"{prototypes.B} of {of['multiprocessors']} on an H200",
        f"{laptop['multiprocessors']} multiprocessors, so its {prototypes.B} programs take {laptop['waves']} waves",
        f"takes {of['us_issue_forward']:.1f} µs on an H200",
        f"{product['instructions_a_logit'] - tma['instructions_a_logit']:.2f} of {product['instructions_a_logit']:.2f}",
        f"{specialised['instructions_a_logit']:.2f} instructions per logit",
    ):  # fmt: skip
        assert text in words, text
    assert report.TABLES["docs/gpu.md"]["prototypes"]() in page, "run python -m bench.report"


def test_issue_takes_three_times_as_long_as_the_products():
    of = FILE["arithmetic"]["90"]
    products = of["gflop_forward"] * 1e9 / (RATES[90][0] * prototypes.B / of["multiprocessors"]) * 1e6
    assert of["us_issue_forward"] / products == pytest.approx(prototypes.SLOWER, rel=0.05)


def test_the_page_names_what_spills():
    for of in FILE["body"].values():
        assert not any(of[name]["stack"] + of[name]["local"] for name in ("T 128", "T 64"))
        assert all(of[name]["stack"] > 0 for name in ("T 128, four warps", "backward, T 128", "backward, T 64"))
    assert FILE["body"]["90"]["backward, T 32"]["stack"] == 0


def test_both_forms_copy_by_tma_and_one_is_specialised():
    product, tma, specialised = FILE["head"].values()
    assert [f["specialised"] for f in (product, tma, specialised)] == [False, False, True]
    assert product["tma_copies"] == 0 < min(tma["tma_copies"], specialised["tma_copies"])
    assert product["register_moves"] == tma["register_moves"] == 0 < specialised["register_moves"]
    assert len({f["products"] for f in FILE["head"].values()}) == 1  # each loop holds both products of a tile
    assert not any(f["stack"] + f["local"] for f in FILE["head"].values())


ANOTHER = pytest.mark.skipif(triton.__version__ != FILE["triton"], reason="the file is from another Triton")


@pytest.mark.slow
@ANOTHER
def test_compiling_some_again_gives_the_file():
    """Compile each kernel once, and the two whose instructions are counted. The rest repeats them at other tiles."""
    some = {86: ("T 128", "backward, T 32"), 90: ("T 128",)}
    bodies = {card: prototypes.body(card, only=names.__contains__) for card, names in some.items()}
    for card, of in bodies.items():
        assert prototypes.rounded(of) == {name: FILE["body"][str(card)][name] for name in some[card]}
        sums = prototypes.rounded(prototypes.arithmetic(card, of["T 128"]["issued"]))
        assert sums == FILE["arithmetic"][str(card)]
    assert prototypes.rounded(prototypes.heads()) == FILE["head"]


@pytest.mark.long
@ANOTHER
def test_compiling_again_gives_the_file():
    assert prototypes.figures() == FILE


LOOPS = """
        /*0000*/ MOV R1, R2 ;
.L_x_0:
        /*0010*/ HMMA.16816 R1 ;
.L_x_1:
        /*0020*/ HMMA.16816 R1 ;
        /*0030*/ @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/ HMMA.16816 R1 ;
        /*0050*/ @P0 BRA `(.L_x_2) ;
        /*0060*/ @P1 BRA `(.L_x_0) ;
        /*0070*/ EXIT ;
"""


def test_instructions_are_counted_by_their_rounds():
    assert prototypes.issued(LOOPS, 2, 4, 3) == 2 + 2 * (2 + 4 * 2 + 3 * 2)
    with pytest.raises(ValueError, match="loops"):
        prototypes.issued(LOOPS, 2, 4)
