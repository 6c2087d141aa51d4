import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from adapters_registry.content.adapter_files import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import InsufficientStorage, SourceRefused
from adapters_registry.sources import Access, find_source
from adapters_registry.sources.local import find_local
from adapters_registry.sources.source import PICKLE_FILE
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
    found = find_source(str(source), Access((source.parent,), MIB))
    assert found.name == str(source)
    assert found.size_bytes == sum((source / name).stat().st_size for name in ADAPTER_FILES)
    assert not list(staged.iterdir())
    found.stage(staged)
    assert sorted(f.name for f in staged.iterdir()) == sorted([CONFIG_FILE, WEIGHTS_FILE])
    for name in ADAPTER_FILES:
        assert (staged / name).read_bytes() == (source / name).read_bytes()


def test_outside_the_roots(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    source = make_adapter()
    root = tmp_path / "root"
    root.mkdir()
    for path in (source, root / ".." / source.name, root / "a" / ".." / ".." / source.name):
        with pytest.raises(SourceRefused, match="LORAPLEX_LOCAL_ROOTS"):
            find_local(str(path), (root,))


def test_a_link_out_of_the_root(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    source, root = make_adapter(), tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(source)
    with pytest.raises(SourceRefused, match="LORAPLEX_LOCAL_ROOTS"):
        find_local(str(root / "link"), (root,))


def test_a_snapshot_in_the_hubs_cache(
    make_adapter: AdapterFactory, tmp_path: Path, staged: Path
) -> None:
    """Its files are links to `blobs`, below the same root."""
    adapter, root = make_adapter(), tmp_path / "root"
    cache = root / "models--acme--home"
    snapshot, blobs = cache / "snapshots" / "0123abcd", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(ADAPTER_FILES):
        (blobs / str(number)).write_bytes((adapter / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    find_local(str(snapshot), (tmp_path / "another", root)).stage(staged)
    assert (staged / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()


def test_a_link_that_leaves_the_root(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    source, elsewhere = make_adapter(), tmp_path / "another"
    elsewhere.mkdir()
    weights = source / WEIGHTS_FILE
    weights.rename(elsewhere / "weights")
    weights.symlink_to(elsewhere / "weights")
    with pytest.raises(SourceRefused, match="leaves LORAPLEX_LOCAL_ROOTS: copy the file itself"):
        find_local(str(source), (source, elsewhere))


def test_a_file_that_becomes_a_link_before_it_is_read(
    make_adapter: AdapterFactory, staged: Path
) -> None:
    source = make_adapter()
    found = find_local(str(source), (source.parent,))
    (source / WEIGHTS_FILE).unlink()
    (source / WEIGHTS_FILE).symlink_to("/etc/passwd")
    with pytest.raises(SourceRefused, match="leaves LORAPLEX_LOCAL_ROOTS"):
        found.stage(staged)


def test_a_folder_that_becomes_a_link_before_it_is_read(
    make_adapter: AdapterFactory, staged: Path, tmp_path: Path
) -> None:
    root, other = make_adapter().rename(tmp_path / "root"), make_adapter(seed=2)
    (root / "adapter").mkdir()
    for name in ADAPTER_FILES:
        (root / name).rename(root / "adapter" / name)
    found = find_local(str(root / "adapter"), (root,))
    (root / "adapter").rename(tmp_path / "away")
    (root / "adapter").symlink_to(other)
    with pytest.raises(SourceRefused, match="leaves LORAPLEX_LOCAL_ROOTS"):
        found.stage(staged)


def test_adapters_in_subfolders_are_named(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for step in (1000, 500):
        make_adapter(seed=step).rename(run / f"checkpoint-{step}")
    with pytest.raises(SourceRefused, match=r"did you mean .*/checkpoint-500 or .*-1000\?"):
        find_local(str(run), (tmp_path,))


def test_a_lone_pickle_is_refused_with_the_command_that_converts_it(
    make_adapter: AdapterFactory,
) -> None:
    source = make_adapter()
    expected = load_file(source / WEIGHTS_FILE)
    torch.save(
        {key: torch.from_numpy(value) for key, value in expected.items()}, source / PICKLE_FILE
    )
    (source / WEIGHTS_FILE).unlink()
    with pytest.raises(SourceRefused, match="a pickle can hold any code") as refusal:
        find_local(str(source), (source.parent,))
    _, _, command = str(refusal.value).partition("converts it: python ")
    subprocess.run([sys.executable, *shlex.split(command)], cwd=source, check=True)
    found = load_file(source / WEIGHTS_FILE)
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in expected)
    find_local(str(source), (source.parent,))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_changes_before_it_is_read(
    make_adapter: AdapterFactory, staged: Path, change: int
) -> None:
    source = make_adapter()
    found = find_local(str(source), (source.parent,))
    weights = source / WEIGHTS_FILE
    os.truncate(weights, weights.stat().st_size + change)
    with pytest.raises(SourceRefused, match="changed while it was read"):
        found.stage(staged)


def test_a_pipe_is_refused_without_waiting(make_adapter: AdapterFactory) -> None:
    source = make_adapter()
    (source / WEIGHTS_FILE).unlink()
    os.mkfifo(source / WEIGHTS_FILE)
    with pytest.raises(SourceRefused, match="not a regular file"):
        find_local(str(source), (source.parent,))


def test_missing_file_size_roots_and_scheme(make_adapter: AdapterFactory) -> None:
    source = make_adapter()
    root = (source.parent,)
    with pytest.raises(SourceRefused, match=r"over the limit .*LORAPLEX_MAX_ADAPTER_MIB"):
        find_source(str(source), Access(root, 10))
    with pytest.raises(SourceRefused, match="set LORAPLEX_LOCAL_ROOTS"):
        find_local(str(source), ())
    with pytest.raises(SourceRefused, match="is not supported: give a path, hf://"):
        find_source("ftp://host/adapter", Access(root, MIB))
    (source / WEIGHTS_FILE).unlink()
    with pytest.raises(SourceRefused, match="is missing"):
        find_local(str(source), root)
    with pytest.raises(SourceRefused, match="cannot be read"):
        find_local(f"{source.parent}/{'x' * 300}", root)
    with pytest.raises(SourceRefused, match="cannot be read"):
        find_local("nul\0byte", root)


def test_a_disk_that_fills_while_copying(
    make_adapter: AdapterFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_adapter()
    found, store = find_local(str(source), (source.parent,)), ContentStore(tmp_path / "content")
    opened = Path.open

    class FullFile:
        def __enter__(self) -> "FullFile":
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        return FullFile() if mode == "wb" else opened(self, mode, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(InsufficientStorage, match="is full: free space"), store.staging() as staged:
        found.stage(staged)
    assert not list((store.root / "staging").iterdir())
