"""The content-addressed folder: it keeps an adapter's files under the digest of their content.

A directory is written elsewhere, flushed to disk and then renamed, so it appears as a whole. It is
read-only afterwards and never changes: the path of a digest always holds the same bytes. If an
origin is set, the origin has all files, and this folder is its cache.
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
from weakref import WeakValueDictionary

from adapters_registry.content.adapter_files import (
    digest_of,
    fsync_directory,
    make_durable,
    size_of,
)
from adapters_registry.content.disk_budget import DiskBudget
from adapters_registry.content.origin import Origin
from adapters_registry.content.stopping import holding
from adapters_registry.errors import ContentUnavailable, InsufficientStorage

_FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class ContentStore:
    """Immutable adapter directories below `root`. Only one process uses the folder at a time."""

    def __init__(
        self,
        root: Path,
        *,
        budget_bytes: int | None = None,
        origin: Origin | None = None,
        on_evict: Callable[[], object] = lambda: None,
    ) -> None:
        """Open the folder at `root`, which is created if it does not exist.

        `budget_bytes` bounds the sum of what is kept and what is being written. With None only the
        disk is a bound. `on_evict` is called for each digest that is evicted to make room.
        """
        self.root, self.origin = root, origin
        self._on_evict = on_evict
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self.budget = DiskBudget(budget_bytes, _measure(root / "sha256"))
        self._holds: Counter[str] = Counter()
        self._sound: set[str] = set()
        """Digests whose files were compared with them since the start."""
        self._fetches: WeakValueDictionary[str, _Fetch] = WeakValueDictionary()

    def path(self, digest: str) -> Path:
        """Return the path of a digest's directory. It may not exist."""
        return directory_of(self.root, digest)

    def has(self, digest: str) -> bool:
        """Return whether the files of a digest should be here. This does not ask the disk."""
        return self.budget.kept_bytes(digest) > 0

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every digest that is here, the least recently used first."""
        with self._lock:
            return self.budget.kept()

    def num_bytes(self) -> int:
        """Return the bytes of everything that is kept here."""
        with self._lock:
            return self.budget.kept_in_all()

    # --- writing ---

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Make a scratch directory on the same file system, and remove it at the end.

        Raises:
            InsufficientStorage: the disk was full for something done within the context.
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
                "collect their files (`POST /admin/garbage`)"
            ) from error
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            with self._lock:
                self.budget.release(directory)

    def clear_staging(self) -> None:
        """Remove what a crash left half written. Call it only at start, before the first write."""
        for leftover in self._staging.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)

    def reserve(self, staged: Path, num_bytes: int) -> None:
        """Reserve bytes of the budget for a staging directory, in place of what it had.

        With an origin, the least recently used files that nothing holds are evicted to make room,
        because they can be fetched again.

        Raises:
            InsufficientStorage: the budget has no room.
            StoreUnavailable: the origin does not answer.
        """
        while not self._try_to_reserve(staged, num_bytes):
            if not self._evict():
                raise self.budget.exceeded(num_bytes)

    def seal(self, staged: Path) -> tuple[str, int]:
        """Flush staged files to disk. Returns their digest, and their size in bytes.

        Raises:
            FileNotFoundError: one of the two files is missing.
        """
        digest, size_bytes = make_durable(staged)
        if self.path(digest).is_dir() and not self.is_sound(digest):
            log.error("content sha256:%s was damaged and is replaced", digest[:12])
            self._remove(digest)
        return digest, size_bytes

    def publish(self, staged: Path, digest: str) -> None:
        """Move a sealed directory to its digest's path. If the path exists, it stays as it is.

        The caller does this inside the transaction that records the version. A collection is a
        transaction too, so it sees both or neither.
        """
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        for parent in (self.root, target.parent.parent):
            fsync_directory(parent)
        with self._lock:
            if not target.is_dir():
                staged.rename(target)
                self._sound.add(digest)
            self.budget.keep(digest, size_of(target))
            self.budget.release(staged)
        fsync_directory(target.parent)

    # --- use ---

    def fetch(self, digest: str) -> Path:
        """Return the directory of a digest, fetched from the origin if needed.

        The files are compared with the digest at their first use after a start. Only calls for the
        same digest wait for one another.

        Raises:
            ContentUnavailable: the files are missing or damaged, and no origin has them.
            InsufficientStorage: there is no room for them, in the budget or on the disk.
            StoreUnavailable: the origin does not answer.
            GivenUp: nobody waits for the files any more; what had arrived is removed.
        """
        with self._one_at_a_time(digest):
            path = self.path(digest)
            if not path.is_dir() or not self.is_sound(digest):
                self._download(digest)
            with self._lock:
                self.budget.keep(digest, self.budget.kept_bytes(digest) or size_of(path))
            return path

    def hold(self, digest: str) -> None:
        """Protect a digest's directory from removal until `release` was called as many times."""
        with self._lock:
            self._holds[digest] += 1

    def release(self, digest: str) -> None:
        """Take back one call of `hold`."""
        with self._lock:
            self._holds[digest] -= 1
            if not self._holds[digest]:
                del self._holds[digest]

    @contextmanager
    def holding(self, digest: str) -> Iterator[Path]:
        """Fetch a directory and hold it within the context. Raises what `fetch` raises."""
        self.hold(digest)
        try:
            yield self.fetch(digest)
        finally:
            self.release(digest)

    def discard(self, digest: str) -> bool:
        """Remove a digest's directory unless it is held. Returns False if it is held."""
        return self._remove(digest, unless_held=True)

    def is_sound(self, digest: str) -> bool:
        """Whether the local files match the digest. They are read once after a start."""
        if digest not in self._sound:
            with suppress(OSError):
                if digest_of(self.path(digest))[0] == digest:
                    self._sound.add(digest)
        return digest in self._sound

    # --- inside ---

    def _download(self, digest: str) -> None:
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
                f"content sha256:{digest[:12]} is {state} on disk, and {self.origin.url} does "
                "not have it: register the same files again"
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
            return self.budget.reserve(staged, num_bytes)

    def _evict(self) -> bool:
        """Remove the least recently used files that the origin has. Returns False if none are."""
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
            self.budget.forget(digest)
            self._sound.discard(digest)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    @contextmanager
    def _one_at_a_time(self, digest: str) -> Iterator[None]:
        with self._lock:
            fetch = self._fetches.setdefault(digest, _Fetch())
        with holding(fetch.lock):
            yield


def directory_of(root: Path, digest: str) -> Path:
    """Return the path of a digest's directory in the folder of a store."""
    return root / "sha256" / digest[:2] / digest


class _Fetch:
    """The lock that callers share who want the same digest at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _measure(folder: Path) -> dict[str, int]:
    """Return the bytes of each digest that a folder holds, the oldest first."""
    directories = [directory for directory in folder.glob("??/*") if directory.is_dir()]
    directories.sort(key=lambda directory: directory.stat().st_mtime)
    return {directory.name: size_of(directory) for directory in directories}
