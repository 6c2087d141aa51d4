from collections.abc import Iterator

import pytest

from tests.real_engine.running_server import RunningServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The one engine that the tests of answers share."""
    server = RunningServer(tmp_path_factory.mktemp("shared") / "var", "--demo")
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
