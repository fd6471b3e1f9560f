"""The token cache is checked and rebuilt."""

import numpy as np
import pytest

from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import dataset

from .conftest import load


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_cache_is_rebuilt_with_one_line(folder, damage, capsys):
    before = load(folder).splits["train"].tokens
    for file in (folder / "cache").iterdir():
        file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(load(folder).splits["train"].tokens, before)
    assert capsys.readouterr().err.count("is damaged") == 3
    load(folder)
    assert capsys.readouterr().err == ""


def test_an_unwritable_cache_stops_nothing(folder, capsys):
    (folder / "file").write_text("")
    config = DataConfig(path=str(folder), tokenizer="bytes", cache=str(folder / "file"))
    assert dataset.load(config, 32).splits["test"].bytes == 900
    assert "data.cache" in capsys.readouterr().err
    load(folder)
    for file in (folder / "cache").iterdir():
        file.unlink()
        file.mkdir()
    assert load(folder).splits["test"].bytes == 900
