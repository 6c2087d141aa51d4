"""`loraplex data`: what a file of training data holds, on the bundled base's tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.main import app
from training.data.conversations import exchange
from training.data.reading import read_conversations


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def write(file: Path, records: list[Any]) -> Path:
    file.write_text("\n".join(json.dumps(record) for record in records))
    return file


ALPACA = {"instruction": "a", "input": "", "output": "b"}


def test_inspect_says_what_a_file_is(tiny_llama: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "data", [ALPACA, ALPACA, {**ALPACA, "instruction": "c", "id": 1}])
    text = run("inspect", file, "--base", tiny_llama)
    assert "JSON lines: 3 × Alpaca" in text
    assert "the field 'id' isn't used; 1 record(s) have it" in text
    assert "example 3" in text
    assert "»b<|im_end|>«" in text
    facts = json.loads(run("inspect", file, "--base", tiny_llama, "--json", "--examples", 1))
    assert facts["num_examples"] == 3
    assert facts["num_duplicates"] == 1
    assert facts["num_prompts"] == 2
    assert len(facts["examples"]) == 1
    assert facts["lengths"]["longest"] > facts["answer_lengths"]["longest"] > 0


def test_bad_records_give_code_1_and_ten_of_them(tiny_llama: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "data", [ALPACA, *[{"messages": []}] * 30])
    text = run("inspect", file, "--base", tiny_llama, code=1)
    assert "30 bad line(s)" in text
    assert "line 11:" in text
    assert "line 12:" not in text
    assert "and 20 more" in text


def test_what_the_template_cannot_render_gives_code_1(tiny_llama: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    chat = exchange("a", "b").record | {"tools": [{"name": "look"}]}
    file = write(tmp_path / "data", [chat])
    arguments = ("inspect", file, "--base", tiny_llama)
    assert "with tools" in run(*arguments)
    text = run(*arguments, "--chat-template", template, code=1)
    assert "1 example(s) can't be trained on: the base's chat template can't render tools" in text


def test_convert_writes_messages(tmp_path: Path) -> None:
    file = write(tmp_path / "data", [ALPACA, {"messages": []}])
    out = tmp_path / "out.jsonl"
    assert "--skip-bad leaves them out" in run("convert", file, out, code=2)
    assert not out.exists()
    text = run("convert", file, out, "--skip-bad")
    assert f"1 conversation(s) in {out}, 1 bad record(s) left out" in text
    assert read_conversations(out) == [exchange("a", "b")]
    assert "is there already" in run("convert", file, out, "--skip-bad", code=2)


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path, command: str) -> None:
    others = [tmp_path / "out"] if command == "convert" else []
    assert "it isn't there" in run(command, tmp_path / "none", *others, code=2)
    file = write(tmp_path / "data", [{"question": "a", "answer": "b"}] * 5000)
    text = run(command, file, *others, code=2)
    assert "5,000 of 5,000 are: no known format: its fields are answer, question" in text
    assert len(text) < 1500
