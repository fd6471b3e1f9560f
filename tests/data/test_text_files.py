"""Which files of a folder are text, and of which split."""

import os

import pytest

from tdlm_fast.config import ConfigError
from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import sources
from tdlm_fast.data import text_files as folder_of_text
from tdlm_fast.data.text_files import files_of

from .conftest import TEXT, load


def lay(top, *names):
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"in {name}")


def shown(top):
    return {split: [str(f.relative_to(top)) for f in files] for split, files in files_of(top).items()}


def test_linked_folders_and_files_are_followed_and_loops_are_not(tmp_path, capsys):
    top, store = tmp_path / "top", tmp_path / "store"
    lay(store, "v/a.txt", "t/deep/b.txt", "one.txt", "beside.txt")
    lay(top, "train/a.txt")
    for name, target in {
        "valid": store / "v", "test": store / "t", "train/linked.txt": store / "one.txt", "train/loop": top / "train",
        "train/up": "..", "train/house": tmp_path, "train/self": "self",
    }.items():  # fmt: skip
        (top / name).symlink_to(target)
    assert shown(top) == {
        "test": ["test/deep/b.txt"], "train": ["train/a.txt", "train/linked.txt"], "valid": ["valid/a.txt"]
    }  # fmt: skip
    assert sources.texts(DataConfig(path=str(top)))[2] == {
        "train": "in train/a.txt\nin one.txt\n", "valid": "in v/a.txt", "test": "in t/deep/b.txt"
    }  # fmt: skip
    (tmp_path / "linked").symlink_to(top)
    assert shown(tmp_path / "linked") == shown(top)
    assert capsys.readouterr().err == ""


def test_one_folder_may_be_two_splits(tmp_path):
    lay(tmp_path, "train/a.txt", "test/b.txt")
    (tmp_path / "valid").symlink_to("test")
    assert shown(tmp_path)["valid"] == ["valid/b.txt"] and shown(tmp_path)["test"] == ["test/b.txt"]


@pytest.mark.parametrize("name", ["valid", "valid.txt", "notes.txt"])
def test_a_link_to_nothing_is_an_error_and_not_a_missing_split(tmp_path, name):
    lay(tmp_path, "train.txt")
    (tmp_path / name).symlink_to("absent")
    with pytest.raises(ConfigError, match=f"{tmp_path / name} is a link to absent, which does not exist"):
        files_of(tmp_path)


def test_links_that_multiply_end(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_of_text, "MOST_FOLDERS", 1000)
    for i in range(30):
        (tmp_path / f"{i}").mkdir()
        for name in "ab":
            (tmp_path / f"{i}" / name).symlink_to(tmp_path / f"{i + 1}")
    with pytest.raises(ConfigError, match="holds more than 1,000 folders"):
        files_of(tmp_path)


@pytest.mark.parametrize("folder", ["", ".corpus/"])
def test_hidden_files_and_folders_are_never_read(tmp_path, folder):
    top = tmp_path / folder
    lay(top, "train.txt", "valid.txt", "test.txt", "._train.txt", ".valid.txt", ".DS_Store")
    lay(top, ".ipynb_checkpoints/valid-checkpoint.txt", ".git/test/x.txt", "deep/.hidden/train.txt")
    assert shown(top) == {s: [f"{s}.txt"] for s in sources.SPLITS}


def test_the_folders_of_runs_and_the_token_cache_are_not_text(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    lay(tmp_path, "runs/a/config.yaml", "runs/a/metrics.jsonl", "runs/a/samples.txt", "runs/a/earlier-1/samples.txt")
    lay(tmp_path, "runs/b/config.yaml", "runs/b/checkpoints/last.safetensors", "runs/b/tasks/x.jsonl")
    lay(tmp_path, "runs/compare-x/compare.json", "runs/compare-x/report.md", "runs/compare-x/figures/a.txt")
    lay(tmp_path, "chapter/config.yaml", "chapter/more.md")  # not a run
    assert shown(tmp_path) == {None: ["chapter/more.md", "text.txt"]}
    note = f"NOTE: {tmp_path}: folders of runs are left out: runs/a, runs/b, runs/compare-x"
    assert note in capsys.readouterr().err
    with pytest.raises(ConfigError, match="holds no file outside of runs"):
        files_of(tmp_path / "runs" / "a")
    first = load(tmp_path)
    assert list((tmp_path / "cache").iterdir()) and load(tmp_path).hash == first.hash


@pytest.mark.parametrize(
    "names, groups",
    [
        ("train.csv valid.parquet test.json", {"train": "train.csv", "valid": "valid.parquet", "test": "test.json"}),
        ("a.csv b.json c.ndjson", {None: "a.csv b.json c.ndjson"}),
        ("a.txt a.csv test.csv", {None: "a.txt"}),  # tables beside plain text describe it
        ("train.txt train.csv valid.csv", {"train": "train.txt", "valid": "valid.csv"}),
        ("train/a.txt train/b.csv test/c.json", {"train": "train/a.txt", "test": "test/c.json"}),
        ("input.txt train.npy val.npy", {None: "input.txt"}),
        ("train.txt valid.tsv", {"train": "train.txt", "valid": "valid.tsv"}),
    ],
)
def test_tables_are_read_where_there_is_no_text(tmp_path, names, groups):
    lay(tmp_path, *names.split())
    assert {split: " ".join(files) for split, files in shown(tmp_path).items()} == groups


def test_a_split_in_a_format_that_is_not_read_is_named(tmp_path):
    lay(tmp_path, "train.txt", "valid.tsv")
    with pytest.raises(ConfigError, match="valid.tsv is a .tsv file"):
        sources.texts(DataConfig(path=str(tmp_path)))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="every folder can be read")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    lay(tmp_path, "train.txt", "valid/a.txt")
    (tmp_path / "valid").chmod(0)
    with pytest.raises(ConfigError, match="valid cannot be read"):
        files_of(tmp_path)
    (tmp_path / "valid").chmod(0o700)
