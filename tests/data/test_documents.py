"""Files of every format, read into documents or refused by name."""

import json
import sys

import pytest

from tdlm_fast.config import ConfigError
from tdlm_fast.data.documents import OTHERS, documents

DOCUMENTS = ["plain", "two\nlines, and a comma", 'a "quoted" word', "", "naïve 语言 \u2028 🙂", "x" * 200_000]


def in_csv(texts, end="\n"):
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    return end.join(["id,text", *(f"{i},{cell}" for i, cell in enumerate(cells))]) + end


def write(path, name, content):
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path / name


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", "\n\n".join(json.dumps({"id": 1, "text": d}, ensure_ascii=False) for d in DOCUMENTS)),
        ("a.NDJSON", "\r\n".join(json.dumps({"text": d}) for d in DOCUMENTS)),
        ("a.csv", in_csv(DOCUMENTS)),
        ("a.CSV", in_csv(DOCUMENTS, "\r\n")),
        ("bom.csv", b"\xef\xbb\xbf" + in_csv(DOCUMENTS).encode()),
        ("a.json", json.dumps([{"text": d} for d in DOCUMENTS], indent=2)),
        ("a.json", json.dumps(DOCUMENTS)),
    ],
)
def test_each_format_gives_the_same_documents(tmp_path, name, content):
    assert documents(write(tmp_path, name, content)) == DOCUMENTS


def test_parquet_gives_its_column_text(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": range(7), "text": [*DOCUMENTS, None]}), file)
    assert documents(file) == [*DOCUMENTS, ""]
    parquet.write_table(pa.table({"story": DOCUMENTS}), file)
    with pytest.raises(ConfigError, match=f"{file} has the columns story; exactly one must be named text"):
        documents(file)
    parquet.write_table(pa.table({"text": [1, 2]}), file)
    with pytest.raises(ConfigError, match="the column text does not hold text"):
        documents(file)
    file.write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(ConfigError, match=f"{file} cannot be read as parquet"):
        documents(file)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a", "a.jsonl.txt"])
def test_other_files_are_plain_text(tmp_path, name):
    assert documents(write(tmp_path, name, 'id,text\r\n1,"a"\n')) == ['id,text\n1,"a"\n']


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", "id,story\n1,a\n", "has the columns id, story; exactly one must be named text"),
        ("a.csv", "text,text\na,b\n", "has the columns text, text"),
        ("a.csv", "", "has the columns ; exactly"),
        ("a.csv", "text,id\na,1\nb\n", r"line 3 is not CSV \(1 fields, not 2\)"),
        ("a.csv", "text\na, b\n", "line 2 is not CSV"),
        ("a.csv", 'text\n"a\nb\n', "line 3 is in a row that begins in line 2, and is not CSV"),
        ("a.csv", 'text\n"a\nb"\n\n"c\nd\n', "line 6 is in a row that begins in line 5, and is not CSV"),
        ("a.csv", b"text\n\xff\n", "cannot be read as UTF-8 text .*; convert it, as by: iconv"),
        ("a.txt", "text".encode("utf-16"), "convert it, as by: iconv -f utf-16 -t utf-8"),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', "must end in .jsonl"),
        ("a.json", '{"text": "a"}', "holds dict; a .json file must be one list"),
        ("a.json", '["a", {"story": "b"}]', "element 2 is not text"),
        ("a.json", '["\\ud800"]', r"element 1 holds '\\ud800', half of a surrogate pair, .*; remove it"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\udc00 b"}', r"line 2 holds '\\udc00', half of a surrogate pair"),
        ("a.json", "[1]", "element 1 is not text"),
        ("a.json", "[" * 100_000, "is not JSON of one list"),
        ("a.jsonl", "[" * 100_000, "line 1 is not"),
        ("a.jsonl", '{"text": null}', "line 1 is not"),
        *((f"a{kind}", "a\tb\n", f"is a {kind} file, which is not read as text; convert it") for kind in OTHERS),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_not_documents_is_named_with_the_way_out(tmp_path, name, content, says):
    file = write(tmp_path, name, content)
    with pytest.raises(ConfigError, match=says) as e:
        documents(file)
    assert str(file) in str(e.value) and "\n" not in str(e.value)


def test_without_pyarrow_a_parquet_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        documents(write(tmp_path, "a.parquet", b""))
