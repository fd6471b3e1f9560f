"""Links, anchors, commands and paths of README and docs lead somewhere."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs
ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench/results/README.md", ROOT / "csrc/cuda/README.md",
]  # fmt: skip
ROOMS = ("kernels", "csrc", "tdlm_fast", "bench", "tests", "configs", "docs")


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what a link may name after #: headings as GitHub spells them, and <a id="…">."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    spelled = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return spelled | set(re.findall(r'<a id="(.+?)">', prose(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not link.startswith("https://")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading in {target.name}"


@pytest.mark.parametrize("page", PAGES[:2] + PAGES[3:], ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"-m ((?:tdlm_fast|bench)(?:\.[a-z]\w*)*)", text)):  # not tdlm_fast.VERB
        file = ROOT / module.replace(".", "/")
        assert file.is_dir() or file.with_suffix(".py").is_file(), f"python -m {module}: no such module"
    for path in set(re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*\w)`", text)):
        result = (ROOT / path).exists() or (ROOT / f"{path}.py").exists()
        assert result or re.search("NAME|VERB", path), f"{path}: no such file"
