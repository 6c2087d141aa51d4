"""The server that is soaked, and what its operator and its tenants do there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loadtest.drive.http_client import HttpClient
from loadtest.drive.request import RequestSender
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.scenario import Limits
from tests.real_engine.running_server import RunningServer
from tests.soak.fleet import Tenant
from tests.soak.questions import call_of, outcome_of
from tests.soak.truth import Question
from tests.soak.weights import metadata_of

PATIENT = Limits(stall_seconds=900, request_seconds=900)
"""The machine may do much else."""


@dataclass(frozen=True)
class Site:
    """A running server, with connections to it. Methods raise `LoadTestError` if it refuses."""

    server: RunningServer
    http: HttpClient
    sender: RequestSender
    keys: dict[str, str] = field(default_factory=dict)
    """Each tenant's key for inference."""

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, server: RunningServer) -> AsyncIterator[Site]:
        """Connect as the operator. The clock of all outcomes starts now."""
        async with (
            HttpClient.connect(server.url, server.key) as http,
            RequestSender(server.url, PATIENT) as sender,
        ):
            yield cls(server, http, sender)

    async def ask(self, asked: Question) -> Outcome:
        """Send a tenant's question and read the answer."""
        outcome = outcome_of(asked, self.sender.now())
        await self.sender.send(call_of(asked, self.keys[asked.tenant]), outcome)
        return outcome

    async def admit(self, tenant: Tenant) -> None:
        """Make a key for a tenant, and take its quota away."""
        await self.limit(tenant, {})
        made = await self.http.json("POST", "/admin/keys", json={"tenant": tenant.name})
        self.keys[tenant.name] = made["key"]

    async def limit(self, tenant: Tenant, quota: Mapping[str, int]) -> None:
        """Set a tenant's quota."""
        await self.http.json("PUT", f"/admin/tenants/{tenant.name}/quota", json=dict(quota))

    async def register(
        self, subject: str, files: dict[str, bytes], content: int, *, promote: bool
    ) -> int:
        """Upload a version and wait until it is ready. Returns its number."""
        tenant, _, name = subject.partition("/")
        registered = await self.http.json(
            "POST",
            "/admin/adapters?wait=true",
            f"registering {subject}",
            data={
                "tenant": tenant,
                "name": name,
                "promote": str(promote).lower(),
                "metadata": json.dumps(metadata_of(content)),
            },
            files=[("files", item) for item in files.items()],
        )
        return int(registered["version"])

    async def live_versions(self, tenant: Tenant) -> dict[str, int]:
        """Return the number of each adapter's live version, by `tenant/name`."""
        path = f"/admin/adapters?tenant={tenant.name}&limit=1000"
        rows = (await self.http.json("GET", path))["data"]
        return {f"{tenant.name}/{row['name']}": row["live"] for row in rows if row["live"]}

    async def point(self, subject: str, weights: dict[int, int]) -> None:
        """Point `live` to versions by weight."""
        targets = [{"version": v, "weight": weight} for v, weight in weights.items()]
        await self.change("PUT", subject, "/aliases/live", json={"targets": targets})

    async def change(self, method: str, subject: str, path: str, **arguments: Any) -> None:
        """Change something of an adapter. `path` is what comes after its own."""
        await self.http.json(method, f"/admin/adapters/{subject}{path}", **arguments)

    async def residency(self) -> list[dict[str, Any]]:
        """Return what the server says of each version in memory."""
        return list((await self.http.json("GET", "/admin/residency"))["data"])

    async def metrics(self) -> str:
        """Return the page of metrics."""
        return (await self.http.call("GET", "/metrics"))[1]
