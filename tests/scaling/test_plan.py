"""A plan expands to cells whose names do not change when it grows."""

import pytest

from tdlm_fast.config import ConfigError
from tdlm_fast.scaling import plan


def test_a_grid_has_a_cell_for_every_point(plan_file):
    cells = plan.read(plan_file)
    assert [(c.unique_tokens, c.arm) for c in cells] == [(u, a) for u in (256, 512) for a in ("diffusion", "plain")]
    assert all(c.config.train.epochs == 4 and c.config.seed == 1 and c.config.model.width == 16 for c in cells)
    assert [c.config.objective for c in cells[:2]] == ["diffusion", "autoregressive"]
    assert cells[0].config.eval.early == "10" and cells[0].config.eval.text == 0
    assert len({c.name for c in cells}) == 4


def test_a_length_in_steps_of_the_base_does_not_replace_the_epochs(plan_file, tmp_path):
    (tmp_path / "base.yaml").write_text("train: {max_steps: 2000}\n")
    plan_file.write_text(plan_file.read_text().replace("configs/tiny.yaml", "base.yaml"))
    assert all(c.config.train.max_steps == 0 and c.config.train.epochs == 4 for c in plan.read(plan_file))


def test_a_plan_that_grows_keeps_its_cells_and_their_folder_reads_back(plan_file, tmp_path):
    before = plan.read(plan_file)
    plan_file.write_text(plan_file.read_text().replace("[256, 512]", "[256, 384, 512]").replace("[1]", "[1, 2]"))
    after = plan.read(plan_file)
    assert len(after) == 12 and {c.name for c in before} < {c.name for c in after}
    plan.store(after, tmp_path / "out")
    assert plan.stored(tmp_path / "out") == after


def test_sizes_set_the_shape(plan_file):
    text = plan_file.read_text().replace("  model: {layers: 1, width: 16, heads: 2, inner: 16, seq_len: 16}\n", "")
    plan_file.write_text(text.replace("cells:\n", "cells:\n  sizes: [0.1M, 0.75M]\n"))
    assert [c.config.model.width for c in plan.read(plan_file)] == [64] * 4 + [128] * 4


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("epochs: [4]", "epochs: [x]", "cells.epochs is"),
        ("  epochs:", "  epoch:", "unknown key cells.epoch; a plan has base"),
        ("base: configs/tiny.yaml", "", "base is missing"),
        ("base: configs/tiny.yaml", "base: nowhere.yaml", "nowhere.yaml: no such file"),
        ("{objective: autoregressive}", "{objective: diffusion}", "have the same settings"),
        ("{objective: autoregressive}", "{objective: other}", "objective is 'other'"),
        ("lr: 1e-2", "rate: 1e-2", "unknown key optim.rate"),
        ("device: cpu", "train.max_steps: 4", "keys.train.max_steps is set for every cell by cells.epochs"),
        ("{objective: autoregressive}", "{seed: 5}", "cells.arms.plain.seed is set for every cell by cells.seeds"),
    ],
)
def test_an_error_names_the_file_and_the_key(plan_file, old, new, says):
    plan_file.write_text(plan_file.read_text().replace(old, new))
    with pytest.raises(ConfigError) as e:
        plan.read(plan_file)
    assert str(e.value).startswith(str(plan_file)) and says in str(e.value)


def test_a_folder_without_a_sweep_or_with_a_changed_config_is_named(plan_file, tmp_path):
    with pytest.raises(ConfigError, match="holds no sweep; start one with"):
        plan.stored(tmp_path)
    cells = plan.read(plan_file)
    plan.store(cells, tmp_path)
    file = tmp_path / "configs" / f"{cells[0].name}.yaml"
    file.write_text(file.read_text().replace("seed: 1", "seed: 3"))
    with pytest.raises(ConfigError, match=f"the config of cell {cells[0].name} was changed"):
        plan.stored(tmp_path)
