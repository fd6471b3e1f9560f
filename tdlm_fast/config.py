"""The settings of a run: YAML read into frozen dataclasses, with `key=value` overrides.

    load("configs/tiny.yaml", ["objective=autoregressive", "optim.lr=1e-3"]) -> Config

schema.py lists the keys. An error names the key and the fix. Nothing heavy is imported here, so a typing error is
reported before PyTorch loads.
"""

import dataclasses
import difflib
import hashlib
import json
import operator
import os
import re
import typing
from pathlib import Path

from .schema import (  # noqa: F401  also for those that import them from here
    CORPORA,
    LAYOUTS,
    LEARNED,
    SCHEDULES,
    SIZES,
    TOKENIZERS,
    Config,
    Data,
    Eval,
    Model,
    Noise,
    Optim,
    Run,
    Train,
    shape_of,
)  # fmt: skip


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the dotted key and the fix."""


class NonFinite(RuntimeError):
    """A loss, gradient or likelihood is not finite; the message names the place and the fix."""


def expanded(path: str) -> str:
    """Return a path with a leading ~ or ~USER replaced by the home folder.

    Raises ConfigError where there is no such home, or the path cannot be used.
    """
    if "\0" in path:
        raise ConfigError(f"{path!r} holds a null character, which no path can; remove it")
    if path.encode(errors="replace").decode() != path:  # the libraries that write checkpoints cannot open it
        raise ConfigError(f"{path!r} is not UTF-8; rename it")
    full = os.path.expanduser(path)
    if full.startswith("~"):
        home = path.partition("/")[0]
        raise ConfigError(f"{path}: there is no home folder {home}; write ./{path} for a file of that name")
    return full


SHAPE = tuple(shape_of(next(iter(SIZES))))  # the keys that model.size sets
LARGEST = 2**31 - 1  # of the whole numbers that options take, apart from seeds
MOST = {  # above these no run ends, or a number overflows
    "train.epochs": 10**6, "train.max_steps": 2**31, "train.batch_size": 2**24, "train.log_every": 2**31,
    "train.save_every": 2**31, "model.layers": 1000, "model.width": 2**20, "model.inner": 2**22, "eval.every": 2**31,
    "eval.samples": 2**31, "eval.max_samples": 2**31, "eval.batch_size": 2**24, "eval.probe": 2**24,
    "data.unique_tokens": 2**40, "eval.published": 10_000, "eval.text": 1000, "model.seq_len": 65536,
}  # fmt: skip
# names of the same keys in other trainers
OTHER_NAMES = {
    "learning_rate": "optim.lr", "d_model": "model.width", "hidden_size": "model.width", "n_embd": "model.width",
    "n_layer": "model.layers", "n_head": "model.heads", "block_size": "model.seq_len", "context": "model.seq_len",
    "dataset": "data.corpus", "batch": "train.batch_size", "steps": "train.max_steps",
}  # fmt: skip


def at_least(options, least: dict, hints: dict, prefix: str = "") -> None:
    """Raise ConfigError where one of the options is given but not finite, or below its limit in `least`."""
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and not low <= value < float("inf"):
            finite = " and finite" if isinstance(value, float) else ""
            option = f"{prefix}{name.replace('_', '-')}"
            raise ConfigError(f"{option} is {value}; it must be at least {low}{finite}{hints.get(name, '')}")
        if isinstance(value, int) and value > LARGEST and name != "seed":
            raise ConfigError(f"{prefix}{name.replace('_', '-')} is {value}; it must be at most {LARGEST:,}")


def listed_steps(text: str) -> set[int]:
    """Return the steps of eval.early or train.keep_at."""
    return {int(part) for part in text.split(",") if part.strip()}


def fields(cls: typing.Any = Config, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Return {dotted key: dataclass field}, with sections resolved."""
    out = {}
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.type):
            out |= fields(f.type, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = f
    return out


def flatten(config: Config) -> dict[str, object]:
    """Return {dotted key: value}."""
    return {key: operator.attrgetter(key)(config) for key in fields()}


def config_hash(config: Config) -> str:
    """Return a hash of the keys that decide the numbers: all except run.*, device, and the source of the text.

    The text has its own hash (Corpus.hash), so the same text read from another folder is the same run.
    """
    sources = ("device", "data.corpus", "data.path", "data.if_unreachable", "data.cache")
    deciding = {k: v for k, v in flatten(config).items() if not k.startswith("run.") and k not in sources}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def _nearest(key: str, known) -> str:
    tail = key.rpartition(".")[2]
    if tail in OTHER_NAMES:
        return f"; did you mean {OTHER_NAMES[tail]}?"
    tails = {k.rpartition(".")[2]: k for k in known}
    match = difflib.get_close_matches(key, known, 1, 0.5) or difflib.get_close_matches(tail, tails, 1, 0.5)
    return f"; did you mean {tails.get(match[0], match[0])}?" if match else "; --help lists the keys"


def _coerce(key: str, value, f: dataclasses.Field):
    """Return value as the field's type. YAML reads 3e-4 as a string, so strings are parsed by annotation."""
    kind = f.type
    try:
        if kind is bool:
            if isinstance(value, str):
                value = {"true": True, "false": False}[value.lower()]
            if not isinstance(value, bool):
                raise ValueError
        elif kind in (int, float):
            if isinstance(value, bool) or value is None:
                raise ValueError
            number = float(value)
            if number != number or abs(number) == float("inf") or (kind is int and number != int(number)):
                raise ValueError
            whole = isinstance(value, str) and kind is int and re.fullmatch("[+-]?[0-9]+", value.strip())
            value = int(number) if isinstance(value, str) and kind is int and not whole else kind(value)
        else:
            if isinstance(value, dict | list) or value is None:
                raise ValueError
            # YAML 1.1 reads a bare off or on as a truth value
            value = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        name = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}[kind]
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:80] + "…"
        raise ConfigError(f"{key} is {shown}; it must be {name}") from None
    if f.metadata["path"]:
        try:
            value = expanded(str(value))
        except ConfigError as e:
            raise ConfigError(f"{key}: {e}") from None
    choices = f.metadata["choices"]
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key} is {value!r}; it must be one of {', '.join(choices)}{hint}")
    return value


