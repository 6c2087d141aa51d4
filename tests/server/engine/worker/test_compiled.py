"""How compiled kernels are loaded. What they compute is tested beside their sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.worker.compiled import KernelUnavailable, compile_library


def test_no_folder_must_allow_executing_and_libraries_stay_apart(tmp_path: Path) -> None:
    sources = [tmp_path / "one.c", tmp_path / "two.c"]
    for number, source in enumerate(sources, 1):
        source.write_text(f"int number(void) {{ return {number}; }}")
    try:
        libraries = [compile_library(source)[1] for source in sources]
    except KernelUnavailable:
        pytest.skip("there is no C compiler")
    assert [library.number() for library in libraries] == [1, 2]
    assert "memfd:loraplex-kernel" in Path("/proc/self/maps").read_text()
