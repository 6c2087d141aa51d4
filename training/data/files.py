"""Reads files of records: JSON lines, a JSON array, either compressed, Parquet, or a folder.

`formats.py` knows what a record means.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".parquet")
"""Suffixes of the files that are read from a folder. A single file may have any suffix."""

TAKEN = (
    "JSON lines, a JSON array, either of them compressed with gzip, Parquet, or a folder of such "
    "files"
)
GZIP, PARQUET, ZIP = b"\x1f\x8b", b"PAR1", b"PK\x03\x04"


@dataclass(frozen=True)
class Place:
    """One record of a file: its place, and its value or the reason why it couldn't be decoded."""

    name: str
    value: Any = None
    fault: str = ""


@dataclass(frozen=True)
class DataFile:
    """A file's records, and the name of its form."""

    form: str
    records: list[Place]


def read_file(path: Path) -> DataFile:
    """Read a file's records, or those of all files of a folder in the order of their names.

    Raises:
        DataError: it doesn't exist, can't be read, or has a form that isn't accepted.
    """
    if path.is_dir():
        return _read_folder(path)
    content = _bytes_of(path)
    if content.startswith(PARQUET):
        return DataFile("Parquet", list(_parquet(path)))
    compressed = content.startswith(GZIP)
    if compressed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"can't decompress {path}: {error}") from error
    if content.startswith(ZIP):
        raise DataError(f"{path} is a ZIP archive or a spreadsheet. Accepted are {TAKEN}.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} isn't UTF-8 text ({error}). Accepted are {TAKEN}.") from error
    form, records = _records(text, path)
    return DataFile(f"{form} (gzip)" if compressed else form, records)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        hint = ""
        if len(path.parts) == 2 and not path.parent.exists():
            hint = (
                f": for a data set of the hub, first run: hf download --repo-type dataset {path} "
                "--local-dir data"
            )
        raise DataError(f"can't read {path}: it isn't there{hint}") from None
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error


def _read_folder(folder: Path) -> DataFile:
    files = sorted(file for file in folder.rglob("*") if file.name.lower().endswith(SUFFIXES))
    if not files:
        raise DataError(f"{folder} has no file that ends in {', '.join(SUFFIXES)}")
    records, forms = [], []
    for file in files:
        found = read_file(file)
        name = file.relative_to(folder)
        records += [Place(f"{name} {r.name}", r.value, r.fault) for r in found.records]
        forms.append(found.form)
    return DataFile(f"a folder of {len(files)} file(s): {', '.join(dict.fromkeys(forms))}", records)


def _records(text: str, path: Path) -> tuple[str, list[Place]]:
    """Read JSON lines if the first line is a record of its own, otherwise one JSON value."""
    # splitlines() would also split at characters that may stand unescaped in JSON strings.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        return "JSON lines", []
    first = lines[0][1].strip()
    if first[0] not in "{[":
        is_csv = "," in first or "\t" in first
        looks = f"looks like CSV ({first[:60]!r})" if is_csv else "isn't JSON"
        raise DataError(f"{path} {looks}. Accepted are {TAKEN}.")
    if not isinstance(_decoded(first).value, dict):
        decoded = _decoded(text)
        if decoded.fault and first[0] == "[" and _decoded(first).fault:
            raise DataError(f"{path} begins like a JSON array and {decoded.fault}")
        whole = decoded.value
        if isinstance(whole, dict):
            return "one JSON object", _wrapped(whole)
        if isinstance(whole, list) and not _is_conversation(whole):
            return "a JSON array", _numbered(whole)
    return "JSON lines", [_decoded(line, f"line {number}") for number, line in lines]


def _is_conversation(values: list[Any]) -> bool:
    """Return whether a list holds the messages of one conversation, not several conversations."""
    return bool(values) and all(isinstance(value, dict) and "role" in value for value in values)


def _wrapped(whole: dict[str, Any]) -> list[Place]:
    """Return the records of an object that only wraps them, such as `{"data": [...]}`."""
    if len(whole) == 1:
        (inner,) = whole.values()
        if isinstance(inner, list) and inner and not _is_conversation(inner):
            return _numbered(inner)
    return _numbered([whole])


def _numbered(values: list[Any]) -> list[Place]:
    return [Place(f"record {number}", value) for number, value in enumerate(values, start=1)]


def _decoded(text: str, name: str = "") -> Place:
    try:
        return Place(name, json.loads(text))
    except ValueError as error:
        return Place(name, fault=f"isn't JSON: {error}")
    except RecursionError:
        return Place(name, fault="is nested too deeply")


def _parquet(path: Path) -> Iterator[Place]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path} is Parquet, which needs pyarrow: pip install pyarrow, or write the data as "
            "JSON lines"
        ) from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise DataError(f"can't read {path} as Parquet: {error}") from error
    yield from _numbered(rows)
