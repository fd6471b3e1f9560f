"""docs/environment.md lists the environment variables that the sources read."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sources(*folders: str) -> list[Path]:
    kinds = (".py", ".sh", ".h", ".cpp", ".cu")
    return [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in kinds]


PRODUCT = [ROOT / "setup.py", *sources("kernels", "tdlm_fast", "csrc")]
TOOLS = [ROOT / "Makefile", *sources("bench", "tests")]


def names(pattern: str, files: list[Path]) -> set[str]:
    return {name for file in files for name in re.findall(pattern, file.read_text())}


def test_every_variable_is_on_the_page_and_none_that_is_gone():
    listed = names(r"`([A-Z][A-Z0-9_]+)`", [ROOT / "docs" / "environment.md"])
    ours = names(r"\bTDLM_[A-Z0-9_]+", [*PRODUCT, *TOOLS])
    read = names(r"""(?:environ(?:\.get|\.setdefault)?[(\[]|getenv\()["'](\w+)""", PRODUCT)
    read |= names(r"""["'](\w+)["'] (?:not )?in os\.environ""", PRODUCT)
    assert {"TDLM_CPU_ISA", "CUDA_HOME", "NO_COLOR"} <= ours | read  # the patterns find what they are for
    assert ours | read <= listed, "missing in docs/environment.md"
    assert {name for name in listed if name.startswith("TDLM_")} <= ours, "docs/environment.md lists what is not read"


def test_each_variable_is_read_where_the_page_says():
    rows = re.findall(r"^\| `(\w+)`.*`([\w/]+\.py)` \|$", (ROOT / "docs" / "environment.md").read_text(), re.M)
    assert len(rows) >= 8
    assert not [(name, file) for name, file in rows if name not in (ROOT / file).read_text()]
