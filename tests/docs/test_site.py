"""`make site`: the pages build as a site, and a link that leads nowhere ends the build."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docs, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LINKS = {"nothing.md": "a missing page", "evaluation.md#no-such-heading": "a missing heading", "../none.py": "no code"}


def test_the_site_builds_and_a_wrong_link_ends_it(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install tdlm_fast[docs]")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the pages are those that git lists, and this is not its folder")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "build" / "pages" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "build" / "pages" / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "id=" in (tmp_path / "build" / "site" / "docs" / "evaluation.html").read_text()
    with open(tmp_path / "build" / "pages" / "docs" / "data.md", "a") as page:
        page.write("\n" + " ".join(f"[{text}]({link})" for link, text in LINKS.items()) + "\n")
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode != 0 and all(link in wrong.stderr for link in LINKS)
