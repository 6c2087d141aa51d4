"""A repository of the real registry for each test, and what an adapter's files are."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from adapters_registry.content.adapter_files import ADAPTER_FILES
from adapters_registry.sources import Access
from tests.adapters_registry.sources.oci.packing import MIB
from tests.oci_server import OciServer
from tests.tiny import AdapterFactory


@pytest.fixture
def repository() -> str:
    return f"models/{uuid.uuid4().hex}"


@pytest.fixture
def access(oci_server: OciServer) -> Access:
    return Access((), MIB, (oci_server.url,))


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    directory = tmp_path / "staged"
    directory.mkdir()
    return directory


@pytest.fixture
def files(make_adapter: AdapterFactory) -> dict[str, bytes]:
    adapter = make_adapter()
    return {name: (adapter / name).read_bytes() for name in ADAPTER_FILES}
