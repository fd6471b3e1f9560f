"""tokenizer.json of a run: what reads a run needs it, and another one is refused."""

import json
import math
import shutil

import pytest

from tdlm_fast import evaluate, export, sample, table, train
from tdlm_fast.data import bpe
from tdlm_fast.runs import files, load, vocabulary

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install tdlm_fast[bpe,export]")
pytest.importorskip("gguf", reason="needs gguf: pip install tdlm_fast[export]")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def learned(corpus, tmp_path_factory):
    """The folder and the keys of a finished run of bpe-270, two steps."""
    folder = tmp_path_factory.mktemp("bpe")
    keys = [
        "configs/tiny.yaml", f"data.path={corpus}", "data.tokenizer=bpe-270", f"data.cache={folder / 'cache'}",
        "model.width=16", "model.inner=16", "model.heads=2", "model.layers=1", "model.seq_len=24",
        "train.batch_size=8", "train.max_steps=2", "train.save_every=1", "eval.samples=2", "eval.max_samples=2",
        "eval.published=0", "eval.probe=0", "eval.text=0", "device=cpu",
    ]  # fmt: skip
    assert train.main([*keys, f"run.dir={folder / 'run'}"]) == 0
    return folder / "run", keys


def held(file):
    return json.loads(file.read_text())


@pytest.fixture
def run(learned, tmp_path):
    """A copy of it whose training is not finished: its last evaluation is to be made again."""
    shutil.copytree(learned[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run", [*learned[1], f"run.dir={tmp_path / 'run'}", "--resume"]


def test_every_reader_of_a_run_has_its_tokens(learned, tmp_path, capsys):
    folder, _ = learned
    config, tokenizer, model, state = load.load_run(folder)
    assert tokenizer.tokens() == [bytes.fromhex(t) for t in held(folder / "tokenizer.json")["tokens"]]
    assert tokenizer.hash == state["tokenizer_hash"] == held(folder / "summary.json")["tokenizer_hash"]
    assert model.mask_token_id == 271 and len(tokenizer.token_bytes()) == 271
    shutil.rmtree(config.data.cache)
    for verb, arguments in (
        (sample, ["--tokens", "8", "--prompt", "the mill"]), (evaluate, []), (table, ["--sequences", "4"]),
        (export, ["--to", "hf", "--out", str(tmp_path / "hf")]),
        (export, ["--to", "gguf", "--out", str(tmp_path / "gguf")]),
    ):  # fmt: skip
        assert verb.main([str(folder), *arguments]) == 0, capsys.readouterr()
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    text = "the miller sleeps, naïve"
    assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
    score = held(folder / "summary.json")["test"]
    test = load.trained_text(folder, config, state).splits["test"]
    assert score["bits_per_byte"] == pytest.approx(score["nats_per_token"] * test.scored / test.bytes / math.log(2))


def test_a_run_resumes_with_its_own_tokens_and_no_others(run, learned, capsys):
    folder, keys = run
    assert train.main(keys) == 0
    assert held(folder / "summary.json")["test"] == held(learned[0] / "summary.json")["test"]
    (folder / "summary.json").unlink()
    tokens = held(folder / "tokenizer.json")["tokens"]
    files.write_figures(folder / "tokenizer.json", {"tokens": [*tokens[:-1], b"other".hex()]})
    assert train.main(keys) == 2
    assert "belongs to another run (of other tokens than tokenizer.json holds)" in capsys.readouterr().err
    assert sample.main([str(folder)]) == 2
    assert "of other tokens than tokenizer.json holds" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    assert sample.main([str(folder)]) == 2 and "tokenizer.json is missing" in capsys.readouterr().err
    assert train.main(keys) == 0 and held(folder / "tokenizer.json")["tokens"] == tokens


@pytest.mark.parametrize("damage", [
    lambda text: text[:-50], lambda text: text.replace("a", "b", 1), lambda text: '{"tokens": ["61"]}',
    lambda text: '{"tokens": [1]}', lambda text: '{"tokens": 7}', lambda text: "{}",
])  # fmt: skip
def test_a_damaged_file_is_named(run, damage, capsys):
    folder, keys = run
    file = folder / "tokenizer.json"
    file.write_text(damage(file.read_text()))
    for verb, arguments in ((train, keys), (sample, [str(folder)])):
        assert verb.main(arguments) == 2
        error = capsys.readouterr().err
        assert "tokenizer.json" in error and "restore a copy of it" in error


def test_a_finished_run_is_not_resumed_with_other_tokens(run, capsys):
    folder, keys = run
    assert train.main(keys) == 0 and train.main(keys) == 0
    capsys.readouterr()
    tokens = held(folder / "tokenizer.json")["tokens"]
    files.write_figures(folder / "tokenizer.json", {"tokens": [*tokens[:-1], b"other".hex()]})
    assert train.main(keys) == 2 and "holds other tokens than the run learned" in capsys.readouterr().err


def test_a_branch_of_other_tokens_is_refused(learned, tmp_path, monkeypatch, capsys):
    folder, keys = learned
    learn = bpe.learn
    monkeypatch.setattr(bpe, "learn", lambda text, n: [*learn(text, n)[:-1], b"other"])
    keys = [*keys, f"data.cache={tmp_path / 'cache'}", f"run.dir={tmp_path / 'branch'}", f"train.branch_from={folder}"]
    assert train.main([*keys, "optim.schedule=wsd", "train.max_steps=20"]) == 2
    assert "of other tokens than tokenizer.json holds" in capsys.readouterr().err


def test_fixed_tokenizers_have_no_file(trained):
    folder, _ = trained
    assert not (folder / "tokenizer.json").exists()
    config, _, _, _ = load.load_run(folder)
    assert vocabulary.kept(folder, config) is None
