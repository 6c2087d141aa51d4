"""Checks of ports and of the collector of traces."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.doctor import network
from server.doctor.finding import Severity
from server.process.data_dir import own_data_dir
from server.settings import Settings


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_free_ports(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=0, operations_port=0)
    assert [found.severity for found in network.check_ports(settings)] == [Severity.OK] * 2


def test_a_port_in_use(tmp_path: Path, listener: socket.socket) -> None:
    settings = Settings(data_dir=tmp_path, port=listener.getsockname()[1])
    (found,) = network.check_ports(settings)
    assert found.severity is Severity.PROBLEM
    assert found.text.startswith("LORAPLEX_PORT: cannot listen")
    assert "choose another" in found.text
    with own_data_dir(settings):
        (found,) = network.check_ports(settings)
    assert found.severity is Severity.OK
    assert "a server runs" in found.text


def test_a_collector_of_traces(listener: socket.socket) -> None:
    assert not list(network.check_traces(Settings()))
    endpoint = f"grpc://127.0.0.1:{listener.getsockname()[1]}"
    (found,) = network.check_traces(Settings(traces_endpoint=endpoint))
    assert found.severity is Severity.OK
    (found,) = network.check_traces(Settings(traces_endpoint="http://127.0.0.1:1"))
    assert found.severity is Severity.WARNING
    assert "LORAPLEX_TRACES_ENDPOINT" in found.remedy
