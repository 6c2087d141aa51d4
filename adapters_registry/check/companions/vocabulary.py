"""The base's tokens by id and text, read from its tokenizer's files.

No tokenizer library is used, so a tenant's file is compared but never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters_registry.chat_templates.sandbox import special_tokens
from adapters_registry.content.adapter_files import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)


@dataclass(frozen=True)
class Vocabulary:
    """The base's tokens. If its files don't list them, only their number is known."""

    size: int | None = None
    """Number of rows of the base's embedding."""
    ids: Mapping[str, int] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    """Its special tokens by name. A name such as `unk_token` may have a text that isn't a token."""

    def stranger(self, text: str, token_id: int | None) -> str:
        """Return a description of a token that the base lacks, or an empty text if it has it."""
        shown = repr(text[:60])
        if token_id is not None and self.size is not None and not 0 <= token_id < self.size:
            return f"{shown} ({token_id}: the base has {self.size} tokens)"
        if not self.ids:
            return ""
        if text not in self.ids:
            if token_id is None and text in self.special.values():
                return ""
            return shown if token_id is None else f"{shown} ({token_id})"
        if token_id is not None and self.ids[text] != token_id:
            return f"{shown} ({token_id}; the base's has {self.ids[text]})"
        return ""

    def has_id(self, token_id: int) -> bool:
        """Return whether the base may have a token with this id."""
        return token_id >= 0 and (self.size is None or token_id < self.size)

    def id_of(self, text: str) -> int | None:
        """Return a token's id, or None if there is no such token."""
        return self.ids.get(text)

    def text_of(self, token_id: int) -> str:
        """Return a token as a message shows it."""
        text = next((text for text, each in self.ids.items() if each == token_id), "")
        return f"{text[:60]!r} ({token_id})" if text else str(token_id)


def read_vocabulary(base: Path | None) -> Vocabulary:
    """Read the tokens of a model directory; what isn't there isn't known."""
    if base is None:
        return Vocabulary()
    size = _read(base / "config.json").get("vocab_size")
    ids: dict[str, int] = {}
    for name in (TOKENIZER_FILE, ADDED_TOKENS_FILE, TOKENIZER_CONFIG_FILE):
        for text, token_id in added_tokens_of(name, _read(base / name)):
            if token_id is not None:
                ids.setdefault(text, token_id)
    if not (base / TOKENIZER_FILE).is_file():
        ids = {}  # the added ones alone are not the vocabulary
    special = dict(special_tokens(_read(base / SPECIAL_TOKENS_FILE)))
    special |= dict(special_tokens(_read(base / TOKENIZER_CONFIG_FILE)))
    return Vocabulary(size if isinstance(size, int) else None, ids, special)


def added_tokens_of(name: str, values: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Yield the tokens that a file names, with their ids where it says them."""
    match name:
        case "added_tokens.json":
            yield from ((text, _id(value)) for text, value in values.items())
        case "tokenizer_config.json":
            decoder = values.get("added_tokens_decoder")
            for key, value in decoder.items() if isinstance(decoder, dict) else ():
                if key.isdecimal() and len(key) < 12:
                    yield from ((text, int(key)) for text in _texts(value))
            yield from _special(values)
        case "special_tokens_map.json":
            yield from _special(values)
        case "tokenizer.json":
            model = values.get("model")
            yield from _vocabulary_of(model if isinstance(model, dict) else {})
            added = values.get("added_tokens")
            for value in added if isinstance(added, list) else ():
                if isinstance(value, dict):
                    yield from ((text, _id(value.get("id"))) for text in _texts(value))


def _vocabulary_of(model: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        yield from ((text, _id(value)) for text, value in vocabulary.items())
    elif isinstance(vocabulary, list):  # Unigram: pairs of text and score, in order
        for index, pair in enumerate(vocabulary):
            if isinstance(pair, list) and pair and isinstance(pair[0], str):
                yield pair[0], index


def _special(values: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    for _, text in special_tokens(values):
        yield text, None
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = values.get(key)
        entries = more.values() if isinstance(more, dict) else more
        for value in entries if isinstance(entries, list | type({}.values())) else ():
            yield from ((text, None) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    text = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str) and text:
        yield text


def _id(value: Any) -> int | None:
    return value if type(value) is int else None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value = json.loads(file.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
