"""A trained run is loaded from its folder."""

import pytest

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.runs import checkpoint, load


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    folder = tmp_path / "run"
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2"]) == 0
    best = folder / "checkpoints" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(settings.ConfigError, match="best.safetensors is damaged"):
        load.load_run(folder, "best", "cpu")
    with pytest.raises(settings.ConfigError, match="no such checkpoint"):
        checkpoint.load(folder / "absent", None)
