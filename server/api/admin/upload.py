"""An upload: the parts of a multipart body, written to the data folder's disk as they arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from adapters_registry.content.adapter_files import ADAPTER_FILES, SOURCE_FILES, left_out
from adapters_registry.sources.source import PICKLE_FILE, check_size, missing_file
from server.errors import InvalidRequest, OverQuota
from server.middleware.body_limit import FORM_OVERHEAD_BYTES

MAX_FORM_FILES = 16
CHARSETS = (b"utf-8", b"utf8", b"us-ascii")
STEP_BYTES = 8 << 20
"""Disk space is reserved in steps of this size while a body arrives."""
RETRY_SECONDS = 5

Fields = dict[str, str]


class Uploads:
    """Bounds how many uploads each tenant has at a time."""

    def __init__(self, max_per_tenant: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._running: Counter[str] = Counter()

    @contextmanager
    def running(self, tenant: str) -> Iterator[None]:
        """Count one upload of a tenant within the context.

        Raises:
            OverQuota: the tenant has as many uploads as it may have.
        """
        if self._running[tenant] >= self._max_per_tenant:
            raise OverQuota(
                f"the tenant {tenant} has {self._max_per_tenant} uploads running "
                "(LORAPLEX_MAX_UPLOADS): wait until one has ended",
                retry_after_seconds=RETRY_SECONDS,
                rate_headers={},
            )
        self._running[tenant] += 1
        try:
            yield
        finally:
            self._running[tenant] -= 1


class Reserving(Protocol):
    """Reserves what an upload needs, step by step."""

    async def admit(self, fields: Fields, size_bytes: int) -> None:
        """Check the fields that have arrived, and reserve quota.

        The files have at least `size_bytes`. This is called again until `is_admitted`.
        """

    @property
    def is_admitted(self) -> bool:
        """Return whether the fields that have arrived were enough."""

    async def grow(self, size_bytes: int, disk_bytes: int) -> None:
        """Reserve `disk_bytes` of the disk. The files have at least `size_bytes`."""


async def receive_upload(
    request: Request, directory: Path, reserving: Reserving, max_bytes: int, max_seconds: float
) -> tuple[Fields, tuple[str, ...]]:
    """Write the files of a multipart body into a directory.

    Returns the form's other fields, and the names of the files that were left out.

    Raises:
        InvalidRequest: the body is not a form, ends in the middle, or is not UTF-8 by its header.
        SourceRefused: a file is missing, or the files are over `max_bytes`.
        HTTPException: 408, the body takes longer than `max_seconds`.
        Exception: whatever `reserving` raises.
    """
    _check_charset(request)
    parser = _SpoolingParser(request, directory)
    parser.stream = _reserved(request, parser, reserving, max_bytes)
    try:
        async with asyncio.timeout(max_seconds):
            form = await parser.parse()
    except TimeoutError:
        raise HTTPException(
            408, f"the upload took over {max_seconds:g} s (LORAPLEX_UPLOAD_SECONDS)"
        ) from None
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not a form: {error.message}") from error
    except ClientDisconnect as error:
        raise InvalidRequest("the upload was cut off: repeat it") from error
    parts = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
    uploads = {part.filename: part for part in parts}
    try:
        check_size(sum(upload.size or 0 for upload in uploads.values()), max_bytes)
        for name in ADAPTER_FILES:
            if name not in uploads:
                raise missing_file(name, has_pickle=PICKLE_FILE in uploads)
        for name in SOURCE_FILES:
            if name not in uploads:
                continue
            uploads[name].file.flush()
            Path(str(uploads[name].file.name)).rename(directory / name)
    finally:
        await form.close()
    return parser.fields, left_out(name for name in uploads if name)


def _check_charset(request: Request) -> None:
    """Raise `InvalidRequest` if the form names an encoding that isn't UTF-8.

    Starlette's parser would take any of Python's codecs. Some of them raise errors of their own, or
    give texts that can be neither stored nor sent.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    charset = options.get(b"charset", CHARSETS[0])
    if charset.lower() not in CHARSETS:
        shown = charset[:40].decode("latin-1")
        raise InvalidRequest(f"a form's texts must be UTF-8, not {shown!r}: leave out the charset")


async def _reserved(
    request: Request, parser: _SpoolingParser, reserving: Reserving, max_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a body, each after disk space was reserved for it.

    When the generator is asked for the next chunk, the parser has read the one before: the fields
    that stand before the files are known, so a refusal comes before most of the body.
    """
    announced = _announced_bytes(request, max_bytes)
    num_bytes = reserved_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > reserved_bytes:
            reserved_bytes = max(num_bytes, min(num_bytes + STEP_BYTES, announced))
            await reserving.grow(num_bytes - FORM_OVERHEAD_BYTES, reserved_bytes)
        yield chunk
        if parser.has_file and not reserving.is_admitted:
            await reserving.admit(parser.fields, _least_file_bytes(request, num_bytes))


def _announced_bytes(request: Request, max_bytes: int) -> int:
    """Return the announced size of the body, at most what `BodyLimit` lets through."""
    announced, limit = request.headers.get("content-length", ""), max_bytes + FORM_OVERHEAD_BYTES
    return min(int(announced), limit) if announced.isdecimal() else limit


def _least_file_bytes(request: Request, num_bytes: int) -> int:
    """Return the least size of the files, by what was announced and what has arrived."""
    announced = request.headers.get("content-length", "")
    body_bytes = int(announced) if announced.isdecimal() else num_bytes
    return max(0, body_bytes - FORM_OVERHEAD_BYTES)


class _SpoolingParser(MultiPartParser):
    """Starlette's parser, with files in `directory`. The system's folder for them may be memory."""

    def __init__(self, request: Request, directory: Path) -> None:
        super().__init__(request.headers, request.stream(), max_files=MAX_FORM_FILES)
        self._directory = directory
        self.has_file = False
        """Whether a file has begun."""

    @property
    def fields(self) -> Fields:
        """Return the fields that have arrived completely, without the files."""
        return {name: value for name, value in self.items if isinstance(value, str)}

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if (upload := self._current_part.file) is not None:
            self.has_file = True
            file = NamedTemporaryFile(dir=self._directory, delete=False)  # noqa: SIM115
            self._files_to_close_on_error.append(file)  # type: ignore[arg-type]
            upload.file = file  # type: ignore[assignment]
