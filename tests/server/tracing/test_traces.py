"""Traces on the fake engine, received by a collector over OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.app import build_server
from server.auth import Keys
from server.request_log.record import RequestRecord
from server.residency.leases import Leases
from server.settings import Settings
from server.settings.traces_endpoint import TracesEndpoint
from server.tracing.traces import Traces
from tests.otlp_receiver import Receiver, attributes, otlp_receiver
from tests.server.answers import CHAT
from tests.server.fake_engine import FakeEngine

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture
def traces(collector: Receiver) -> Traces:
    return Traces(TracesEndpoint.parse(collector.endpoint), 1.0)


@pytest.fixture
def app(
    registry: Registry, keys: Keys, engine: FakeEngine, leases: Leases, traces: Traces
) -> FastAPI:
    settings = Settings(max_loras=4)
    return build_server(settings, registry, engine, keys=keys, leases=leases, traces=traces).app


async def test_a_request_and_its_stages(
    client: httpx.AsyncClient, home: VersionRecord, traces: Traces, collector: Receiver
) -> None:
    answer = await client.post(CHAT, json={"model": "home"}, headers=TRACEPARENT)
    traces.close()
    spans = collector.trace(TRACE, "chat default/home", "loraplex.slot", "loraplex.load")
    ours = spans["chat default/home"]
    assert ours.parent_span_id.hex() == PARENT
    values = attributes(ours)
    assert values["gen_ai.request.model"] == "default/home"
    assert values["loraplex.version"] == 1
    assert values["loraplex.request_id"] == answer.headers["x-request-id"]
    assert values["http.route"] == CHAT
    for name, span in spans.items():
        if name.startswith("loraplex."):
            assert span.parent_span_id == ours.span_id
            assert ours.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= ours.end_time_unix_nano


async def test_errors_have_a_type(
    client: httpx.AsyncClient, engine: FakeEngine, traces: Traces, collector: Receiver
) -> None:
    await client.get("/nowhere", headers=TRACEPARENT)
    traces.close()
    values = attributes(collector.trace(TRACE, "GET unknown")["GET unknown"])
    assert values["http.response.status_code"] == 404
    assert "error.type" not in values, "the client's mistake is no error of the server"


@pytest.mark.parametrize(
    "traceparent", ["", "00-zz-00-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000]
)
async def test_a_bad_traceparent_begins_a_trace_of_its_own(
    client: httpx.AsyncClient,
    home: VersionRecord,
    traces: Traces,
    collector: Receiver,
    traceparent: str,
) -> None:
    await client.post(CHAT, json={"model": "home"}, headers={"traceparent": traceparent})
    [row] = (await client.get("/admin/requests?limit=1")).json()["data"]
    traces.close()
    span = collector.trace(row["trace_id"], "chat default/home")["chat default/home"]
    assert not span.parent_span_id


async def test_probes_are_not_traced(client: httpx.AsyncClient, traces: Traces) -> None:
    await client.get("/livez", headers=TRACEPARENT)
    await client.get("/admin/whoami", headers=TRACEPARENT)
    rows = (await client.get("/admin/requests")).json()["data"]
    traces.close()
    assert [row["path"] for row in rows] == ["/admin/whoami"]
    assert rows[0]["trace_id"] == TRACE


def test_only_a_share_is_traced_unless_the_client_wants_its_own(collector: Receiver) -> None:
    traces = Traces(TracesEndpoint.parse(collector.endpoint), 0.0)
    for headers in ([], [(b"traceparent", TRACEPARENT["traceparent"].encode())]):
        record = RequestRecord(method="GET", path="/v1/models", complete=True, status=200)
        trace, passed_on = traces.begin(record, headers)
        is_sampled = int(dict(passed_on)[b"traceparent"][-2:], 16) & 1
        assert is_sampled == (1 if headers else 0)
        trace.end(record, "/v1/models")
    traces.close()
    assert set(collector.trace(TRACE, "GET /v1/models")) == {"GET /v1/models"}


def test_over_grpc() -> None:
    received = []

    class Service(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
        def Export(self, request, _context):  # type: ignore[no-untyped-def]
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    traces = Traces(TracesEndpoint.parse(f"grpc://127.0.0.1:{port}"), 1.0)
    record = RequestRecord(method="GET", path="/v1/models", complete=True, status=200)
    traces.begin(record, [])[0].end(record, "/v1/models")
    traces.close()
    server.stop(None).wait()
    assert received[0].resource_spans[0].scope_spans[0].spans[0].name == "GET /v1/models"


@pytest.mark.parametrize(
    ("text", "url", "protocol"),
    [
        ("http://otel:4318", "http://otel:4318/v1/traces", "http/protobuf"),
        ("https://otel/x/traces", "https://otel/x/traces", "http/protobuf"),
        ("grpc://otel:4317", "http://otel:4317", "grpc"),
    ],
)
def test_endpoints(text: str, url: str, protocol: str) -> None:
    assert TracesEndpoint.parse(text) == TracesEndpoint(url, protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["otel:4318", "ftp://otel", "http://", ""])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="grpc://HOST:4317"):
        TracesEndpoint.parse(text)
