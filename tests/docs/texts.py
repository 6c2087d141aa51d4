"""What the documents say, taken apart: code blocks, links, headings, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")


def documents() -> list[Path]:
    """Return the documents whose commands, links and names are checked."""
    named = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "helm/README.md", "examples/README.md")
    found = [ROOT / name for name in named if (ROOT / name).is_file()]
    return found + sorted((ROOT / "docs").glob("*.md"))


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(*match) for match in _BLOCK.findall(text)]


def without_blocks(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", text)


def links(text: str) -> list[str]:
    """Return where the links of a page lead."""
    return _LINK.findall(without_blocks(text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    return {_slug(heading) for heading in _HEADING.findall(without_blocks(text))}


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def inline_code(text: str) -> list[str]:
    """Return what stands in back-ticks outside of blocks."""
    return _INLINE.findall(re.sub(r"(?<!\n)\n(?![\n|])", " ", without_blocks(text)))


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `loraplex` command of a page, from blocks and from back-ticks.

    Comments and the brackets around what may be left out are dropped; of alternatives (`a|b`)
    every one is yielded.
    """
    lines = [line for block in blocks(text) for line in _joined(block.text)]
    for line in [*lines, *inline_code(text)]:
        match = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?loraplex (.+)", line.strip())
        if match and "COMMAND" not in match[1]:
            yield from _alternatives(match[1])


def _joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _alternatives(command: str) -> Iterator[list[str]]:
    bare = re.sub(r"\s#.*$", "", command)
    bare = re.sub(r"\[(--?[^\]]*)\]", r"\1", bare)
    words = [word for word in shlex.split(bare) if word not in ("...", "…", "|")]
    for index, word in enumerate(words):
        if re.fullmatch(r"[a-z]+(\|[a-z]+)+", word):
            for choice in word.split("|"):
                yield [*words[:index], choice, *words[index + 1 :]]
            return
    yield words
