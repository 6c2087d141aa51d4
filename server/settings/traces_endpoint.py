"""The address of the collector that receives traces, and the protocol that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

HTTP_PATH = "/v1/traces"
"""The path at which a collector receives traces over HTTP, by OTLP's specification."""


@dataclass(frozen=True)
class TracesEndpoint:
    """A collector that receives OTLP."""

    url: str
    protocol: Literal["grpc", "http/protobuf"]
    """The protocol, as named in OpenTelemetry's variable `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`."""

    @classmethod
    def parse(cls, text: str) -> TracesEndpoint:
        """Read `http://HOST:4318`, `https://HOST/PATH` or `grpc://HOST:4317`.

        Raises:
            ValueError: the text isn't such an address.
        """
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https", "grpc") or not parts.hostname:
            raise ValueError(f"{text!r} is not like http://HOST:4318 or grpc://HOST:4317")
        if parts.scheme == "grpc":
            return cls(f"http://{parts.netloc}", "grpc")
        path = parts.path if parts.path.strip("/") else HTTP_PATH
        return cls(urlunsplit(parts._replace(path=path)), "http/protobuf")
