"""The keys of a config."""

import pytest

from tdlm_fast import config
from tdlm_fast.model import Model
from tdlm_fast.schema import SIZES, Optim, shape_of

TINY = "configs/tiny.yaml"


@pytest.mark.parametrize("decay, begins", [(0.15, 85), (1.0, 0), (0.001, 99), (0.5, 50)])
def test_the_decay_takes_its_share_at_the_end_and_one_step_at_least(decay, begins):
    assert Optim(decay=decay).decay_begins(100) == begins


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_the_number_of_parameters_of_the_blocks(size):
    shape = config.build({"model.size": size}).model
    if shape.width <= 384:  # larger ones take seconds to draw
        blocks = Model(shape, vocab=2).count_by_part()["blocks"]
    else:
        blocks = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.inner + 2 * shape.width)
    assert blocks / 1e6 == pytest.approx(float(size[:-1]), rel=0.07 if size == "0.1M" else 0.02)
    assert (shape.layers, shape.width, shape.heads) == SIZES[size] and shape.inner % 64 == 0


def test_the_smallest_size_is_the_published_model():
    published = config.flatten(config.load(TINY))
    assert {k: published[k] for k in shape_of("0.1M")} == shape_of("0.1M")


def test_a_size_replaces_the_shape_of_a_file_and_a_shape_its_size(tmp_path):
    sized = config.load(TINY, ["model.size=0.75M"])
    assert (sized.model.layers, sized.model.width) == (4, 128)
    config.save(sized, tmp_path / "c.yaml")
    assert config.load(tmp_path / "c.yaml") == sized
    assert config.load(tmp_path / "c.yaml", ["model.width=64", "model.heads=2"]).model.size == ""
    with pytest.raises(config.ConfigError, match="model.size=0.75M sets model.width to 128, and model.width is given"):
        config.load(TINY, ["model.size=0.75M", "model.width=64"])
    with pytest.raises(config.ConfigError, match="model.size is '1M'; it must be one of"):
        config.load(TINY, ["model.size=1M"])
