"""Reads training data: finds a file's form and format, and checks and counts its records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from training.data.conversations import Conversation
from training.data.files import TAKEN, DataFile, read_file
from training.data.formats import FORMATS, UnknownFormat, parse_record
from training.errors import DataError

MAX_SHOWN = 10
"""Number of bad records that a message shows. The others are only counted."""


@dataclass
class Data:
    """A file's conversations, and facts about them that the user should know."""

    form: str
    """How the file is built, for example `JSON lines`."""
    conversations: list[Conversation] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    """The number of records in each format."""
    unused: Counter[str] = field(default_factory=Counter)
    """The number of records that have each field that training doesn't use."""
    bad: list[str] = field(default_factory=list)
    """The place of each record that can't be used, with the reason."""

    @property
    def notes(self) -> list[str]:
        """Return a line that names the formats, and a line for each unused field."""
        formats = ", ".join(f"{count:,} × {name}" for name, count in self.formats.most_common())
        lines = [f"{self.form}: {formats}"]
        for name, count in self.unused.most_common():
            lines.append(f"the field {name!r} isn't used; {count:,} record(s) have it")
        return lines


def read_data(path: Path) -> Data:
    """Read a file or folder in any known form and format. The result lists bad records.

    Raises:
        DataError: it can't be read, or no record has a known format.
    """
    file = read_file(path)
    data = Data(file.form)
    unknown: Counter[str] = Counter()
    for place in file.records:
        try:
            if place.fault:
                raise ValueError(place.fault)
            parsed = parse_record(place.value)
        except ValueError as error:
            data.bad.append(f"{place.name}: {error}")
            unknown[str(error)] += isinstance(error, UnknownFormat)
            continue
        data.conversations.append(parsed.conversation)
        data.formats[parsed.format] += 1
        data.unused.update(parsed.unused)
    if unknown.total() == len(data.bad) and not data.conversations and data.bad:
        raise DataError(_no_format(path, file, unknown))
    return data


def _no_format(path: Path, file: DataFile, causes: Counter[str]) -> str:
    cause, count = causes.most_common(1)[0]
    known = "".join(f"\n  {known.name}: {known.example}" for known in FORMATS)
    return (
        f"{path} ({file.form}) has no record that can be trained on. {count:,} of "
        f"{len(file.records):,} are: {cause}. Accepted are {TAKEN}, with records like these:{known}"
    )


def read_whole_data(path: Path) -> Data:
    """Read a file or folder in which all records must be good.

    Raises:
        DataError: it can't be read, is empty, or has bad records. The first ten are shown.
    """
    data = read_data(path)
    if data.bad:
        raise DataError(f"{path} has {bad_records(data.bad)}")
    if not data.conversations:
        raise DataError(f"{path} has no examples")
    return data


def bad_records(bad: list[str]) -> str:
    """Return a text with the number of bad records and the first ten of them."""
    left_out = len(bad) - MAX_SHOWN
    more = [f"and {left_out:,} more"] if left_out > 0 else []
    return f"{len(bad):,} bad line(s):\n" + "\n".join([*bad[:MAX_SHOWN], *more])


def read_conversations(path: Path) -> list[Conversation]:
    """Read the conversations of a file or folder in which all records must be good.

    Raises:
        DataError: it can't be read, is empty, or has bad records. The first ten are shown.
    """
    return read_whole_data(path).conversations


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as JSON lines of messages."""
    with path.open("w", encoding="utf-8") as file:
        for conversation in conversations:
            file.write(json.dumps(conversation.record, ensure_ascii=False) + "\n")
