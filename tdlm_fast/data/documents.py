"""Read one file into its documents, by the ending of its name.

    .jsonl .ndjson    a document a line, {"text": "…"}
    .csv .parquet     a document a row, in the column text
    .json             a list of {"text": "…"} or of strings
    anything else     plain text, one document

Markup of a table is never text: what cannot be read as documents is an error that names the way out.
"""

import codecs
import csv
import io
import json
import sys
from pathlib import Path

from ..config import ConfigError

TEXTS = (".txt", ".text", ".md", ".jsonl", ".tokens", ".raw")
TABLES = (".csv", ".parquet", ".json", ".ndjson")  # read from a folder only in the place of text
OTHERS = (".tsv", ".tab", ".arrow", ".feather", ".orc", ".avro", ".xls", ".xlsx", ".ods", ".xml")
OTHERS += (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz", ".rar", ".pdf", ".doc", ".docx", ".odt")
OTHERS += (".epub", ".rtf", ".npy", ".npz", ".pt", ".pkl", ".safetensors", ".db", ".sqlite")


def lines(text: str) -> list[str]:
    """Return the lines of a text with their ends. Only a line feed ends a line, not U+2028, U+0085 or a form feed."""
    return io.StringIO(text, newline="\n").readlines()


def documents(file: Path) -> list[str]:
    """Return the documents of a file. Raises ConfigError, which names the file and the place in it."""
    kind = file.suffix.lower()
    if kind in OTHERS:
        way = 'convert it to .txt, to .csv with a column text, or to .jsonl with a line {"text": "…"} per document'
        raise ConfigError(f"data.path: {file} is a {kind} file, which is not read as text; {way}")
    if kind == ".parquet":
        return _parquet(file)
    try:
        with open(file, encoding="utf-8-sig", newline="" if kind == ".csv" else None) as f:
            text = f.read()
    except UnicodeDecodeError as e:
        wide = e.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        way = f"convert it, as by: iconv -f {'utf-16' if wide else 'latin1'} -t utf-8 {file}"
        raise ConfigError(f"data.path: {file} cannot be read as UTF-8 text ({e}); {way}") from None
    except OSError as e:
        raise ConfigError(
            f"data.path: {file} cannot be read ({e.strerror}); see its permissions and its disk"
        ) from None
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".json": _json}
    return readers[kind](file, text) if kind in readers else [text]


def _whole(document) -> str:
    """Return the document. Raises TypeError where it is not text, ValueError where UTF-8 cannot hold it."""
    if not isinstance(document, str):
        raise TypeError
    document.encode()
    return document


def _half(e: UnicodeEncodeError) -> str:
    return f"holds {e.object[e.start]!a}, half of a surrogate pair, which is no character; remove it"


def _jsonl(file: Path, text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # a JSON string may hold other line ends
        if line.strip():
            try:
                found.append(_whole(json.loads(line)["text"]))
            except UnicodeEncodeError as e:
                raise ConfigError(f"data.path: {file} line {number} {_half(e)}") from None
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ConfigError(f'data.path: {file} line {number} is not {{"text": "…"}}') from None
    return found


def _json(file: Path, text: str) -> list[str]:
    form = 'one list, of {"text": "…"} or of strings'
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as e:
        why = f"{e}; a file with an object per line must end in .jsonl"
        raise ConfigError(f"data.path: {file} is not JSON of {form} ({why})") from None
    if not isinstance(rows, list):
        raise ConfigError(f"data.path: {file} holds {type(rows).__name__}; a .json file must be {form}")
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_whole(row if isinstance(row, str) else row["text"]))
        except UnicodeEncodeError as e:
            raise ConfigError(f"data.path: {file}: element {number} {_half(e)}") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"data.path: {file}: element {number} is not text; the file must be {form}") from None
    return found


def _column(file: Path, names: list) -> int:
    """Return the place of the column text. Raises ConfigError unless there is exactly one."""
    if names.count("text") != 1:
        listed = ", ".join(map(str, names))[:200]
        raise ConfigError(f"data.path: {file} has the columns {listed}; exactly one must be named text")
    return names.index("text")


def _csv(file: Path, text: str) -> list[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses documents of 128 KiB
    rows, before = csv.reader(io.StringIO(text, newline=""), strict=True), 0  # before: the last line of the row before
    try:
        names = next(rows, [])
        place, found = _column(file, names), []
        before = rows.line_num
        for row in rows:
            if row:  # a blank line
                if len(row) != len(names):
                    raise csv.Error(f"{len(row)} fields, not {len(names)}")
                found.append(row[place])
            before = rows.line_num
    except csv.Error as e:
        where = f"line {rows.line_num}"
        if rows.line_num > before + 1:  # as where a quote is never closed
            where += f" is in a row that begins in line {before + 1}, and"
        raise ConfigError(f"data.path: {file} {where} is not CSV ({e})") from None
    return found


def _parquet(file: Path) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(f"data.path: {file} needs the package pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(file) as table:
            _column(file, table.schema_arrow.names)
            column = table.read(columns=["text"]).column(0).to_pylist()
        return [_whole("" if document is None else document) for document in column]
    except TypeError:
        raise ConfigError(f"data.path: {file}: the column text does not hold text") from None
    except (OSError, ValueError, pyarrow.ArrowException) as e:
        if isinstance(e, ConfigError):
            raise
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise ConfigError(f"data.path: {file} cannot be read as parquet ({why})") from None
