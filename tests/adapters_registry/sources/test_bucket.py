from pathlib import Path

import pytest

from adapters_registry.content.adapter_files import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.content.s3 import Bucket
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.sources import Access, find_source
from adapters_registry.sources.source import PICKLE_FILE
from tests.tiny import AdapterFactory


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    directory = tmp_path / "staged"
    directory.mkdir()
    return directory


def send(url: str, directory: Path) -> None:
    for name in ADAPTER_FILES:
        Bucket(url).upload(directory / name, name)


def test_the_two_files_below_a_prefix(
    s3: str, make_adapter: AdapterFactory, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "adapters_registry.content.s3._RANGE_BYTES", 1000
    )  # several requests a file
    adapter = make_adapter()
    send(s3, adapter)
    Bucket(s3).upload(adapter / CONFIG_FILE, "stranger.py")
    found = find_source(f"{s3}/", Access((), 1 << 20))
    assert found.size_bytes == sum((adapter / name).stat().st_size for name in ADAPTER_FILES)
    found.stage(staged)
    assert sorted(file.name for file in staged.iterdir()) == sorted(ADAPTER_FILES)
    for name in ADAPTER_FILES:
        assert (staged / name).read_bytes() == (adapter / name).read_bytes()
    with pytest.raises(SourceRefused, match="over the limit"):
        find_source(s3, Access((), 100))


def test_a_file_that_changes_while_it_is_read(
    s3: str, make_adapter: AdapterFactory, staged: Path
) -> None:
    send(s3, make_adapter(seed=1))
    found = find_source(s3, Access((), 1 << 20))
    send(s3, make_adapter(seed=2))
    with pytest.raises(StoreUnavailable, match="changed while it was read: try again"):
        found.stage(staged)


def test_a_file_that_is_missing(s3: str, make_adapter: AdapterFactory) -> None:
    with pytest.raises(SourceRefused, match=f"{CONFIG_FILE} is missing"):
        find_source(s3, Access((), 1 << 20))
    config = make_adapter() / CONFIG_FILE
    Bucket(s3).upload(config, f"checkpoint-500/{CONFIG_FILE}")
    with pytest.raises(SourceRefused, match=rf"did you mean {s3}/checkpoint-500\?"):
        find_source(s3, Access((), 1 << 20))
    Bucket(s3).upload(config, CONFIG_FILE)
    with pytest.raises(SourceRefused, match=f"{WEIGHTS_FILE} is missing: an adapter is"):
        find_source(s3, Access((), 1 << 20))
    Bucket(s3).upload(config, PICKLE_FILE)
    with pytest.raises(SourceRefused, match="converts it: python -c"):
        find_source(s3, Access((), 1 << 20))


@pytest.mark.parametrize(
    "url", ["s3://", "s3://UPPER/x", "s3:///x", "s3://bucket/../other", "s3://bucket/a/../../b"]
)
def test_urls_that_name_no_prefix(s3: str, url: str) -> None:
    with pytest.raises(SourceRefused, match=r"is not of the form s3://|cannot be used"):
        find_source(url, Access((), 1 << 20))


def test_wrong_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreUnavailable, match="refuses the server's credentials: set AWS_"):
        find_source(s3, Access((), 1 << 20))


def test_a_store_that_does_not_answer(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="cannot be reached: check AWS_ENDPOINT_URL"):
        find_source(s3, Access((), 1 << 20))


def test_an_upload_of_many_parts_arrives_whole(s3: str, tmp_path: Path) -> None:
    large, copy = tmp_path / "large", tmp_path / "copy"
    large.write_bytes(bytes(range(256)) * (1 << 16))  # 16 MiB; parts have 5
    bucket = Bucket(s3)
    bucket.upload(large, "large")
    file = bucket.find("large")
    assert file
    bucket.download(file, copy)
    assert copy.read_bytes() == large.read_bytes()
    assert [found.key for found in bucket.list()] == ["large"]
