"""A whole comparison at a small setting, trained once, and copies of its runs."""

import json
import shutil
from pathlib import Path

import pytest

from tdlm_fast import compare
from tdlm_fast import config as settings
from tdlm_fast.runs.files import write_figures
from tdlm_fast.runs.folder import owner_of

SMALL = ["train.max_steps=24", "train.log_every=4", "train.save_every=8", "eval.every=12", "eval.probe=4",
         "eval.early=2", "eval.text=0"]  # fmt: skip


def small_keys(corpus, cache) -> list[str]:
    """The keys of a model of a moment's training on the bytes of a text."""
    return [
        f"data.path={corpus}", "data.tokenizer=bytes", f"data.cache={cache}", "model.width=16", "model.inner=24",
        "model.heads=2", "model.seq_len=32", "train.batch_size=16", "eval.samples=2", "eval.max_samples=4",
        "device=cpu",
    ]  # fmt: skip


def without_folder(tiny):
    return [t for t in tiny if not t.startswith("run.dir=")]


@pytest.fixture(scope="session")
def done(corpus, tmp_path_factory):
    """The folder of a comparison of two seeds, its config keys, and what it printed."""
    folder = tmp_path_factory.mktemp("compare")
    keys = [*small_keys(corpus, folder / "cache"), "optim.lr=3e-3", *SMALL]
    command = ["configs/tiny.yaml", *keys, "--seeds", "2", "--out", str(folder / "out")]
    command += ["--sequences", "3", "--draws", "2"]
    assert compare.main(command) == 0
    return folder / "out", command


def copy_of(run: Path, folder: Path, **changed) -> Path:
    """A copy of a finished run whose config and summary say otherwise: key=value, or key_=value for the summary's."""
    shutil.copytree(run, folder)
    config = settings.load(run / "config.yaml", [f"{k}={v}" for k, v in changed.items() if not k.endswith("_")])
    settings.save(config, folder / "config.yaml")
    summary = json.loads((run / "summary.json").read_text()) | owner_of(config)
    summary |= {k[:-1]: v for k, v in changed.items() if k.endswith("_")}
    del summary["sha256"]
    write_figures(folder / "summary.json", summary)
    return folder
