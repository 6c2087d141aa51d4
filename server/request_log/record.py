"""The record of one request: tenant, model, tokens, and when each of its stages ended.

A record holds neither prompts nor answers.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

STAGES = {
    "body": "reading and checking the body",
    "slot": "waiting for a slot",
    "load": "loading the adapter",
    "prompt": "making the prompt's tokens",
    "queue": "waiting for the tenant's turn",
    "first_token": "computing the prompt, up to the first token",
    "last_token": "computing the other tokens",
    "sent": "sending what was left to the client",
}
"""The stages of a request in order, with a description. A request may skip stages."""


@dataclass
class RequestRecord:
    """One request, filled in while it runs."""

    request_id: str = ""
    method: str = ""
    path: str = ""
    tenant: str = ""
    tenant_id: str = ""
    key_id: str = ""
    """The public part of the API key."""
    model: str = ""
    """The adapter as `tenant/name`, or the base's name. Empty if the request was refused early."""
    version: int | None = None
    tier: str = ""
    """Where the adapter was found: slot, host, disk or origin. Empty for the base."""
    service_tier: str = ""
    """The service tier that was used: default, flex or priority. Empty if it was refused early."""
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reasons: set[str] = field(default_factory=set)
    """Why the choices ended, in OpenAI's words: stop, length, tool_calls, abort."""
    status: int = 499
    """The HTTP status, or 499 if the client left before there was one."""
    complete: bool = False
    """False if the answer was cut off."""
    failed: bool = False
    """Whether the answer ended with an error after it had begun."""
    arm: tuple[int, int] | None = None
    """If a split of `live` dealt it: the version's id, and the revision of `live`."""
    trace_id: str = ""
    """The trace's id in hexadecimal; empty if the request is not traced."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _started: float = field(default_factory=time.monotonic)
    ends: dict[str, float] = field(default_factory=dict)
    """When each stage ended, in seconds from the request's arrival."""

    def end_stage(self, stage: str) -> None:
        """Note that a stage ends now. If it has ended before, the first time counts."""
        if stage not in self.ends:
            self.ends[stage] = time.monotonic() - self._started

    def end_stage_again(self, stage: str) -> None:
        """Note that a stage ends now. If it has ended before, the last time counts."""
        self.ends[stage] = time.monotonic() - self._started

    @property
    def age_seconds(self) -> float:
        """Return how long ago the request arrived."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Return how long the request took, or has taken so far."""
        return self.ends.get("sent", self.age_seconds)

    @property
    def ended_at(self) -> float:
        """Return when the request ended, as `time.monotonic` counts; now if it still runs."""
        took = self.ends.get("sent")
        return time.monotonic() if took is None else self._started + took

    def stages(self) -> list[tuple[str, float, float]]:
        """Return each stage in order with its start and its end, in seconds from the arrival."""
        before, spans = 0.0, []
        for stage in STAGES:
            if (end := self.ends.get(stage)) is not None:
                spans.append((stage, before, max(before, end)))
                before = max(before, end)
        return spans

    def stage_seconds(self) -> dict[str, float]:
        """Return how long each stage took, in the order of the stages."""
        return {stage: end - start for stage, start, end in self.stages()}

    def as_json(self) -> dict[str, Any]:
        """Return the record as the log and the API show it, with times in seconds."""
        return {
            "at": self.started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "complete": self.complete,
            "tenant": self.tenant,
            "key_id": self.key_id,
            "model": self.model,
            "version": self.version,
            "tier": self.tier,
            "service_tier": self.service_tier,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "finish_reasons": sorted(self.finish_reasons),
            "seconds": round(self.seconds, 4),
            "stages": {stage: round(s, 4) for stage, s in self.stage_seconds().items()},
        }


current_record: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)
"""The record of the running request, or None outside of one."""


def end_stage(stage: str) -> None:
    """Note that a stage of the running request ends now; nothing happens outside of one."""
    if record := current_record.get():
        record.end_stage(stage)
