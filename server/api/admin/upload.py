"""An upload: the parts of a multipart body, written to the data folder's disk as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from adapters_registry.content.adapter_files import ADAPTER_FILES
from adapters_registry.registry import Registry
from adapters_registry.sources.source import Source, missing_file
from server.errors import InvalidRequest
from server.middleware.body_limit import FORM_OVERHEAD_BYTES
from server.workers import Workers

MAX_FORM_FILES = 16


@asynccontextmanager
async def receive_upload(
    request: Request, registry: Registry, workers: Workers, max_bytes: int
) -> AsyncIterator[tuple[FormData, Source]]:
    """The form of a multipart body, and its files as a source while the context is open.

    Raises:
        InvalidRequest: the body is no form, or ends in the middle.
        InsufficientStorage: the disk, or the budget for it, is full.
        SourceRefused: the files are over `max_bytes`.
    """
    content = registry.content
    async with contextmanager_in_threadpool(content.staging()) as spool:
        await workers.run(registry.make_room, spool, _announced_bytes(request, max_bytes))
        try:
            form = await _SpoolingParser(request, spool).parse()
        except MultiPartException as error:
            raise InvalidRequest(f"the body is no form: {error.message}") from error
        except ClientDisconnect as error:
            raise InvalidRequest("the upload was cut off: repeat it") from error
        parts = form.getlist("files")
        uploads = {part.filename: part for part in parts if isinstance(part, UploadFile)}

        def stage(staged: Path) -> None:
            for name in ADAPTER_FILES:
                if name not in uploads:
                    raise missing_file(name)
                uploads[name].file.flush()
                Path(str(uploads[name].file.name)).rename(staged / name)

        size_bytes = sum(upload.size or 0 for upload in uploads.values())
        content.reserve(spool, 0)  # registering reserves what the files really have
        try:
            yield form, Source("upload", size_bytes, stage).limited(max_bytes)
        finally:
            await form.close()


def _announced_bytes(request: Request, max_bytes: int) -> int:
    """How much the body says it has; at most what `BodyLimit` lets through."""
    announced, limit = request.headers.get("content-length", ""), max_bytes + FORM_OVERHEAD_BYTES
    return min(int(announced), limit) if announced.isdecimal() else limit


class _SpoolingParser(MultiPartParser):
    """Starlette's, with files below `spool`: the system's own folder for them may be memory."""

    def __init__(self, request: Request, spool: Path) -> None:
        super().__init__(request.headers, request.stream(), max_files=MAX_FORM_FILES)
        self._spool = spool

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if (upload := self._current_part.file) is not None:
            file = NamedTemporaryFile(dir=self._spool, delete=False)  # noqa: SIM115
            self._files_to_close_on_error.append(file)  # type: ignore[arg-type]
            upload.file = file  # type: ignore[assignment]
