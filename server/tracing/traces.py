"""A span for each request, and one below it for each of its stages.

The stages are those of the request log (`RequestRecord`): the times are taken once, so a trace and
a log line never disagree. vLLM adds a span of its own below the request's. Names and attributes
follow OpenTelemetry's semantic conventions for HTTP and generative AI; ours begin with `loraplex.`.
No span holds a prompt or an answer.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.request_log.record import RequestRecord
from server.settings.traces_endpoint import TracesEndpoint

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
"""What each path does, in the words of the conventions (`gen_ai.operation.name`)."""

Headers = list[tuple[bytes, bytes]]
"""An ASGI request's headers."""


class Traces:
    """Makes the spans, and sends them to a collector from a thread of its own.

    If the collector is away or slow, spans are dropped; requests never wait for it.
    """

    def __init__(
        self, endpoint: TracesEndpoint, share: float, exporter: SpanExporter | None = None
    ) -> None:
        """`share` (0 to 1): how many requests are traced. A client's `traceparent` decides for its
        own request. `exporter` takes the spans instead of a collector.
        """
        self._provider = TracerProvider(
            resource=Resource.create(), sampler=ParentBasedTraceIdRatio(share)
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter(endpoint)))
        self._tracer = self._provider.get_tracer("loraplex")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: RequestRecord, headers: Headers) -> tuple[RequestTrace, Headers]:
        """Begin a request's span, below the client's if it sent a valid `traceparent`.

        Returns the trace, and the headers with which the request goes on: they name our span, so
        that vLLM's becomes its child.
        """
        given = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            context=self._propagator.extract(given),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(record, 0.0),
        )
        if span.is_recording():
            record.trace_id = f"{span.get_span_context().trace_id:032x}"
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        others = [(name, value) for name, value in headers if name.decode("latin-1") not in carrier]
        added = [(name.encode(), value.encode()) for name, value in carrier.items()]
        return RequestTrace(self._tracer, span), others + added

    def close(self) -> None:
        """Send what waits, for at most some seconds, and end the thread."""
        self._provider.force_flush(timeout_millis=2000)
        self._provider.shutdown()


class RequestTrace:
    """The span of one request that runs."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span

    def end(self, record: RequestRecord, route: str) -> None:
        """End the span with what became of the request, and add a span for each stage."""
        span = self._span
        if span.is_recording():
            operation = OPERATIONS.get(record.path)
            span.update_name(
                f"{operation} {record.model}".strip() if operation else f"{record.method} {route}"
            )
            span.set_attributes(attributes_of(record, operation, route))
            if record.status >= 500 or not record.complete:
                span.set_status(StatusCode.ERROR)
            below = set_span_in_context(span)
            for stage, start, end in record.stages():
                child = self._tracer.start_span(
                    f"loraplex.{stage}", context=below, start_time=_nanoseconds(record, start)
                )
                child.end(_nanoseconds(record, end))
        span.end(_nanoseconds(record, record.seconds))


def attributes_of(record: RequestRecord, operation: str | None, route: str) -> dict[str, Any]:
    """Return a request's attributes; those of which nothing is known are left out."""
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "http.route": route,
        "url.path": record.path,
        "loraplex.request_id": record.request_id,
        "loraplex.tenant": record.tenant,
        "loraplex.key_id": record.key_id,
        "loraplex.version": record.version,
        "loraplex.tier": record.tier,
    }
    if operation:
        attributes |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "loraplex",
            "gen_ai.request.model": record.model,
            "gen_ai.usage.input_tokens": record.input_tokens or None,
            "gen_ai.usage.output_tokens": record.output_tokens or None,
            "gen_ai.response.finish_reasons": sorted(record.finish_reasons),
        }
    if record.status >= 500:
        attributes["error.type"] = str(record.status)
    elif not record.complete:
        attributes["error.type"] = "cut_off"
    return {name: value for name, value in attributes.items() if value not in (None, "", [])}


def _nanoseconds(record: RequestRecord, seconds: float) -> int:
    """Return when a request was `seconds` old, in nanoseconds since 1970."""
    return int((record.started_at.timestamp() + seconds) * 1e9)


def _exporter(endpoint: TracesEndpoint) -> SpanExporter:
    if endpoint.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=endpoint.url, insecure=True)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(endpoint=endpoint.url)
