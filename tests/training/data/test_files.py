"""Files of records, whatever they are called and however they are packed."""

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from training.data.files import read_file
from training.errors import DataError

RECORDS = [{"a": 1}, {"a": 2}]
LINES = "\n\n".join(json.dumps(record) for record in RECORDS)


def values(path: Path) -> list[Any]:
    return [place.value for place in read_file(path).records]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (LINES, "JSON lines"),
        ("\ufeff" + LINES.replace("\n", "\r\n"), "JSON lines"),
        (json.dumps(RECORDS), "a JSON array"),
        (json.dumps(RECORDS, indent=2), "a JSON array"),
        (json.dumps({"data": RECORDS}, indent=2), "one JSON object"),
    ],
)
def test_lines_and_arrays_plain_and_compressed(tmp_path: Path, text: str, form: str) -> None:
    plain, packed = tmp_path / "data", tmp_path / "packed"
    plain.write_text(text, newline="")
    packed.write_bytes(gzip.compress(text.encode()))
    assert values(plain) == values(packed) == RECORDS
    assert read_file(plain).form == form
    assert read_file(packed).form == f"{form} (gzip)"


def test_one_indented_record(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"a": [1], "b": 2}, indent=1))
    assert values(tmp_path / "one.json") == [{"a": [1], "b": 2}]


def test_a_folder_is_all_its_files_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.json").write_text(json.dumps([{"a": 3}]))
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "README.md").write_text("not data")
    file = read_file(tmp_path)
    assert [place.value for place in file.records] == [*RECORDS, {"a": 3}]
    assert file.records[-1].name == "sub/b.json record 1"
    assert file.form == "a folder of 2 file(s): JSON lines, a JSON array"


def test_lines_that_are_not_json_have_a_place(tmp_path: Path) -> None:
    (tmp_path / "data").write_text('{\n{"a": 1}\n' + "[" * 100_000)
    first, second, third = read_file(tmp_path / "data").records
    assert (first.name, second.name, third.name) == ("line 1", "line 2", "line 3")
    assert first.fault.startswith("isn't JSON")
    assert second.value == {"a": 1}
    assert third.fault


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,completion\na,b\n", "like CSV"),
        (b"hello there", "isn't JSON"),
        (b"\xff\xfe{", "isn't UTF-8"),
        (b"PK\x03\x04", "spreadsheet"),
        (b"\x1f\x8bnothing", "can't decompress"),
        (b'[\n {"a": 1},\n {"a"', "begins like a JSON array and isn't JSON"),
    ],
)
def test_other_files_get_one_message(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_file(tmp_path / "data")


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"can't read .*missing\.jsonl: it isn't there$"):
        read_file(tmp_path / "missing.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="hf download --repo-type dataset org/chats"):
        read_file(Path("org/chats"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no file that ends in \.jsonl"):
        read_file(tmp_path / "empty")


def test_parquet_where_pyarrow_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1...")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow: pip install pyarrow"):
        read_file(tmp_path / "data.parquet")
    fake = ModuleType("pyarrow")
    fake.parquet = SimpleNamespace(  # type: ignore[attr-defined]
        read_table=lambda path: SimpleNamespace(to_pylist=lambda: RECORDS)
    )
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    assert values(tmp_path / "data.parquet") == RECORDS
    assert read_file(tmp_path / "data.parquet").form == "Parquet"
