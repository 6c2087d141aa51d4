import stat
from pathlib import Path

import pytest

from adapters_registry.content import ADAPTER_FILES, ContentStore, digest_of


def fill(directory: Path, text: str) -> None:
    for name in ADAPTER_FILES:
        (directory / name).write_text(f"{name} {text}")


def test_commit_moves_content_to_its_digest_read_only(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    with store.staging() as staged:
        fill(staged, "one")
        digest, size_bytes = store.commit(staged)
    assert digest_of(store.path(digest)) == (digest, size_bytes)
    for file in store.path(digest).iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o444


def test_same_content_is_kept_once_and_other_content_apart(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    digests = []
    for text in ("one", "one", "two"):
        with store.staging() as staged:
            fill(staged, text)
            digests.append(store.commit(staged)[0])
    assert digests[0] == digests[1] != digests[2]
    assert not list((tmp_path / "staging").iterdir())


def test_a_failed_upload_leaves_nothing(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    with store.staging() as staged:
        (staged / ADAPTER_FILES[0]).write_text("only one of two")
        with pytest.raises(FileNotFoundError):
            store.commit(staged)
    assert not list((tmp_path / "staging").iterdir())
    assert not (tmp_path / "sha256").exists()


def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    (tmp_path / "staging" / "cut-off").mkdir()
    store.clear_staging()
    assert not list((tmp_path / "staging").iterdir())


def test_files_of_equal_bytes_in_other_places_differ(tmp_path: Path) -> None:
    for directory, texts in (("x", ("ab", "c")), ("y", ("a", "bc"))):
        (tmp_path / directory).mkdir()
        for name, text in zip(ADAPTER_FILES, texts, strict=True):
            (tmp_path / directory / name).write_text(text)
    assert digest_of(tmp_path / "x") != digest_of(tmp_path / "y")
