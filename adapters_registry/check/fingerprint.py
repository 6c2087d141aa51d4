"""A base's fingerprint: what tells whether two servers, or two starts, have the same base.

Names and sizes don't: other weights may be put into the same directory. All weights of a large
base would take minutes to read. So a sample of every tensor is read, with the configuration, the
tokenizer and the chat template. The same weights in other files have the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from adapters_registry.check.norms import checkpoint_files
from adapters_registry.check.weights import read_header

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
CHUNK_BYTES = 4096
MAX_CHUNKS = 16
"""Of a tensor that is longer, so many chunks are read, evenly spaced: 15 MB of an 8B base."""
MAX_HEADER_BYTES = 100 << 20
_OF_THE_WRITER = ("_name_or_path", "name_or_path", "transformers_version")
"""Entries of a configuration that say who wrote it, and where."""
_WRITTEN = ("config.json", "tokenizer_config.json")


def fingerprint_of(directory: Path, quantization: str = "") -> str:
    """Return the fingerprint of the base in a model directory, as 64 hexadecimal digits.

    `quantization` is the method by which the engine rounds the weights when it loads them, if any.

    Raises:
        OSError: a file can't be read.
        ValueError: a file of the weights is no safetensors file.
    """
    digest = hashlib.sha256()
    parts = [("quantization", quantization.encode()), *_texts(directory), *_weights(directory)]
    for name, part in parts:
        digest.update(f"{name}\0{len(part)}\0".encode() + part)
    return digest.hexdigest()


def _texts(directory: Path) -> Iterator[tuple[str, bytes]]:
    for name in ("config.json", *TOKENIZER_FILES):
        if (file := directory / name).is_file():
            text = file.read_bytes()
            yield name, _without_writer(text) if name in _WRITTEN else text


def _without_writer(text: bytes) -> bytes:
    """Remove the fields about the writer from a JSON object. Other text is returned unchanged."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(values, dict):
        return text
    kept = {key: value for key, value in values.items() if key not in _OF_THE_WRITER}
    return json.dumps(kept, sort_keys=True).encode()


def _weights(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a sample of each tensor, in the order of their names."""
    files = checkpoint_files(directory)
    if not files:
        for file in sorted(directory.glob("*.bin")):
            yield file.name, _sample(file, 0, file.stat().st_size)
    tensors = [item for file in files for item in read_header(file, MAX_HEADER_BYTES).items()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        sample = _sample(tensor.file, tensor.offset, tensor.num_bytes)
        yield f"{name} {tensor.dtype} {list(tensor.shape)}", sample


def _sample(file: Path, offset: int, num_bytes: int) -> bytes:
    """Return a whole range of a file if it is small, or else chunks spread over it."""
    with file.open("rb", buffering=0) as handle:
        handle.seek(offset)
        if num_bytes <= MAX_CHUNKS * CHUNK_BYTES:
            return handle.read(num_bytes)
        chunks = []
        for index in range(MAX_CHUNKS):
            handle.seek(offset + index * (num_bytes - CHUNK_BYTES) // (MAX_CHUNKS - 1))
            chunks.append(handle.read(CHUNK_BYTES))
    return b"".join(chunks)
