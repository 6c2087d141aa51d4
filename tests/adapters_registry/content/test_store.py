import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters_registry.content.adapter_files import ADAPTER_FILES, WEIGHTS_FILE, digest_of
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import ContentUnavailable, InsufficientStorage


def fill(directory: Path, text: str) -> None:
    for name in ADAPTER_FILES:
        (directory / name).write_text(f"{name} {text}")


def put(store: ContentStore, text: str) -> str:
    with store.staging() as staged:
        fill(staged, text)
        digest, size_bytes = store.seal(staged)
        store.reserve(staged, size_bytes)
        store.publish(staged, digest)
    return digest


def damage(store: ContentStore, digest: str) -> None:
    file = store.path(digest) / WEIGHTS_FILE
    file.chmod(0o644)
    file.write_text("bit rot")


def assert_nothing_staged(store: ContentStore) -> None:
    assert not list((store.root / "staging").iterdir())


def test_content_is_at_its_digest_read_only(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    with store.staging() as staged:
        fill(staged, "one")
        (staged / "stranger.py").write_text("import os")
        (staged / "folder").mkdir()
        digest, size_bytes = store.seal(staged)
        assert not store.path(digest).exists()
        store.publish(staged, digest)
    assert digest_of(store.path(digest)) == (digest, size_bytes)
    files = list(store.path(digest).iterdir())
    assert sorted(file.name for file in files) == sorted(ADAPTER_FILES)
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o444
    assert store.sizes() == ContentStore(tmp_path).sizes() == {digest: size_bytes}


def test_same_content_is_kept_once_and_other_content_apart(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    digests = [put(store, text) for text in ("one", "one", "two")]
    assert digests[0] == digests[1] != digests[2]
    assert list(store.sizes()) == [digests[0], digests[2]]
    assert_nothing_staged(store)


def test_a_failed_upload_leaves_nothing(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    with store.staging() as staged:
        (staged / ADAPTER_FILES[0]).write_text("only one of two")
        with pytest.raises(FileNotFoundError):
            store.seal(staged)
    assert_nothing_staged(store)
    assert not (tmp_path / "sha256").exists()


def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    (tmp_path / "staging" / "cut-off").mkdir()
    store.clear_staging()
    assert_nothing_staged(store)


def test_files_of_equal_bytes_in_other_places_differ(tmp_path: Path) -> None:
    for directory, texts in (("x", ("ab", "c")), ("y", ("a", "bc"))):
        (tmp_path / directory).mkdir()
        for name, text in zip(ADAPTER_FILES, texts, strict=True):
            (tmp_path / directory / name).write_text(text)
    assert digest_of(tmp_path / "x") != digest_of(tmp_path / "y")


# --- use ---


def test_content_is_checked_at_its_first_use_after_a_start(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    digest = put(store, "one")
    assert store.fetch(digest) == store.path(digest)
    damage(store, digest)
    with pytest.raises(ContentUnavailable, match=r"damaged on disk: register the same files again"):
        ContentStore(tmp_path).fetch(digest)


def test_missing_content(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    with pytest.raises(ContentUnavailable, match="missing on disk"):
        store.fetch("ab" * 32)
    (store.path("cd" * 32)).mkdir(parents=True)
    with pytest.raises(ContentUnavailable, match="damaged on disk"):
        store.fetch("cd" * 32)


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_registering_the_same_files_again_mends_it(tmp_path: Path, harm: str) -> None:
    digest = put(ContentStore(tmp_path), "one")
    store = ContentStore(tmp_path)
    if harm == "damaged":
        damage(store, digest)
    else:
        store.discard(digest)
    assert put(store, "one") == digest
    assert digest_of(store.fetch(digest))[0] == digest


def test_what_somebody_holds_is_not_removed(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    digest = put(store, "one")
    store.hold(digest)
    with store.holding(digest):
        assert not store.discard(digest)
    assert not store.discard(digest)
    store.release(digest)
    assert store.discard(digest)
    assert not store.path(digest).exists()
    assert store.sizes() == {}
    assert_nothing_staged(store)


# --- the budget ---


def test_the_budget_counts_what_is_kept_and_what_comes_in(tmp_path: Path) -> None:
    size = len("".join(ADAPTER_FILES)) + 2 * len(" one")
    store = ContentStore(tmp_path, budget_bytes=2 * size)
    first = put(store, "one")
    assert store.sizes() == {first: size}
    with store.staging() as coming:
        store.reserve(coming, size)
        store.reserve(coming, size)  # in place of the first, not on top of it
        with store.staging() as other, pytest.raises(InsufficientStorage, match="DISK_BUDGET_GIB"):
            store.reserve(other, 1)
    put(store, "two")
    with pytest.raises(InsufficientStorage):
        put(store, "six")
    assert_nothing_staged(store)
    assert len(store.sizes()) == 2
    assert store.discard(first)
    put(store, "six")


def test_what_was_there_at_the_start_counts(tmp_path: Path) -> None:
    digest = put(ContentStore(tmp_path), "one")
    store = ContentStore(tmp_path, budget_bytes=100)
    assert list(store.sizes()) == [digest]
    with pytest.raises(InsufficientStorage):
        put(store, "two")


def test_many_threads_stay_within_the_budget(tmp_path: Path) -> None:
    size = len("".join(ADAPTER_FILES)) + 2 * len(" 00")
    store = ContentStore(tmp_path, budget_bytes=5 * size)

    def try_to_put(number: int) -> bool:
        try:
            put(store, f"{number:02}")
        except InsufficientStorage:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(try_to_put, range(40)))
    assert 1 <= taken <= 5
    assert sum(store.sizes().values()) == taken * size
    assert_nothing_staged(store)


# --- a full disk ---


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    store = ContentStore(tmp_path)
    kept = put(store, "one")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InsufficientStorage, match="is full: free space"):
            put(store, "two")
    assert_nothing_staged(store)
    assert digest_of(store.fetch(kept))[0] == kept
    assert list(store.sizes()) == [kept]
    put(store, "two")


def test_other_failures_of_the_disk_are_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ContentStore(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        put(store, "one")
    assert_nothing_staged(store)


def test_a_collection_and_a_hold_at_the_same_moment(tmp_path: Path) -> None:
    """Whoever comes first wins: what is held afterwards is there, or was seen to be gone."""
    store = ContentStore(tmp_path)
    for number in range(200):
        digest, barrier, found = put(store, str(number)), threading.Barrier(2), []

        def use(digest: str = digest, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            with store.holding(digest) as path:
                found.append(digest_of(path)[0])  # noqa: B023

        with ThreadPoolExecutor(1) as pool:
            used = pool.submit(use)
            barrier.wait()
            removed = store.discard(digest)
            error = used.exception()
        assert found == ([] if error else [digest])
        assert error is None or (removed and isinstance(error, ContentUnavailable))