def checked_value(key: str, value, known: dict[str, dataclasses.Field]):
    """Return the value as the type of its key. Raises ConfigError where the key is unknown or the value wrong."""
    if any(k.startswith(key + ".") for k in known):
        raise ConfigError(f"{key} is a section; write its keys beneath it, as in {key}.KEY")
    if key not in known:
        raise ConfigError(f"unknown key {key if key and key.isprintable() else repr(key)}{_nearest(key, known)}")
    return _coerce(key, value, known[key])


def build(values: dict[str, object]) -> Config:
    """Return a Config from dotted keys; every other key keeps its default. Raises ConfigError."""
    known = fields()
    values = _sized(values, known)
    sections: dict[str, dict] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = checked_value(key, value, known)
    top = sections.pop("", {})
    kinds: dict[str, typing.Any] = {f.name: f.type for f in dataclasses.fields(Config)}
    config = Config(**top, **{name: kinds[name](**kw) for name, kw in sections.items()})
    _check(config)
    return config


def _sized(values: dict[str, object], known: dict[str, dataclasses.Field]) -> dict[str, object]:
    """Return the values with the keys that model.size sets. Raises ConfigError where one of them is given otherwise."""
    size = checked_value("model.size", values.get("model.size", ""), known)
    shape = shape_of(str(size)) if size else {}
    for key, value in shape.items():
        if key in values and checked_value(key, values[key], known) != value:
            fix = f"leave out {key}, or model.size"
            raise ConfigError(f"model.size={size} sets {key} to {value}, and {key} is given as {values[key]}; {fix}")
    return values | shape


