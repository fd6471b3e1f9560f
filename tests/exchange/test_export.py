"""The verb export: what it writes, and what it refuses in one line."""

import json
import subprocess

import pytest
from conftest import torch_free
from safetensors import safe_open

from tdlm_fast import export

pytestmark = pytest.mark.slow
ALWAYS = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_folder_holds_figures_and_files(runs, exported):
    for objective, folder in exported.items():
        files = {f.name for f in folder.iterdir()}
        own = {"generation_config.json"} if objective == "autoregressive" else set()
        assert files == ALWAYS | own
        test = json.loads((runs[objective] / "summary.json").read_text())["test"]
        with safe_open(folder / "model.safetensors", "pt") as f:
            about = f.metadata()
        assert about["format"] == "pt" and float(about["nats_per_token"]) == test["nats_per_token"]
        assert about["objective"] == objective and about["bound"] == test["bound"]
        assert f"| {test['nats_per_token']:.4f}" in (folder / "README.md").read_text()
    assert "upper bound" in (exported["diffusion"] / "README.md").read_text()


def test_the_figures_of_the_best_weights_do_not_stand_beside_the_last(runs, tmp_path):
    out = tmp_path / "last"
    assert export.main([str(runs["diffusion"]), "--to", "hf", "--out", str(out), "--checkpoint", "last"]) == 0
    assert "nothing is measured" in (out / "README.md").read_text()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_full_disk_is_one_line(runs, tmp_path, capsys, to):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("a tmpfs can be mounted only by root")
    try:
        out = tmp_path / "out"
        for objective in ("diffusion", "autoregressive"):
            assert export.main([str(runs[objective]), "--to", to, "--out", str(out / objective)]) == 2
            error = (
                f"error: --out {out / objective} cannot be written (No space left on device); give a folder on another"
            )
            assert capsys.readouterr().err.startswith(error)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_what_cannot_be_exported_is_one_line(runs, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    request = [str(runs["diffusion"]), "--to", "hf", "--out"]
    for args, message in (
        (["no-such-run", "--to", "hf"], "no-such-run is not a run folder"),
        ([*request, str(tmp_path / "full")], "holds files already; give a new or"),
        ([*request, str(tmp_path / "full" / "notes.txt")], "is a file; give a folder"),
    ):  # fmt: skip
        assert export.main(args) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["notes.txt"] and not (tmp_path / "no-such-run").exists()
    assert "--to" in torch_free("export", "--help")


def test_a_missing_package_is_named_with_its_installation(runs, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    assert export.main([str(runs["diffusion"]), "--to", "gguf", "--out", str(tmp_path / "new")]) == 2
    assert "--to gguf needs the package gguf" in capsys.readouterr().err and not (tmp_path / "new").exists()
