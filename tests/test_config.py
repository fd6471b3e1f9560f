"""Settings: overrides, types, and errors that name the key."""

import os
import subprocess
import sys
import types

import pytest

from tdlm_fast import config
from tdlm_fast.kernels import corrupt, schedules

TINY = "configs/tiny.yaml"


def test_overrides_are_read_by_the_type_of_the_field():
    c = config.load(TINY, ["optim.lr=1e-3", "model.tied=true", "train.epochs=1", "run.wandb=off"])
    assert (c.optim.lr, c.model.tied, c.train.epochs, c.run.wandb) == (1e-3, True, 1.0, "off")


@pytest.mark.parametrize(
    "override, says",
    [
        ("optm.lr=3", "unknown key optm.lr; did you mean optim.lr?"),
        ("lr=3", "did you mean optim.lr?"),
        ("seed=x", "seed is 'x'; it must be a whole number"),
        ("optim.lr=nan", "optim.lr is 'nan'; it must be a finite number"),
        ("model.heads=5", "model.width 64 is not divisible by model.heads 5"),
        ("noise.schedule=lineer", "did you mean linear?"),
        ("model=3", "model is a section"),
        ("train.accumulation=3", "train.accumulation 3 does not divide train.batch_size 64"),
        ("nothing", "write key=value"),
        ("optim.learning_rate=1", "did you mean optim.lr?"),
        ("eval.max_samples=1", "eval.max_samples is 1; it must be at least 2, as one draw shows no error"),
        ("eval.early=²", "eval.early is '²'; it must be steps"),
        ("train.max_steps=1e30", "it must be at most"),
        ("data.corpus=", "data.corpus is ''; it must be wikitext-2"),
        ("data.corpus=wikitxt-2", "or a dataset of the Hub as owner/name"),
    ],
)
def test_an_error_names_the_key_and_the_fix(override, says):
    with pytest.raises(config.ConfigError) as error:
        config.load(TINY, [override])
    assert says in str(error.value)


def test_a_saved_config_reads_back_equal(tmp_path):
    c = config.load(TINY, ["objective=autoregressive", "seed=7"])
    config.save(c, tmp_path / "c.yaml")
    assert config.load(tmp_path / "c.yaml") == c


def test_the_hash_is_of_what_decides_the_numbers():
    def digest(*overrides):
        return config.config_hash(config.load(TINY, overrides))

    assert digest() == digest("data.path=elsewhere", "run.dir=x", "device=cpu", "data.cache=y", "data.corpus=sotu")
    assert len({digest(), digest("seed=1"), digest("optim.lr=1"), digest("data.layout=packed")}) == 4


@pytest.mark.parametrize("name", ["tiny", "small", "base", "published"])
def test_shipped_configs_load(name):
    assert config.load(f"configs/{name}.yaml").model.layers > 1


def test_choices_are_those_of_the_kernels():
    assert config.SCHEDULES == schedules.SCHEDULES
    assert config.fields()["noise.sampling"].metadata["choices"] == corrupt.__globals__["SAMPLINGS"]


def test_a_typing_error_is_reported_before_torch_loads():
    code = "import sys, tdlm_fast.config as c; c.load('configs/tiny.yaml'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_only_diffusion_reads_binds_only_diffusion():
    odd = ["noise.sampling=antithetic", "train.batch_size=3"]
    with pytest.raises(config.ConfigError, match="train.batch_size / train.accumulation must be even"):
        config.load(TINY, odd)
    assert config.load(TINY, [*odd, "objective=autoregressive"]).train.batch_size == 3
    with pytest.raises(config.ConfigError, match="loss_weight=uniform is for objective=diffusion"):
        config.load(TINY, ["objective=autoregressive", "loss_weight=uniform"])


def test_exact_masks_need_a_weight_that_is_not_a_bound():
    keys = ["noise.sampling=exact"]
    for weight in ("published", "uniform"):
        assert config.load(TINY, [*keys, f"loss_weight={weight}"]).noise.sampling == "exact"
    with pytest.raises(config.ConfigError, match="take noise.sampling=counts, or loss_weight=published or uniform"):
        config.load(TINY, keys)
    assert config.load(TINY, [*keys, "objective=autoregressive"]).loss_weight == "elbo"


