"""Forms of uploads, as the server takes them from strangers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import Message

from adapters_registry.content.adapter_files import ADAPTER_FILES, SOURCE_FILES
from adapters_registry.errors import RegistryError
from server.api.admin.upload import Fields, receive_upload
from server.errors import APIError

MOST_BYTES = 1500
"""Of the files of one form, so that inputs can be over it."""
Received = tuple[Fields, tuple[str, ...], dict[str, bytes]] | str
"""The fields, the names of files that were left out, and the files; or why it was refused."""


class _Room:
    """Reserves everything, as a tenant without a quota may have it."""

    is_admitted = True

    async def admit(self, fields: Fields, size_bytes: int) -> None:
        """Admit everything."""

    async def grow(self, size_bytes: int, disk_bytes: int) -> None:
        """Take as much as it wants."""


def multipart(data: bytes) -> None:
    """A form gives the same however it is cut, its files whole, or an error for the client.

    After an odd first byte the rest stands for parts, of which the form is made: a mutation would
    hardly ever find the same boundary three times. Otherwise it is the Content-Type, a line end,
    and the body.
    """
    step = data[0] % 32 + 1 if data else 1
    made = _form_of(data[1:]) if data and data[0] % 2 else None
    if made:
        content_type, body, parts = made
    else:
        first, _, body = data[1:].partition(b"\n")
        content_type, parts = first.replace(b"\r", b""), {}
    whole = _received(content_type, [body])
    assert whole == _received(content_type, _cut(body, step))
    if isinstance(whole, str):
        return
    fields, left_out, files = whole
    "".join([*fields, *fields.values(), *left_out]).encode()
    assert files.keys() >= set(ADAPTER_FILES)
    assert files.keys() <= set(SOURCE_FILES)
    assert sum(map(len, files.values())) <= MOST_BYTES
    for name, content in parts.items():
        assert name not in SOURCE_FILES or files[name] == content


def _form_of(data: bytes) -> tuple[bytes, bytes, dict[str, bytes]]:
    """Return the type and the body of a form, and its files by name.

    The input has a part after each NUL: if its first byte is below the number of known names, it is
    the file with that name, otherwise a field whose name ends at the first `=`.
    """
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for part in data.split(b"\0")[1:]:
        if part and part[0] < len(SOURCE_FILES):
            files[SOURCE_FILES[part[0]]] = part[1:]
        else:
            name, _, value = part.decode(errors="ignore").partition("=")
            fields[name] = value
    sent = [("files", (name, content)) for name, content in files.items()]
    headers = {"content-type": "multipart/form-data; boundary=fuzz"}
    request = httpx.Request("POST", "http://fuzz", data=fields, files=sent, headers=headers)
    return request.headers["content-type"].encode(), request.read(), files


def _cut(body: bytes, step: int) -> Iterator[bytes]:
    return (body[start : start + step] for start in range(0, len(body), step))


def _received(content_type: bytes, chunks: list[bytes] | Iterator[bytes]) -> Received:
    with tempfile.TemporaryDirectory(prefix="loraplex-fuzz-") as folder:
        directory = Path(folder)
        try:
            fields, left_out = asyncio.run(_receive(content_type, iter(chunks), directory))
        except (APIError, RegistryError) as error:
            str(error).encode()
            return f"{type(error).__name__}: {error}"
        except HTTPException as error:
            return error.detail
        found = {name: directory / name for name in SOURCE_FILES}
        files = {name: file.read_bytes() for name, file in found.items() if file.exists()}
        return fields, left_out, files


async def _receive(
    content_type: bytes, chunks: Iterator[bytes], directory: Path
) -> tuple[Fields, tuple[str, ...]]:
    async def receive() -> Message:
        chunk = next(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]}
    return await receive_upload(Request(scope, receive), directory, _Room(), MOST_BYTES, 60)
