"""Enough of a server for scenarios: versions of adapters, slots, and streams without an engine."""

from __future__ import annotations

import asyncio
import json
from email.message import Message
from email.parser import BytesParser
from typing import Any

import httpx

from loadtest.measurements.client import Client

BASE = "base"


class FakeServer:
    """Each version's own token at a place is its number; it finds others unlikely."""

    def __init__(self, slots: int = 2) -> None:
        self.versions: dict[str, int] = {}
        self.live: dict[str, int] = {}
        self.num_loads = 0
        self.refuse_streams = 0
        self.answers_as: dict[str, str] = {}
        """Models that another's weights answer: what must not happen."""
        self._slots: list[str] = []
        self._num_slots = slots

    def client(self) -> Client:
        client = Client("http://server", "key")
        transport = httpx.MockTransport(self._answer)
        client._http = httpx.AsyncClient(transport=transport, base_url="http://server")
        return client

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.001)
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": BASE}]})
        if path == "/metrics":
            name = "loraplex_adapter_load_seconds_count"
            text = f'# HELP {name}\n{name}{{from_tier="disk",outcome="ok"}} {self.num_loads}.0\n'
            return httpx.Response(200, text=text)
        if path == "/admin/adapters":
            return self._list() if request.method == "GET" else self._register(request)
        body = json.loads(request.content)
        if path.endswith("/aliases/live"):
            self.live[path.split("/")[4]] = body["targets"][0]["version"]
            return httpx.Response(200, json={})
        return self._complete(body)

    def _list(self) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"name": n} for n in self.live], "next": None})

    def _register(self, request: httpx.Request) -> httpx.Response:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        parts = BytesParser().parsebytes(head + request.content).get_payload()
        assert isinstance(parts, list)
        fields: dict[object, object] = {}
        for part in parts:
            assert isinstance(part, Message)
            field = part.get_param("name", header="content-disposition")
            fields[field] = part.get_payload()
        name = str(fields["name"])
        version = self.versions[name] = self.versions.get(name, 0) + 1
        self.live[name] = version
        return httpx.Response(201, json={"version": version})

    def _complete(self, body: dict[str, Any]) -> httpx.Response:
        name, _, number = body["model"].removeprefix("default/").partition("@")
        is_base = name == BASE
        version = 0 if is_base else int(number or self.live[name])
        model = BASE if is_base else f"default/{name}@{version}"
        weights = self.answers_as.get(model, model)
        own = 100 + sum(map(ord, weights))
        if not body.get("stream"):
            return self._completed(body, own)
        if self.refuse_streams:
            self.refuse_streams -= 1
            return httpx.Response(503, json={"error": {"message": "no slot"}})
        tokens = [own] * body["max_tokens"]
        events = [{"model": model, "choices": [{"token_ids": [token]}]} for token in tokens]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        headers = {} if is_base else {"x-adapter-tier": self._find(model)}
        return httpx.Response(200, headers=headers, text="".join(lines))

    def _completed(self, body: dict[str, Any], own: int) -> httpx.Response:
        entries: list[Any] = [None]
        for token in body["prompt"][1:]:
            entry = {str(own): {"logprob": -0.1, "rank": 1}}
            entries.append({str(token): {"logprob": -7.0, "rank": 9}} | entry)
        choice = {"prompt_logprobs": entries}
        usage = {"completion_tokens": body["max_tokens"]}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    def _find(self, model: str) -> str:
        if model in self._slots:
            return "slot"
        self.num_loads += 1
        self._slots = [*self._slots, model][-self._num_slots :]
        return "disk"
