"""How a process's memory is told apart by what it is for."""

from __future__ import annotations

import mmap
import os

from tests.soak.memory import (
    CODE,
    FILES,
    HEAP,
    LARGE,
    LARGE_BYTES,
    SHARED,
    memory_of,
    read_memory,
)

MIB = 1 << 20


def entry(begin: int, size: int, rights: str, name: str = "", *, rss: int, shared: int = 0) -> str:
    """One entry of `smaps`. `shared` of `rss` bytes are shared by two processes."""
    head = f"{begin:x}-{begin + size:x} {rights} 00000000 00:00 0"
    kb = {
        "Size": size,
        "Rss": rss,
        "Pss": rss - shared // 2,
        "Shared_Dirty": shared,
        "Private_Clean": 0,
        "Private_Dirty": rss - shared,
    }
    lines = [f"{head:<72} {name}".rstrip()]
    lines += [f"{label}: {num_bytes // 1024:>10} kB" for label, num_bytes in kb.items()]
    return "\n".join([*lines, "THPeligible:           0", "VmFlags: rd wr mr mw me ac sd"])


def test_each_mapping_has_a_kind() -> None:
    arena = 64 * MIB * 7
    text = "\n".join(
        [
            entry(0x1000, MIB, "r-xp", "/usr/lib/libc.so.6", rss=MIB, shared=MIB),
            entry(0x400000, 2 * MIB, "rw-p", "[heap]", rss=2 * MIB),
            entry(0x900000, MIB, "r-xp", rss=MIB // 2),
            entry(arena, 32 * MIB, "rw-p", rss=3 * MIB),
            entry(arena + 32 * MIB, 32 * MIB, "---p", rss=0),
            entry(64 * MIB * 9, 48 * MIB, "rw-p", rss=40 * MIB),
            entry(64 * MIB * 11, 8 * MIB, "rw-p", rss=MIB),
            entry(64 * MIB * 12, 64 * MIB, "rw-s", "/dev/shm/ring (deleted)", rss=4 * MIB),
        ]
    )
    found = memory_of(text)
    assert found.private == {
        FILES: 0,
        HEAP: 6 * MIB,
        CODE: MIB // 2,
        LARGE: 40 * MIB,
        SHARED: 4 * MIB,
    }
    assert found.rss == sum(found.private.values()) + MIB
    assert found.pss == sum(found.private.values()) + MIB // 2


def test_a_block_counts_once_it_is_written() -> None:
    """The system may make one mapping of the block and a smaller neighbour, which then counts."""

    def large() -> int:
        return read_memory(os.getpid()).private[LARGE]

    before = large()
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        empty = large()
        for place in range(0, 40 * MIB, mmap.PAGESIZE):
            block[place] = 1
        written = large()
    assert empty - before < LARGE_BYTES
    assert 40 * MIB <= written - empty < 48 * MIB