def _check(c: Config) -> None:
    values: dict[str, typing.Any] = flatten(c)

    def need(ok: bool, message: str):
        if not ok:
            raise ConfigError(message)

    for key in (
        "model.layers", "model.width", "model.heads", "model.seq_len", "train.batch_size", "train.accumulation",
        "train.log_every", "eval.batch_size", "train.epochs", "model.norm_eps",
    ):  # fmt: skip
        need(values[key] > 0, f"{key} is {values[key]}; it must be greater than 0")
    for key in (
        "seed", "model.inner", "train.max_steps", "train.save_every", "optim.lr", "optim.min_lr",
        "optim.weight_decay", "optim.clip", "eval.every", "eval.text", "eval.target_stderr", "eval.published",
        "eval.probe", "optim.warmup_steps", "data.unique_tokens",
    ):  # fmt: skip
        need(values[key] >= 0, f"{key} is {values[key]}; it must not be negative")
    for key in ("eval.samples", "eval.max_samples"):
        need(values[key] >= 2, f"{key} is {values[key]}; it must be at least 2, as one draw shows no error")
    for key, most in MOST.items():
        need(values[key] <= most, f"{key} is {values[key]}; it must be at most {most:,}")
    for key in (
        "model.dropout", "optim.warmup", "optim.warmup_start", "optim.beta1", "optim.beta2", "optim.ema",
        "noise.input_masking",
    ):  # fmt: skip
        need(0 <= values[key] < 1, f"{key} is {values[key]}; it must lie in 0 <= {key} < 1")
    need(c.seed < 2**32, f"seed is {c.seed}; it must be less than 2^32")
    m, t = c.model, c.train
    need(m.width % m.heads == 0, f"model.width {m.width} is not divisible by model.heads {m.heads}")
    head, odd = m.width // m.heads, m.positions == "rope" and m.width // m.heads % 2
    need(not odd, f"model.width / model.heads is {head}; model.positions=rope needs it even")
    parts = f"train.accumulation {t.accumulation} does not divide train.batch_size {t.batch_size}"
    need(t.batch_size % t.accumulation == 0, parts)
    need(c.optim.min_lr <= c.optim.lr, f"optim.min_lr {c.optim.min_lr} is greater than optim.lr {c.optim.lr}")
    if c.objective == "diffusion":
        pairs = "noise.sampling=antithetic pairs sequences: train.batch_size / train.accumulation must be even"
        need(c.noise.sampling != "antithetic" or t.batch_size // t.accumulation % 2 == 0, pairs)
        way = "take noise.sampling=counts, or loss_weight=published or uniform"
        never = f"noise.sampling=exact never masks a whole row, so loss_weight=elbo would not be a bound; {way}"
        need(c.noise.sampling != "exact" or c.loss_weight != "elbo", never)
        other = "noise.input_masking is for objective=autoregressive; diffusion masks by noise.schedule"
        need(not c.noise.input_masking, other)
    else:
        other = f"loss_weight={c.loss_weight} is for objective=diffusion; autoregressive training weights every token"
        need(c.loss_weight == "elbo", f"{other} alike")
    _check_data(c.data)
    for key in ("eval.early", "train.keep_at"):
        whole = not values[key] or all(re.fullmatch("[0-9]+", part.strip()) for part in values[key].split(","))
        need(whole, f"{key} is {values[key]!r}; it must be steps, as 2,10,20,50")
    need(0 < c.optim.decay <= 1, f"optim.decay is {c.optim.decay}; it must lie in 0 < optim.decay <= 1")
    falling = "optim.schedule=cosine falls from the first step on, so no run branches into it; take optim.schedule=wsd"
    need(not t.branch_from or c.optim.schedule != "cosine", f"train.branch_from: {falling}")
    check_device(c.device)


def _check_data(data: Data) -> None:
    text, name, n = data.corpus, data.tokenizer, data.learned_tokens
    if not (data.path or text in CORPORA or "/" in text.strip("/")):
        known = f"{', '.join(CORPORA)}, or a dataset of the Hub as owner/name"
        raise ConfigError(f"data.corpus is {text!r}; it must be {known}")
    if name not in TOKENIZERS and not (n in LEARNED and name == f"bpe-{n}"):
        known = f"{', '.join(TOKENIZERS)}, or bpe-N with N from {LEARNED[0]} to {LEARNED[-1]}, as in bpe-4096"
        raise ConfigError(f"data.tokenizer is {name!r}; it must be {known}")
    if data.markov_order and (name, data.layout) != ("bytes", "packed"):
        fix = "take data.tokenizer=bytes and data.layout=packed, for which its entropy is known"
        raise ConfigError(f"data.corpus={text} is one line of letters; {fix}")


def check_device(name: str) -> None:
    """Raise ConfigError unless tdlm_fast runs on such a device. runs/device.py checks whether this machine has it."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", name):
        raise ConfigError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N")


def _shipped(path: Path) -> Path:
    """Return path, or where it begins with configs/ and is not here, the file of that name that is installed."""
    installed = Path(__file__).parent / path
    return installed if path.parts[:1] == ("configs",) and not path.exists() and installed.exists() else path


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Return the Config of a YAML file with `key=value` overrides. Raises ConfigError."""
    from .yaml_file import YamlError, read_settings  # loads yaml, which --help does not need

    path = _shipped(Path(expanded(str(path))))
    if (path / "config.yaml").is_file():
        fix = f"give {path / 'config.yaml'}, with run.dir={path} --resume to train that run further"
        raise ConfigError(f"{path} is a run folder and not a YAML file; {fix}")
    if path.is_dir():
        example = min(path.glob("*.yaml"), default="configs/tiny.yaml")
        raise ConfigError(f"{path} is a folder; give a YAML file, such as {example}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is a pipe or a device; write the settings to a file and give that")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; configs/tiny.yaml is one to begin with")
    known, values = fields(), {}
    try:
        for key, (value, line) in read_settings(path).items():
            try:
                values[key] = checked_value(key, value, known)
            except ConfigError as e:
                raise ConfigError(f"{path} line {line}: {e}") from None
    except YamlError as e:
        raise ConfigError(f"{path}: {e}") from None
    except OSError as e:
        raise ConfigError(f"{path} cannot be read ({e.strerror or e}); see its permissions and its disk") from None
    given: dict[str, object] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if any(k.startswith(key + ".") for k in known):
            raise ConfigError(f"{key} is a section; write {key}.KEY=value")
        if not equals:
            raise ConfigError(f"{override!r} is not an override; write key=value, as in optim.lr=1e-3")
        given[key.strip()] = value.strip()
    if given.get("model.size"):  # a size takes the place of the file's shape
        values = {k: v for k, v in values.items() if k not in SHAPE}
    elif given.keys() & set(SHAPE):  # and a shape that of the file's size
        values.pop("model.size", None)
    values |= given
    try:
        return build(values)
    except ConfigError as e:
        raise e if overrides else ConfigError(f"{path}: {e}") from None


def save(config: Config, path: Path) -> None:
    """Write the resolved config as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def describe() -> str:
    """Return all keys with their defaults and meanings, as --help prints them."""
    rows = []
    for key, f in fields().items():
        choices = f" ({' | '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
        default = f.default if f.default != "" else '""'
        rows.append(f"  {key + '=' + str(default):34} {f.metadata['meaning']}{choices}")
    return "\n".join(rows)
