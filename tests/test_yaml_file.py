"""A YAML file of settings: every key counts once, and no file ends in a traceback or takes long."""

import pytest
import yaml

from tdlm_fast import config
from tdlm_fast.yaml_file import YamlError, read_settings


def of(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    "text, key, second, first",
    [
        ("seed: 1\nseed: 2\n", "seed", 2, 1),
        ("seed: 1\nseed: 1\n", "seed", 2, 1),
        ("seed: 1\n'seed': 2\n", "seed", 2, 1),
        ("noise: {schedule: linear}\ntrain: {epochs: 1}\nnoise: {sampling: counts}\n", "noise", 3, 1),
        ("train:\n  epochs: 1\n  log_every: 2\n  epochs: 3\n", "train.epochs", 4, 2),
        ("train: {epochs: 1, epochs: 2}\n", "train.epochs", 1, 1),
        ("train:\n  epochs: 1\ntrain.epochs: 2\n", "train.epochs", 3, 2),
        ("train.epochs: 2\ntrain: {epochs: 1}\n", "train.epochs", 2, 1),
        ("train:\nseed: 1\ntrain: {epochs: 1}\n", "train", 3, 1),
        ("noise: &n {schedule: linear}\ntrain: {<<: *n,\n  <<: *n}\n", "train.<<", 3, 2),
        ("noise: &n {schedule: linear, schedule: cosine}\n", "noise.schedule", 1, 1),
        ("seed: [{a: 1,\n a: 2}]\n", "a", 2, 1),
    ],
)
@pytest.mark.parametrize("run", [False, True])
def test_a_key_written_twice_is_refused_with_both_lines(tmp_path, text, key, second, first, run):
    file = of(tmp_path, text)
    if run:
        file = file.rename(tmp_path / "config.yaml")
    with pytest.raises(config.ConfigError) as e:
        config.load(file, ["seed=3"])
    assert (
        str(e.value) == f"{file}: line {second}: {key} is written twice, first in line {first}; remove one of the two"
    )


def test_a_merge_is_not_a_second_key(tmp_path):
    text = "train: &t {batch_size: 8, epochs: 2}\neval:\n  <<: *t\n  batch_size: 4\nx: {<<: [*t, {epochs: 9, z: 1}]}\n"
    values = {key: value for key, (value, _) in read_settings(of(tmp_path, text)).items()}
    assert values == {
        "train.batch_size": 8, "train.epochs": 2, "eval.epochs": 2, "eval.batch_size": 4,
        "x.epochs": 2, "x.batch_size": 8, "x.z": 1,
    }  # fmt: skip
    plain = {"a": {"b": 1, "c": {"d": None, "e": [1, {"f": 2.5}]}}, "g": True}
    values = read_settings(of(tmp_path, yaml.safe_dump(plain)))
    assert values == {"a.b": (1, 2), "a.c.d": (None, 4), "a.c.e": ([1, {"f": 2.5}], 5), "g": (True, 8)}
    assert read_settings(of(tmp_path, "# nothing\n")) == read_settings(of(tmp_path, "")) == {}


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30))
SECTIONS = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 30))


@pytest.mark.parametrize(
    "text, says",
    [
        ("seed: 1\ntrain:\n  epochs: 2026-13-45\n", "line 3: '2026-13-45' is not a valid timestamp"),
        ("seed: 2026-01-01 25:00:00\n", "line 1: '2026-01-01 25:00:00' is not a valid timestamp"),
        ("seed: 0x_\n", "line 1: '0x_' is not a valid int"),
        ("seed: !!int x\n", "line 1: 'x' is not a valid int"),
        ("seed: !!bool x\n", "line 1: 'x' is not a valid bool"),
        ("seed: !!float ''\n", "line 1: '' is not a valid float"),
        ("seed: !!timestamp x\n", "line 1: 'x' is not a valid timestamp"),
        (f"seed: {'9' * 5000}\n", "…' is not a valid int"),
        ("seed: !!python/object:os.system x\n", "could not determine a constructor"),
        ("train: !!python/dict {a: 1}\n", "the tag tag:yaml.org,2002:python/dict is not used"),
        ("seed: !!set {a, b}\n", "is not used in settings"),
        ("seed:\n\t- 1\n", "it is not YAML"),
        ("\tseed: 1\n", "it is not YAML"),
        ('seed: "\\UFFFFFFFF"\n', "it is not YAML"),
        ("%YAML 9\nseed: 1\n", "it is not YAML"),
        ("seed: 1\0\n", "it is not YAML"),
        (b"seed: \xff\n", "it is not YAML"),
        ("seed: *a\n", "undefined alias"),
        ("a: 1\n---\nb: 2\n", "it is not YAML"),
        ("? [a]\n: 1\n", "line 1: a key must be text"),
        ("[1, 2]\n", "line 1 holds a list, not keys and values"),
        ("text\n", "line 1 holds a single value, not keys and values"),
        ("train: {<<: 3}\n", "line 1: << must merge mappings"),
        ("seed: " + "[" * 100_000, "line 1 is nested more than 50 deep"),
        ("{seed: " * 100_000, "line 1 is nested more than 50 deep"),
        ("- " * 100_000, "line 1 is nested more than 50 deep"),
        ("seed: &a [*a]\n", "nested more than 50 deep"),
        ("train: &a {<<: *a}\n", "nested more than 50 deep"),
        ("train: &a {train: *a}\n", "nested more than 50 deep"),
        (BOMB, "holds more than 10,000 values"),
        (MERGES, "holds more than 10,000 values"),
        (SECTIONS, "holds more than 10,000 values"),
        ("".join(f"k{i}: 1\n" for i in range(20_000)), "holds more than 10,000 values"),
        (b"#" * (1 << 21), "it holds more than 1,048,576 bytes"),
    ],
    ids=lambda value: repr(value[:16]),
)
def test_what_cannot_be_read_is_one_line_that_names_the_file(tmp_path, text, says):
    file = of(tmp_path, text)
    with pytest.raises(config.ConfigError) as e:
        config.load(file)
    message = str(e.value)
    assert message.startswith(str(file)) and says in message and "\n" not in message and len(message) < 500


def test_limits_are_those_of_a_file_alone(tmp_path):
    with pytest.raises(YamlError, match="^line 1: 'x' is not a valid int; put it in quotes, or correct it$"):
        read_settings(of(tmp_path, "seed: !!int x"))
