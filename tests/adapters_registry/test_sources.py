from pathlib import Path

import pytest

from adapters_registry.content import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import SourceRefused
from adapters_registry.sources import stage_local_path
from tests.tiny import AdapterFactory

MIB = 1 << 20


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    directory = tmp_path / "staged"
    directory.mkdir()
    return directory


def test_copies_the_two_files_only(make_adapter: AdapterFactory, staged: Path) -> None:
    source = make_adapter()
    (source / "evil.py").write_text("import os")
    stage_local_path(str(source), (source.parent,), staged, MIB)
    assert sorted(f.name for f in staged.iterdir()) == sorted([CONFIG_FILE, WEIGHTS_FILE])


def test_outside_the_roots(make_adapter: AdapterFactory, staged: Path, tmp_path: Path) -> None:
    source = make_adapter()
    root = tmp_path / "root"
    root.mkdir()
    for path in (source, root / ".." / source.name):
        with pytest.raises(SourceRefused, match="LORAPLEX_LOCAL_ROOTS"):
            stage_local_path(str(path), (root,), staged, MIB)


def test_a_link_out_of_the_root(make_adapter: AdapterFactory, staged: Path, tmp_path: Path) -> None:
    source, root = make_adapter(), tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(source)
    with pytest.raises(SourceRefused, match="LORAPLEX_LOCAL_ROOTS"):
        stage_local_path(str(root / "link"), (root,), staged, MIB)


def test_a_linked_file(make_adapter: AdapterFactory, staged: Path) -> None:
    source = make_adapter()
    weights = source / WEIGHTS_FILE
    weights.rename(source / "elsewhere")
    weights.symlink_to(source / "elsewhere")
    with pytest.raises(SourceRefused, match="link"):
        stage_local_path(str(source), (source.parent,), staged, MIB)


def test_missing_file_size_roots_and_scheme(make_adapter: AdapterFactory, staged: Path) -> None:
    source = make_adapter()
    root = (source.parent,)
    with pytest.raises(SourceRefused, match="over the limit"):
        stage_local_path(str(source), root, staged, 10)
    with pytest.raises(SourceRefused, match="set LORAPLEX_LOCAL_ROOTS"):
        stage_local_path(str(source), (), staged, MIB)
    with pytest.raises(SourceRefused, match="isn't supported"):
        stage_local_path("ftp://host/adapter", root, staged, MIB)
    (source / WEIGHTS_FILE).unlink()
    with pytest.raises(SourceRefused, match="is missing"):
        stage_local_path(str(source), root, staged, MIB)
    with pytest.raises(SourceRefused, match="can't be read"):
        stage_local_path(f"{source.parent}/{'x' * 300}", root, staged, MIB)
    with pytest.raises(SourceRefused, match="can't be read"):
        stage_local_path("nul\0byte", root, staged, MIB)
