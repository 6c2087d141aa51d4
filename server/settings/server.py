"""Settings of the server process: its data, its address, its limits."""

from __future__ import annotations

import ipaddress
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import field_validator
from pydantic_settings import BaseSettings, NoDecode

from server.settings.fields import setting
from server.settings.traces_endpoint import TracesEndpoint


class ServerSettings(BaseSettings):
    """The server process."""

    data_dir: Path = setting(
        Path("var"),
        "Server",
        "The folder for records, adapters' files, caches and the first admin key.",
    )
    database_url: str | None = setting(
        None,
        "Server",
        "SQLAlchemy URL of the database with the records. PostgreSQL may have several hosts, of "
        "which the one that takes changes is used: postgresql://USER@HOST1:5432,HOST2:5432/NAME. "
        "Default: SQLite in the data folder.",
    )
    admin_key_file: Path | None = setting(
        None,
        "Server",
        "A file with an admin key of your choice, alone on one line, such as a mounted Secret. The "
        "server takes the key at start. Default: the first start makes an admin key and writes it "
        "to admin.key in the data folder.",
    )
    max_key_days: float | None = setting(
        None,
        "Server",
        "The longest life of an API key, in days. Keys that are made without an end get this one, "
        "and a longer life is refused. At start, keys that live longer get an end, counted from "
        "then. The key of LORAPLEX_ADMIN_KEY_FILE is exempt. Default: without limit.",
        gt=0,
        le=36500,
    )
    host: str = setting("127.0.0.1", "Server", "The address to listen on.", min_length=1)
    port: int = setting(
        8000, "Server", "The port to listen on. 0 takes a free one.", ge=0, le=65535
    )
    operations_port: int | None = setting(
        None,
        "Server",
        "A separate port for /metrics, /livez and /readyz. The main port then has no /metrics. "
        "0 takes a free one.",
        ge=0,
        le=65535,
    )
    scrape_token: str | None = setting(
        None, "Server", "The bearer token that /metrics requires. Default: none.", min_length=1
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = setting(
        (),
        "Server",
        "Addresses or networks of reverse proxies, separated by commas. The server believes their "
        "`X-Forwarded-For` for the client's address, in the audit trail and the log. Default: "
        "none.",
    )
    max_running: int | None = setting(
        None,
        "Server",
        "How many prompts the engine computes at a time. Others wait, and tenants take turns by "
        "their shares. Default: 32 on CPU, and half of vLLM's `--max-num-seqs` on a GPU.",
        ge=1,
    )
    prefill_tokens: int | None = setting(
        None,
        "Server",
        "How many tokens of a long prompt, or of one tenant's prompts together, one step of the "
        "engine computes while others are served. Default on CPU: 64. Default on a GPU: a "
        "quarter of a step for a prompt (or its share, if that is more), and a whole step for a "
        "tenant.",
        ge=1,
    )
    max_choices: int = setting(
        128,
        "Server",
        "How many answers one request may ask for: `n`, times its prompts. Those of one prompt "
        "begin in parts if they are more than LORAPLEX_MAX_RUNNING.",
        ge=1,
        le=16384,
    )
    max_waiting: int = setting(
        1024,
        "Server",
        "How many answers of one tenant may wait for the engine. Further requests get a 429.",
        ge=1,
    )
    request_seconds: float | None = setting(
        None,
        "Server",
        "How many seconds a request may run, from when it has its slot. Then it is ended with a "
        "504. Default: as long as its answer takes.",
        gt=0,
    )
    max_bodies_mib: int = setting(
        256,
        "Server",
        "How many MiB of inference requests' bodies the server holds at a time for all tenants "
        "together. Further requests get a 503.",
        ge=8,
    )
    max_tenant_bodies_mib: int = setting(
        64,
        "Server",
        "How many MiB of inference requests' bodies the server holds at a time for one tenant. "
        "The tenant's further requests get a 429.",
        ge=8,
    )
    drain_seconds: float = setting(
        30,
        "Server",
        "How many seconds open streams may go on after SIGTERM or Ctrl-C before they are cut off.",
        ge=0,
    )
    notice_seconds: float = setting(
        5,
        "Server",
        "How many seconds after SIGTERM new requests are still answered, while /readyz answers 503 "
        "so that routers choose other servers.",
        ge=0,
    )
    max_engine_restarts: int = setting(
        3,
        "Server",
        "How many times in ten minutes an engine that died is restarted. Then the server exits.",
        ge=0,
    )
    hang_seconds: float | None = setting(
        None,
        "Server",
        "How many seconds an engine may be silent (end no step and answer no call) before it is "
        "killed and restarted. Default: 120 on CPU, 60 on a GPU.",
        gt=0,
    )
    engine_stop_seconds: float | None = setting(
        None,
        "Server",
        "How many seconds the engine's processes may take to end before they are killed. Default: "
        "5 on CPU, 10 on a GPU.",
        gt=0,
    )
    write_stall_seconds: float = setting(
        30,
        "Server",
        "How many seconds a client may read nothing of an answer before its connection is closed.",
        gt=0,
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Server", "How much the server logs. vLLM's own logs appear at `debug`."
    )
    request_log: Literal["console", "json", "off"] = setting(
        "console",
        "Server",
        "The form of the request log: one line for each request on the standard error, for people "
        "(console) or for programs (json), or no lines (off). It never has prompts or answers.",
    )
    traces_endpoint: str | None = setting(
        None,
        "Server",
        "Send a trace of each request to this OpenTelemetry collector: http://HOST:4318 (OTLP over "
        "HTTP) or grpc://HOST:4317. Without it nothing is traced. OpenTelemetry's own variables, "
        "such as OTEL_SERVICE_NAME and OTEL_EXPORTER_OTLP_HEADERS, apply as well.",
    )
    traces_share: float = setting(
        1.0,
        "Server",
        "Which share of the requests is traced, from 0 to 1. A client that sends `traceparent` "
        "decides for its own request.",
        ge=0,
        le=1,
    )
    demo: bool = setting(False, "Server", "Register the demo adapters at start.")
    engine_args: Annotated[tuple[str, ...], NoDecode] = setting(
        (),
        "Server",
        "More arguments for vLLM's engine, as on its own command line.",
    )

    @property
    def longest_key_life(self) -> timedelta | None:
        """Return the longest life of an API key, or None if it has no limit."""
        return None if self.max_key_days is None else timedelta(days=self.max_key_days)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_proxies(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        for proxy in value:
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError(f"{proxy!r} is neither an address nor a network") from None
        return value

    @field_validator("traces_endpoint")
    @classmethod
    def _check_traces_endpoint(cls, value: str | None) -> str | None:
        if value is not None:
            TracesEndpoint.parse(value)
        return value

    @field_validator("engine_args", mode="before")
    @classmethod
    def _split_arguments(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value
