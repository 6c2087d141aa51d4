"""Chooses vLLM's parsers for a base's answers, by its family and its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from adapters_registry.check.companions.companions import chat_template_of
from adapters_registry.families import LLAMA, Family, Marks, family_of

THINK_END = "</think>"
"""The token that ends the reasoning of most models that show it."""


@dataclass(frozen=True)
class ChatFormats:
    """What a base's answers are read with."""

    family: Family
    tool_parser: str
    reasoning_parser: str | None
    """None: nothing of an answer is taken for reasoning."""


def chat_formats(base: str) -> ChatFormats:
    """Choose the parsers for a base directory, or a hub id whose files are in the hub's cache.

    A base that can't be read is taken for a Llama: whoever loads it then says what is wrong.
    """
    directory = _local_files(base)
    try:
        family = family_of(json.loads((directory / "config.json").read_text(encoding="utf-8")))
        template = chat_template_of(directory)
        tokenizer = directory / "tokenizer.json"
        tokens = tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else ""
    except (OSError, ValueError):
        return ChatFormats(LLAMA, LLAMA.tool_parser, None)
    tool_parser = _first_of(family.tool_parsers, tokens) or family.tool_parser
    reasoning_parser = _first_of(family.reasoning_parsers, template)
    if THINK_END in template and THINK_END not in tokens:  # the parser would look for the token
        reasoning_parser = None
    return ChatFormats(family, tool_parser, reasoning_parser)


def _first_of(marks: Marks, text: str) -> str | None:
    return next((parser for mark, parser in marks if mark in text), None)


def _local_files(base: str) -> Path:
    if (directory := Path(base)).is_dir():
        return directory
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(base, "config.json")
    except ValueError:  # not a hub id
        return directory
    return Path(cached).parent if isinstance(cached, str) else directory
