"""A file is whole, or as it was."""

import json

import pytest

from tdlm_fast.runs import files


def test_a_file_is_whole_or_as_it_was(tmp_path):
    def fails(path):
        path.write_text("half")
        raise OSError("no space")

    files.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(OSError):
        files.write_beside(tmp_path / "a.json", fails)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1
