"""The content-addressed folder: an adapter's files under the digest of what they hold.

A directory appears whole or not at all (written aside, flushed to disk, renamed), is read-only
afterwards, and never changes: the path of a digest always holds the same bytes. Where there is an
origin, it has every content, and this folder is its cache.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from adapters_registry.content.adapter_files import (
    digest_of,
    fsync_directory,
    make_durable,
    size_of,
)
from adapters_registry.errors import ContentUnavailable, InsufficientStorage

if TYPE_CHECKING:
    from adapters_registry.content.origin import Origin


_MIB = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class ContentStore:
    """Immutable adapter directories below `root`; one process has the folder to itself."""

    def __init__(
        self,
        root: Path,
        *,
        budget_bytes: int | None = None,
        origin: Origin | None = None,
        on_evict: Callable[[], object] = lambda: None,
    ) -> None:
        """`budget_bytes` bounds what is kept and taken in together; None: the disk is the bound.

        `on_evict` is told of each content that makes room for another.
        """
        self.root, self.origin = root, origin
        self._budget_bytes, self._on_evict = budget_bytes, on_evict
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._sizes = _measure(root / "sha256")
        """Bytes by digest, the least recently used first."""
        self._reserved: dict[Path, int] = {}
        self._holds: Counter[str] = Counter()
        self._sound: set[str] = set()
        """Digests that were checked since the start."""
        self._fetches: WeakValueDictionary[str, _Fetch] = WeakValueDictionary()

    def path(self, digest: str) -> Path:
        """Where the content of a digest is, or would be."""
        return self.root / "sha256" / digest[:2] / digest

    def sizes(self) -> dict[str, int]:
        """Every digest that is here, and its bytes."""
        with self._lock:
            return dict(self._sizes)

    # --- taking in ---

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A scratch directory for one intake, on the same file system; gone afterwards.

        Raises:
            InsufficientStorage: the disk is full, whatever in the body of the context found it so.
        """
        directory = self._staging / uuid.uuid4().hex
        try:
            directory.mkdir()
            yield directory
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise InsufficientStorage(
                "the disk of LORAPLEX_DATA_DIR is full: free space there, or retire versions and "
                "run `loraplex registry gc` with the server stopped"
            ) from error
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            with self._lock:
                self._reserved.pop(directory, None)

    def clear_staging(self) -> None:
        """Remove what intakes cut off by a crash have left; only at start, before any intake."""
        for leftover in self._staging.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)

    def reserve(self, staged: Path, num_bytes: int) -> None:
        """Set bytes of the budget aside for a staging directory, in place of what it had.

        Where there is an origin, content that is least recently used, and that nobody holds, makes
        room: it can be fetched again.

        Raises:
            InsufficientStorage: the budget has no room.
            StoreUnavailable: the origin doesn't answer.
        """
        while not self._try_to_reserve(staged, num_bytes):
            assert self._budget_bytes is not None
            if num_bytes > self._budget_bytes or not self._evict():
                raise InsufficientStorage(
                    f"{num_bytes / _MIB:.1f} MiB more don't fit the disk budget of "
                    f"{self._budget_bytes / _MIB:.0f} MiB: retire versions that aren't needed, or "
                    "raise LORAPLEX_DISK_BUDGET_GIB"
                )

    def seal(self, staged: Path) -> tuple[str, int]:
        """Make staged files durable, here and in the origin; their digest, and size in bytes.

        Raises:
            FileNotFoundError: one of the two files isn't there.
            StoreUnavailable: the origin doesn't answer.
        """
        digest, size_bytes = make_durable(staged)
        if self.path(digest).is_dir() and not self.is_sound(digest):
            log.error("content sha256:%s was damaged and is replaced", digest[:12])
            self._remove(digest)
        if self.origin:
            self.origin.put(digest, staged)
        return digest, size_bytes

    def publish(self, staged: Path, digest: str) -> None:
        """Move a sealed directory to its digest's path; content that is there already stays.

        Called inside the transaction that records the version: a collection, which is one too,
        sees both or neither.
        """
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        for parent in (self.root, target.parent.parent):
            fsync_directory(parent)
        with self._lock:
            if not target.is_dir():
                staged.rename(target)
                self._sound.add(digest)
            self._sizes[digest] = size_of(target)
            self._reserved.pop(staged, None)
        fsync_directory(target.parent)

    # --- use ---

    def fetch(self, digest: str) -> Path:
        """The directory of a digest, checked against it; brought from the origin where needed.

        Each content is checked at its first use after a start. Calls for the same digest wait for
        one another, those for others don't.

        Raises:
            ContentUnavailable: it is gone or damaged, and there is no origin that has it.
            InsufficientStorage: no room for it, within the budget or on the disk.
            StoreUnavailable: the origin doesn't answer.
        """
        with self._one_at_a_time(digest):
            path = self.path(digest)
            if not path.is_dir() or not self.is_sound(digest):
                self._bring(digest)
            with self._lock:
                self._sizes[digest] = self._sizes.pop(digest, 0) or size_of(path)
            return path

    def hold(self, digest: str) -> None:
        """Keep a digest's directory from being removed, until as many calls of `release`."""
        with self._lock:
            self._holds[digest] += 1

    def release(self, digest: str) -> None:
        """Give up one hold."""
        with self._lock:
            self._holds[digest] -= 1
            if not self._holds[digest]:
                del self._holds[digest]

    @contextmanager
    def holding(self, digest: str) -> Iterator[Path]:
        """`fetch` a directory and hold it meanwhile; errors as in `fetch`."""
        self.hold(digest)
        try:
            yield self.fetch(digest)
        finally:
            self.release(digest)

    def discard(self, digest: str) -> bool:
        """Remove a digest's directory, unless somebody holds it; say whether it is gone."""
        return self._remove(digest, unless_held=True)

    def is_sound(self, digest: str) -> bool:
        """Whether the files that are here have the digest; read once since the start."""
        if digest not in self._sound:
            with suppress(OSError):
                if digest_of(self.path(digest))[0] == digest:
                    self._sound.add(digest)
        return digest in self._sound

    # --- within ---

    def _bring(self, digest: str) -> None:
        state = "damaged" if self.path(digest).is_dir() else "missing"
        is_new_here = state == "missing" and self.origin is not None
        level = logging.INFO if is_new_here else logging.ERROR
        log.log(level, "content sha256:%s is %s on disk", digest[:12], state)
        if self.origin is None:
            raise ContentUnavailable(
                f"content sha256:{digest[:12]} is {state} on disk: register the same files again, "
                "or restore LORAPLEX_DATA_DIR; `loraplex registry verify` lists all such content"
            )
        size_bytes = self.origin.size_of(digest)
        if size_bytes is None:
            raise ContentUnavailable(
                f"content sha256:{digest[:12]} is {state} on disk, and {self.origin.url} hasn't "
                "got it: register the same files again"
            )
        with self.staging() as staged:
            self.reserve(staged, size_bytes)
            self.origin.get(digest, staged)
            if make_durable(staged)[0] != digest:
                raise ContentUnavailable(
                    f"content sha256:{digest[:12]} is damaged in {self.origin.url}: delete it "
                    "there and register the same files again"
                )
            self._remove(digest)
            self.publish(staged, digest)

    def _try_to_reserve(self, staged: Path, num_bytes: int) -> bool:
        with self._lock:
            others = sum(self._reserved.values()) - self._reserved.get(staged, 0)
            used = sum(self._sizes.values()) + others
            if self._budget_bytes is not None and used + num_bytes > self._budget_bytes:
                return False
            self._reserved[staged] = num_bytes
            return True

    def _evict(self) -> bool:
        """Remove the least recently used content that the origin has, if any can go."""
        if self.origin is None:
            return False
        evicted = any(
            self.origin.size_of(digest) is not None and self.discard(digest)
            for digest in self.sizes()
            if not self._holds[digest]
        )
        if evicted:
            self._on_evict()
        return evicted

    def _remove(self, digest: str, *, unless_held: bool = False) -> bool:
        aside = self._staging / uuid.uuid4().hex
        with self._lock:
            if unless_held and self._holds[digest]:
                return False
            with suppress(FileNotFoundError):
                self.path(digest).rename(aside)
            self._sizes.pop(digest, None)
            self._sound.discard(digest)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    @contextmanager
    def _one_at_a_time(self, digest: str) -> Iterator[None]:
        with self._lock:
            fetch = self._fetches.setdefault(digest, _Fetch())
        with fetch.lock:
            yield


class _Fetch:
    """Those who want the same digest at a time share one; it goes with the last of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _measure(folder: Path) -> dict[str, int]:
    """Bytes by digest of what a folder holds, the oldest first."""
    directories = [directory for directory in folder.glob("??/*") if directory.is_dir()]
    directories.sort(key=lambda directory: directory.stat().st_mtime)
    return {directory.name: size_of(directory) for directory in directories}
