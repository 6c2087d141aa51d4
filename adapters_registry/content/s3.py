"""Files below a prefix of an S3-compatible bucket, through obstore.

obstore reads endpoint, region and credentials from the usual `AWS_*` variables.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import obstore
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from adapters_registry.content.stopping import check_stop, wait_for
from adapters_registry.errors import SourceRefused, StoreUnavailable

if TYPE_CHECKING:
    from obstore import GetOptions

log = logging.getLogger(__name__)

S3_SCHEME = "s3://"

_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_RANGE_BYTES = 16 << 20
"""The bytes of one request, few enough that a part fits in memory and arrives in time."""
_MAX_PARTS_AT_ONCE = 4


class File(NamedTuple):
    """A file of a bucket as it was found. The tag changes when the content changes."""

    key: str
    size_bytes: int
    tag: str | None


class Bucket:
    """The files below `s3://bucket/prefix`. The constructor does not call the store."""

    def __init__(self, url: str) -> None:
        """Raise `SourceRefused` if the URL does not have the form `s3://bucket/prefix`."""
        match = _URL.fullmatch(url.rstrip("/"))
        if not match:
            raise SourceRefused(f"{url[:200]!r} is not of the form s3://bucket/prefix")
        self.url = match[0]
        try:
            self._store = S3Store(
                match["bucket"],
                prefix=match["prefix"] or None,
                # HTTP without TLS is used only if AWS_ENDPOINT_URL begins with http://.
                client_options={"allow_http": True, "connect_timeout": "5s", "timeout": "60s"},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
            )
        except (BaseError, ValueError) as error:
            raise SourceRefused(f"{url[:200]!r} cannot be used: {_first_line(error)}") from error

    def find(self, key: str) -> File | None:
        """Return a file as it is now, or None. Raises `StoreUnavailable` if there is no answer."""
        with self._errors():
            try:
                meta = wait_for(partial(obstore.head_async, self._store, key))
            except FileNotFoundError:
                return None
        return File(key, meta["size"], meta["e_tag"])

    def list(self, below: str = "") -> Iterator[File]:
        """Yield every file whose key begins so. Raises `StoreUnavailable` if there is no answer."""
        with self._errors():
            for page in obstore.list(self._store, prefix=below or None):
                check_stop()
                for meta in page:
                    yield File(meta["path"], meta["size"], meta["e_tag"])

    def download(self, file: File, target: Path) -> None:
        """Write a file to `target`, all of it in the state in which it was found.

        Raises:
            StoreUnavailable: the store does not answer, or the file has changed meanwhile.
            GivenUp: nobody waits for it any more.
        """
        with target.open("wb") as copy:
            for part in self.read(file):
                copy.write(part)

    def read(self, file: File) -> Iterator[bytes]:
        """Read a file part by part, all of it in the state in which it was found.

        Raises:
            StoreUnavailable: the store does not answer, or the file has changed meanwhile.
        """
        for start in range(0, file.size_bytes, _RANGE_BYTES):
            end = min(start + _RANGE_BYTES, file.size_bytes)
            with self._errors():
                try:
                    data = wait_for(partial(self._read_range, file, start, end))
                except (PreconditionError, FileNotFoundError) as error:
                    message = f"{self.url}/{file.key} changed while it was read: try again"
                    raise StoreUnavailable(message) from error
            yield data

    async def _read_range(self, file: File, start: int, end: int) -> bytes:
        options: GetOptions = {"range": (start, end), "if_match": file.tag}
        part = await obstore.get_async(self._store, file.key, options=options)
        return bytes(await part.bytes_async())

    def upload(self, source: Path, key: str) -> None:
        """Write a file completely or not at all. Raises `StoreUnavailable` if it cannot."""
        with self._errors():
            obstore.put(self._store, key, source, max_concurrency=_MAX_PARTS_AT_ONCE)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files, ignoring missing ones. Raises `StoreUnavailable` if it cannot."""
        with self._errors():
            obstore.delete(self._store, keys)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreUnavailable(
                f"{self.url} refuses the server's credentials: set AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL for it, and check its policy"
            ) from error
        except BaseError as error:
            log.warning("%s: %s", self.url, _first_line(error))
            raise StoreUnavailable(
                f"{self.url} cannot be reached: check AWS_ENDPOINT_URL, AWS_REGION, the "
                "credentials and the connection (the server's log has the cause), then try again"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
