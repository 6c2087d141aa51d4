"""How compiled kernels are kept and loaded. What they compute is tested beside their sources."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.engine.worker import compiled
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


def test_kernels_of_another_release_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.c").write_text("int number(void) { return 1; }")
    monkeypatch.setattr(compiled, "_WORKERS", tmp_path)
    monkeypatch.setattr(compiled, "_AT_IMPORT", compiled._digest_of_sources())
    compile_library.cache_clear()
    try:
        compile_library(tmp_path / "rows.c")
    except KernelUnavailable:
        pytest.skip("there is no C compiler")
    compile_library.cache_clear()
    (tmp_path / "rows.h").write_text("/* of the next release */")
    with pytest.raises(KernelUnavailable, match="restart the server"):
        compile_library(tmp_path / "rows.c")


class Starts:
    """The starts of processes that load one small library, and how often it was compiled."""

    def __init__(self, folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.source, self.num_compiled = folder, source, 0
        run = subprocess.run

        def counted(*arguments: Any, **options: Any) -> Any:
            self.num_compiled += 1
            return run(*arguments, **options)

        monkeypatch.setattr(subprocess, "run", counted)

    def start(self) -> int:
        """Load the library as a new process does, and return what its function returns."""
        compile_library.cache_clear()
        return int(compile_library(self.source)[1].number())

    @property
    def kept(self) -> Path:
        (file,) = self.folder.iterdir()
        return file


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Starts of which the first has kept what it compiled."""
    monkeypatch.setenv("_LORAPLEX_KERNEL_CACHE", str(tmp_path / "cache" / "kernels"))
    source = tmp_path / "one.c"
    source.write_text("int number(void) { return 1; }")
    starts = Starts(tmp_path / "cache" / "kernels", source, monkeypatch)
    try:
        assert starts.start() == 1
    except KernelUnavailable:
        pytest.skip("there is no C compiler")
    return starts


def test_the_second_start_compiles_nothing(starts: Starts) -> None:
    assert starts.start() == 1
    assert starts.num_compiled == 1


def test_other_sources_flags_or_processors_are_compiled(
    starts: Starts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts.source.write_text("int number(void) { return 2; }")
    assert starts.start() == 2
    monkeypatch.setattr(compiled, "_FLAGS", (*compiled._FLAGS, "-g0"))
    starts.start()
    (tmp_path / "cpuinfo").write_text("flags\t: fpu avx2\n\nflags\t: fpu avx2\n")
    monkeypatch.setattr(compiled, "_PROCESSORS", tmp_path / "cpuinfo")
    starts.start()
    assert starts.num_compiled == 4


@pytest.mark.parametrize("fault", ["damaged", "others may write it", "others may write its folder"])
def test_a_kept_library_that_cannot_be_trusted_is_compiled_again(
    starts: Starts, fault: str
) -> None:
    kept = starts.kept
    if fault == "damaged":
        kept.write_bytes(kept.read_bytes()[:1000])
    else:
        (kept if fault == "others may write it" else starts.folder).chmod(0o777)
    assert starts.start() == 1
    assert starts.num_compiled == 2


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    starts: Starts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("_LORAPLEX_KERNEL_CACHE", str(tmp_path / "file" / "kernels"))
    assert starts.start() == 1
