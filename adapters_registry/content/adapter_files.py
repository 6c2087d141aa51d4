"""An adapter's files: their names, their digest, and how they are made durable."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
"""Every adapter has these two."""

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
OTHER_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt")
"""A tokenizer in other forms than `TOKENIZER_FILE`. They are compared with the base's, not read."""
COMPANION_FILES = (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    GENERATION_FILE,
    *OTHER_TOKENIZER_FILES,
)
"""These may stand beside the two, as trainers save them, and belong to the content then."""
ALL_FILES = (*ADAPTER_FILES, *COMPANION_FILES)
SIGNATURE_FILE = "model.sig"
"""The signature over an adapter's files, as the package `model-signing` names it. It is no part of
the content: it is verified before the files are sealed, and the version's record names the signer.
"""
SOURCE_FILES = (*ALL_FILES, SIGNATURE_FILE)
"""What is read from a source or taken from an upload."""

_SAYS_NOTHING = re.compile(
    r"\..*|.*\.(md|png|svg|lock)|(license|notice|training_run)(\..*)?", re.IGNORECASE
)
"""Files that people, version control and `loraplex train` leave beside an adapter. No answer could
depend on them."""
MAX_LEFT_OUT = 20
"""How many files are named, because every server keeps the names in memory."""

_CHUNK_BYTES = 1 << 20


def digest_of(directory: Path) -> tuple[str, int]:
    """Return the sha256 over an adapter's files, in hex, and their size in bytes.

    Name, length and bytes of each file are hashed, in a fixed order: the two that every adapter
    has, then those companions that are there.
    """
    digest, size_bytes = hashlib.sha256(), 0
    for name in (*ADAPTER_FILES, *companions_in(directory)):
        file = directory / name
        length = file.stat().st_size
        size_bytes += length
        digest.update(f"{name}\0{length}\0".encode())
        with file.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest(), size_bytes


def companions_in(directory: Path) -> list[str]:
    """Return the names of the companion files that are in a directory."""
    return [name for name in COMPANION_FILES if (directory / name).is_file()]


def signature_names() -> Iterator[str]:
    """Yield the names under which signatures are staged: the usual one, then those of further ones.

    A source that keeps signatures apart from the files can have several.
    """
    yield SIGNATURE_FILE
    yield from (f"{SIGNATURE_FILE}.{number}" for number in itertools.count(2))


def signatures_in(directory: Path) -> list[Path]:
    """Return the signatures that are staged in a directory."""
    files = (directory / name for name in signature_names())
    return list(itertools.takewhile(Path.is_file, files))


def left_out(names: Iterable[str]) -> tuple[str, ...]:
    """Return those files of an adapter, by name, that are neither kept nor without meaning.

    If there are more than `MAX_LEFT_OUT`, an entry says how many more.
    """
    kept = sorted(
        name for name in names if name not in SOURCE_FILES and not _SAYS_NOTHING.fullmatch(name)
    )
    more = len(kept) - MAX_LEFT_OUT
    named = [name.encode("utf-8", "replace").decode() for name in kept[:MAX_LEFT_OUT]]
    return (*named, f"{more} others") if more > 0 else tuple(named)


def make_durable(staged: Path) -> tuple[str, int]:
    """Flush an adapter's files to disk, make them read-only and remove everything else.

    Returns their digest and size, as `digest_of` does.
    """
    digest, size_bytes = digest_of(staged)
    for file in staged.iterdir():
        if file.name not in ALL_FILES:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
            continue
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        file.chmod(0o444)
    fsync_directory(staged)
    return digest, size_bytes


def size_of(directory: Path) -> int:
    """Return the bytes of the files in a directory."""
    return sum(file.stat().st_size for file in directory.iterdir())


def fsync_directory(directory: Path) -> None:
    """Flush a directory's entries to disk, so that a rename survives a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
