"""The budget of a folder in bytes, for what it keeps and for what is being written to it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from adapters_registry.errors import InsufficientStorage

_MIB = 1 << 20


class DiskBudget:
    """Bytes by digest, the least recently used first, and bytes that are reserved.

    It does no I/O and takes no lock. Its owner calls it while it holds its own lock.
    """

    def __init__(self, limit_bytes: int | None, kept: Mapping[str, int]) -> None:
        """`limit_bytes` is None if only the disk is a bound. `kept` is what is there already."""
        self.limit_bytes = limit_bytes
        self._kept = dict(kept)
        self._reserved: dict[Hashable, int] = {}
        self._num_bytes = sum(self._kept.values())

    def kept(self) -> dict[str, int]:
        """Return the bytes of each digest, the least recently used first."""
        return dict(self._kept)

    def kept_in_all(self) -> int:
        """Return the bytes of all digests, without what is reserved."""
        return self._num_bytes - sum(self._reserved.values())

    def kept_bytes(self, digest: str) -> int:
        """Return the bytes of a digest, 0 if it is not kept."""
        return self._kept.get(digest, 0)

    def reserve(self, holder: Hashable, num_bytes: int) -> bool:
        """Reserve bytes for a holder, in place of what it had. Returns False if they do not fit.

        Raises:
            InsufficientStorage: they are more than the whole budget.
        """
        more = num_bytes - self._reserved.get(holder, 0)
        if self.limit_bytes is not None and self._num_bytes + more > self.limit_bytes:
            if num_bytes > self.limit_bytes:
                raise self.exceeded(num_bytes)
            return False
        self._num_bytes += more
        self._reserved[holder] = num_bytes
        return True

    def release(self, holder: Hashable) -> None:
        """Give back what a holder has reserved, if it has anything."""
        self._num_bytes -= self._reserved.pop(holder, 0)

    def keep(self, digest: str, size_bytes: int) -> None:
        """Count a digest as kept and as the most recently used one."""
        self.forget(digest)
        self._kept[digest] = size_bytes
        self._num_bytes += size_bytes

    def forget(self, digest: str) -> None:
        """Stop counting a digest."""
        self._num_bytes -= self._kept.pop(digest, 0)

    def exceeded(self, num_bytes: int) -> InsufficientStorage:
        """Return the error for `num_bytes` that do not fit."""
        return InsufficientStorage(
            f"{num_bytes / _MIB:.1f} MiB more do not fit the disk budget of "
            f"{(self.limit_bytes or 0) / _MIB:.0f} MiB: retire versions that are not needed, or "
            "raise LORAPLEX_DISK_BUDGET_GIB"
        )
