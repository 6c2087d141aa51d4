"""A process's memory by what it is for, read from `/proc/PID/smaps`. Parsing is pure.

What fills once (a KV cache, kernels compiled while it runs) and what would leak (the heap) look
alike in a process's total.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEAP, LARGE, CODE, FILES, SHARED = (
    "heap",
    "large blocks",
    "code made at run time",
    "files",
    "shared memory",
)
KINDS = (HEAP, LARGE, CODE, FILES, SHARED)
LARGE_BYTES = 16 << 20
"""An anonymous mapping of so many bytes or more is a large block: weights and the KV cache."""
ARENA_BYTES = 64 << 20
"""glibc gives each thread's heap an aligned region of this size, of which the rest is reserved."""


@dataclass(frozen=True)
class Mapping:
    """One mapping of a process."""

    begin: int
    end: int
    rights: str
    name: str
    pss: int
    rss: int
    private: int
    """Bytes that only this process has."""


def mappings(smaps: str) -> Iterator[Mapping]:
    """Yield each mapping in the text of `smaps`."""
    head: list[str] = []
    sizes: Counter[str] = Counter()
    for line in smaps.splitlines():
        words = line.split(maxsplit=5)
        if words[0].endswith(":"):
            if words[-1] == "kB":
                sizes[words[0][:-1]] = int(words[1]) * 1024
            continue
        if head:
            yield _mapping(head, sizes)
        head, sizes = words, Counter()
    if head:
        yield _mapping(head, sizes)


def _mapping(head: list[str], sizes: Counter[str]) -> Mapping:
    begin, _, end = head[0].partition("-")
    return Mapping(
        int(begin, 16),
        int(end, 16),
        head[1],
        head[5] if len(head) > 5 else "",
        sizes["Pss"],
        sizes["Rss"],
        sizes["Private_Clean"] + sizes["Private_Dirty"],
    )


def kind_of(mapping: Mapping, reserved: set[int]) -> str:
    """Return what a mapping is for. `reserved` has where mappings without rights begin."""
    name = mapping.name
    if name.startswith(("/dev/shm/", "/memfd:", "/SYSV", "/dev/zero")):
        return SHARED
    if name.startswith("/"):
        return FILES
    if "x" in mapping.rights:
        return CODE
    is_arena = mapping.begin % ARENA_BYTES == 0 and mapping.end in reserved
    if not name and not is_arena and mapping.end - mapping.begin >= LARGE_BYTES:
        return LARGE
    return HEAP


@dataclass(frozen=True)
class Memory:
    """What a process takes, in bytes."""

    pss: int
    rss: int
    private: Counter[str]
    """What only this process has, by kind."""


def memory_of(smaps: str) -> Memory:
    """Add up the mappings in the text of `smaps`."""
    found = list(mappings(smaps))
    reserved = {each.begin for each in found if each.rights.startswith("---")}
    private = Counter(dict.fromkeys(KINDS, 0))
    for each in found:
        private[kind_of(each, reserved)] += each.private
    return Memory(sum(each.pss for each in found), sum(each.rss for each in found), private)


def read_memory(pid: int) -> Memory:
    """Return what a process takes now. Raises `OSError` if it has ended."""
    return memory_of(Path(f"/proc/{pid}/smaps").read_text())
