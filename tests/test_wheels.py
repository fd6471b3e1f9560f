"""A wheel holds what it needs, comes out the same twice, and its user can name the configs that ship in it."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDS = ("setuptools.command.bdist_wheel", "setuptools >= 70.1")
PLATFORM = "manylinux2014_x86_64"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two wheels from one source distribution, without a compiler, so without the library."""
    pytest.importorskip(NEEDS[0], reason=f"needs {NEEDS[1]}")
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "csrc" / "wheels.py")
    wheels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wheels)
    folder = tmp_path_factory.mktemp("wheels")
    none = {"CC": "false", "CXX": "false", "SOURCE_DATE_EPOCH": "1700000000", "PYTHONWARNINGS": "ignore"}
    source = wheels.unpacked(folder / "sdist", folder / "build")
    return [wheels.build(source, PLATFORM, folder / each, none) for each in ("first", "second")]


@pytest.mark.slow
def test_a_wheel_holds_every_file_and_comes_out_the_same_twice(built):
    first, second = built
    assert first.read_bytes() == second.read_bytes()
    held = set(zipfile.ZipFile(first).namelist())
    listed = subprocess.check_output(["git", "ls-files", "tdlm_fast", "kernels", "configs"], cwd=ROOT, text=True)
    files = {f if f.startswith("tdlm_fast/") else f"tdlm_fast/{f}" for f in listed.split() if Path(f).suffix}
    assert len(files) > 150 and "tdlm_fast/configs/controls/ar-no-dropout.yaml" in files
    assert files <= held
    assert {n for n in held - files if ".dist-info/" not in n} == set()  # nothing else, as no compiler was there
    assert any(n.endswith("/LICENSE") for n in held)


@pytest.mark.slow
def test_a_user_of_a_wheel_names_its_configs(built, tmp_path):
    zipfile.ZipFile(built[0]).extractall(tmp_path / "site")
    (tmp_path / "here").mkdir()
    code = """if True:
        import sys, tdlm_fast.config as c
        control = c.load("configs/controls/ar-no-dropout.yaml")
        print(c.__file__, c.load("configs/tiny.yaml").model.width, control.objective)
        """

    def printed() -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-c", code]
        return subprocess.check_output(command, cwd=tmp_path / "here", env=environment, text=True).split()

    file, *words = printed()
    assert Path(file).is_relative_to(tmp_path / "site") and words == ["64", "autoregressive"]
    own = tmp_path / "here" / "configs" / "tiny.yaml"
    own.parent.mkdir()
    own.write_text("model: {width: 32}\n")
    assert printed()[1] == "32"  # a file that is here comes first