@pytest.mark.parametrize(
    "override, message",
    [
        ("noise.input_masking=0.1", "noise.input_masking is for objective=autoregressive"),
        ("noise.input_masking=1", "noise.input_masking is 1.0"),
        ("eval.early=2,x", "eval.early is '2,x'; it must be steps"),
        ("eval.probe=-1", "eval.probe is -1"),
        ("train.keep_at=2,x", "train.keep_at is '2,x'; it must be steps"),
        ("optim.decay=0", "optim.decay is 0.0; it must lie in"),
        ("train.branch_from=runs/a", "train.branch_from: optim.schedule=cosine falls from the first step on"),
        ("optim.warmup_start=1", "optim.warmup_start is 1.0; it must lie in"),
        ("optim.warmup_steps=-1", "optim.warmup_steps is -1; it must not be negative"),
        ("model.norm_eps=0", "model.norm_eps is 0.0; it must be greater than 0"),
        ("data.path=a\0b", "data.path: .* holds a null character"),
        ("run.dir=bad\udcff", r"run.dir: 'bad\\udcff' is not UTF-8; rename it"),
        ("seed=99999999999999999999", "seed is 99999999999999999999; it must be less"),
    ],
)
def test_keys_that_cannot_be_are_named(override, message):
    with pytest.raises(config.ConfigError, match=message):
        config.load("configs/tiny.yaml", [override])


def test_whole_numbers_are_taken_as_they_are_written():
    assert config.load(TINY, ["train.max_steps=1e3", "seed=+7"]).train.max_steps == 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_instead_of_a_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(config.ConfigError, match="pipe is a pipe or a device; write the settings to a file"):
        config.load(tmp_path / "pipe")


def test_listed_steps():
    assert config.listed_steps(config.load("configs/tiny.yaml", ["eval.early=2, 10,50"]).eval.early) == {2, 10, 50}
    assert config.listed_steps(config.load("configs/tiny.yaml").train.keep_at) == set()


def test_a_folder_instead_of_a_file_is_named_with_a_file_to_give(tmp_path):
    with pytest.raises(config.ConfigError, match="^configs is a folder; give a YAML file, such as configs/base.yaml$"):
        config.load("configs")
    with pytest.raises(config.ConfigError, match=f"^{tmp_path} is a folder; give a YAML file, such as configs/tiny.y"):
        config.load(tmp_path)
    config.save(config.load(TINY), tmp_path / "config.yaml")
    message = f"is a run folder and not a YAML file; give {tmp_path}/config.yaml, with run.dir={tmp_path} --resume"
    with pytest.raises(config.ConfigError, match=message):
        config.load(tmp_path)


@pytest.mark.parametrize(
    "text, says",
    [
        ("seed: 1\noptm: {lr: 3}\n", "line 2: unknown key optm.lr; did you mean optim.lr?"),
        ("train:\n  epochs: many\n", "line 2: train.epochs is 'many'; it must be a finite number"),
        ("train: 3\n", "line 1: train is a section"),
        ('"se\\ned": 3\n', "line 1: unknown key 'se\\ned'"),
        (f"seed: [{', '.join(['1'] * 500)}]\n", "line 1: seed is [1, 1"),
        ("model: {width: 30}\n", "model.width 30 is not divisible by model.heads 4"),
    ],
)
def test_an_error_in_a_file_names_the_file(tmp_path, text, says):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(config.ConfigError) as e:
        config.load(tmp_path / "config.yaml")
    message = str(e.value)
    assert message.startswith(f"{tmp_path / 'config.yaml'}") and says in message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("key", ["data.path", "data.cache", "run.dir"])
def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(tmp_path, monkeypatch, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    section, name = key.split(".")
    (tmp_path / "c.yaml").write_text(f"{section}: {{{name}: ~/a/b}}\n")
    for c in (config.load("~/c.yaml"), config.load(TINY, [f"{key}=~/a/b"])):
        assert config.flatten(c)[key] == f"{tmp_path}/a/b"
        config.save(c, tmp_path / "saved.yaml")
        assert config.load(tmp_path / "saved.yaml") == c
    kept = {value: config.flatten(config.load(TINY, [f"{key}={value}"]))[key] for value in ("./~/a", "a/~", "/~", "a~")}
    assert all(value == key for key, value in kept.items())
    assert config.flatten(config.load(TINY, [f"{key}=~"]))[key] == str(tmp_path)
    with pytest.raises(
        config.ConfigError, match=f"^{key}: ~no-such-user/a: there is no home folder ~no-such-user; wri"
    ):
        config.load(TINY, [f"{key}=~no-such-user/a"])
    assert config.load(TINY, ["data.corpus=~/name"]).data.corpus == "~/name"  # not a path


@pytest.mark.parametrize("key", config.MOST)
def test_a_size_that_no_run_can_have_is_refused(key):
    most = config.MOST[key]
    with pytest.raises(config.ConfigError, match=f"{key} is .*; it must be at most {most:,}"):
        config.load("configs/tiny.yaml", [f"{key}={2 * most}"])


def test_options_have_a_largest_number_and_seeds_not():
    options = types.SimpleNamespace(draws=2**31, seed=2**40)
    config.at_least(options, {"seed": 0}, {})
    with pytest.raises(config.ConfigError, match="--draws is 2147483648; it must be at most 2,147,483,647"):
        config.at_least(options, {"draws": 1}, {}, "--")
