"""Options and helpers of the training commands: the base, the data, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from server.cli.console import ending_on, say

if TYPE_CHECKING:
    from training.data.conversations import Conversation
    from training.data.datasets.split import Split
    from training.data.recipe import Recipe

BaseFlag = Annotated[
    Path | None,
    typer.Option(help="The directory of the base model. By default the bundled base."),
]
NewDirectory = Annotated[
    Path, typer.Argument(help="A directory to write to. It must be new or empty.")
]
DATA_HELP = (
    "Training data: a file of JSON lines, a JSON array, Parquet, gzip, or a folder of such files, "
    "with conversations as messages, ShareGPT, Alpaca, or prompt and completion. "
    "`loraplex data inspect FILE` shows how it is read."
)


@contextmanager
def explained() -> Iterator[None]:
    """End the command with code 2 and one message, if a training job can't be run as asked."""
    from training.errors import TrainingError

    with ending_on(TrainingError):
        yield


def refuse(message: str) -> NoReturn:
    """Raise the error that ends a training command with this message."""
    from training.errors import TrainingError

    raise TrainingError(message)


def base_or_bundled(base: Path | None) -> Path:
    """Return the named base, or the bundled one if none is named."""
    from server.bundled_base import ensure_bundled_base

    return base or ensure_bundled_base()


def read(file: Path, *, says_format: bool = True) -> list[Conversation]:
    """Read conversations from a file. Print its format, and the fields that aren't used.

    Raises:
        TrainingError: the file can't be read, or has bad records.
    """
    from training.data.reading import read_whole_data

    data = read_whole_data(file)
    for note in data.notes if says_format else data.notes[1:]:
        say(f"{file}: {note}")
    return data.conversations


def data_of(recipe: Recipe, data: Path | None, test: Path | None) -> Split:
    """Return the data to train on and to score on, from files or the recipe's data set.

    Raises:
        TrainingError: there is nothing to train on, or it can't be read.
    """
    from training.data.datasets.catalog import load_dataset
    from training.data.datasets.split import Split

    held_out = read(test) if test else []
    if data is not None:
        return Split(read(data), held_out)
    if not recipe.dataset:
        refuse("nothing to train on: give --data or --recipe")
    split = load_dataset(recipe.dataset, size=recipe.num_examples, seed=recipe.seed)
    return Split(split.train, held_out) if test else split


def text_of(file: Path | None) -> str | None:
    """Return the text of a chat template's file, or None without one.

    Raises:
        TrainingError: it can't be read.
    """
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"can't read the chat template {file}: {error}")
