"""The commands `loraplex data`, which inspect and convert training data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.commands import Commands
from server.cli.console import FAILED, fail, say
from server.cli.tables import print_table
from server.cli.training.shared import BaseFlag, base_or_bundled, explained, refuse, text_of

if TYPE_CHECKING:
    from training.data.inspection import Inspection, Lengths, Segment
    from training.data.reading import Data

app = Commands(help="Inspect training data before training, and convert it.", no_args_is_help=True)
DataFile = Annotated[Path, typer.Argument(help="A file, or a folder of files.")]


@app.command(epilog="Example: loraplex data inspect chats.jsonl --base DIRECTORY")
def inspect(
    file: DataFile,
    base: BaseFlag = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="A file with a chat template that replaces the base's."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Count the examples that are longer than this, in tokens.", min=1)
    ] = 512,
    examples: Annotated[
        int, typer.Option(help="How many examples to show as the model will see them.", min=0)
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show the format, counts, lengths and duplicates of training data, and its learned parts.

    The exit code is 1 if records are bad, or if the base's chat template can't render some.
    """
    from training.data.inspection import inspect_data
    from training.data.reading import bad_records, read_data
    from training.data.rendering import Renderer
    from training.models.base_model import load_tokenizer

    with explained():
        data = read_data(file)
        tokenizer = load_tokenizer(base_or_bundled(base), text_of(chat_template) or "")
        found = inspect_data(data, Renderer(tokenizer), max_length, examples)
    if as_json:
        print(json.dumps(asdict(found) | {"bad": data.bad[:10]}, ensure_ascii=False))
    else:
        _print(found, data, max_length)
    if data.bad:
        fail(f"{file} has {bad_records(data.bad)}")
    if found.unrenderable:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: loraplex data convert sharegpt.json chats.jsonl")
def convert(
    file: DataFile,
    output: Annotated[Path, typer.Argument(help="A new file for JSON lines of messages.")],
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out bad records instead of refusing the file.")
    ] = False,
) -> None:
    """Write training data of any format as JSON lines of messages, the format of OpenAI's API."""
    from training.data.reading import bad_records, read_data, write_conversations

    with explained():
        data = read_data(file)
        if data.bad and not skip_bad:
            refuse(f"{file} has {bad_records(data.bad)}\n--skip-bad leaves them out")
        if not data.conversations:
            refuse(f"{file} has no examples")
        if output.exists():
            refuse(f"{output} is there already: name a new file")
        for note in data.notes:
            say(f"{file}: {note}")
        try:
            write_conversations(output, data.conversations)
        except OSError as error:
            refuse(f"can't write {output}: {error}")
    left_out = f", {len(data.bad):,} bad record(s) left out" if data.bad else ""
    print(f"{len(data.conversations):,} conversation(s) in {output}{left_out}")


def _print(found: Inspection, data: Data, max_length: int) -> None:
    console = Console()
    for note in data.notes:
        console.print(note, markup=False, soft_wrap=True, highlight=False)
    table = Table("", "number", show_header=False)
    rows = {
        "examples": found.num_examples,
        "bad records": found.num_bad,
        "repeat an earlier example word for word": found.num_duplicates,
        "different prompts": found.num_prompts,
        "with tools": found.num_with_tools,
        "answers that carry loss": found.num_turns,
        "answers with the weight 0": found.num_unlearned,
        f"longer than {max_length} tokens": found.num_too_long,
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    for title, lengths in (
        ("tokens of an example", found.lengths),
        ("of them carry loss", found.answer_lengths),
    ):
        if lengths:
            table.add_row(title, _lengths(lengths))
    print_table(table)
    if found.special_tokens:
        console.print(found.special_tokens, markup=False, soft_wrap=True, highlight=False)
    for cause, count in found.unrenderable.items():
        line = f"{count:,} example(s) can't be trained on: {cause}"
        console.print(line, markup=False, soft_wrap=True, highlight=False)
    for number, segments in enumerate(found.examples, start=1):
        console.rule(f"example {number}: the model learns what is {_marked(console)}")
        console.print(_shown(segments, console), soft_wrap=True)


def _lengths(lengths: Lengths) -> str:
    return (
        f"{lengths.shortest:,} to {lengths.longest:,}, median {lengths.median:,}, "
        f"95 % up to {lengths.p95:,}"
    )


def _has_colours(console: Console) -> bool:
    return console.is_terminal and not console.no_color


def _marked(console: Console) -> str:
    return "green" if _has_colours(console) else "between » and «"


def _shown(segments: list[Segment], console: Console) -> Text:
    """Return an example in two colours, or with marks around answers if there are no colours."""
    text = Text()
    for segment in segments:
        if not segment.is_learned:
            text.append(segment.text, "dim")
        elif _has_colours(console):
            text.append(segment.text, "bold green")
        else:
            text.append(f"»{segment.text}«")
    return text
