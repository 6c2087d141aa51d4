"""Empty lists of tools, and tools that the provider of the Responses API would run."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from adapters_registry.records.catalog import VersionRecord
from server.api.intake.tools import leave_out_empty_tools, leave_out_hosted_tools
from server.errors import InvalidRequest
from tests.server.answers import CHAT
from tests.server.fake_engine import FakeEngine

ROUTES_WITH_TOOLS = [CHAT, "/v1/responses", "/v1/messages"]
SEARCH = {"type": "web_search"}
MCP = {"type": "mcp", "server_label": "a", "server_url": "http://127.0.0.1:8999/mcp"}
FUNCTION = {"type": "function", "name": "f", "parameters": {}}


@pytest.fixture
def engine() -> FakeEngine:
    """Return an engine with the routes that take tools."""
    engine = FakeEngine()
    engine.endpoints = dict.fromkeys(ROUTES_WITH_TOOLS, engine.endpoints[CHAT])
    return engine


@pytest.mark.parametrize(
    ("body", "left", "left_out"),
    [
        ({"tools": [SEARCH, FUNCTION, MCP, SEARCH]}, {"tools": [FUNCTION]}, ("web_search", "mcp")),
        ({"tools": [SEARCH], "tool_choice": "auto"}, {}, ("web_search",)),
        ({"tools": [FUNCTION]}, {"tools": [FUNCTION]}, ()),
        (
            {"tools": [MCP, FUNCTION], "tool_choice": "required"},
            {"tools": [FUNCTION], "tool_choice": "required"},
            ("mcp",),
        ),
        ({}, {}, ()),
    ],
)
def test_offered_tools_are_left_out(
    body: dict[str, Any], left: dict[str, Any], left_out: tuple[str, ...]
) -> None:
    assert leave_out_hosted_tools(body) == left_out
    assert body == left


@pytest.mark.parametrize("choice", [SEARCH, "required"])
def test_demanded_tools_are_refused(choice: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        leave_out_hosted_tools({"tools": [SEARCH], "tool_choice": choice})
    assert refused.value.param == "tool_choice"


async def test_the_answer_names_what_was_left_out(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    body = {"model": "home", "input": "hi", "tools": [SEARCH, MCP]}
    answer = await client.post("/v1/responses", json=body)
    assert answer.status_code == 200
    expected = "web_search, mcp; this server does not run them"
    assert answer.headers["x-tools-left-out"] == expected
    chosen = await client.post("/v1/responses", json=body | {"tool_choice": SEARCH})
    assert (chosen.status_code, chosen.json()["error"]["param"]) == (400, "tool_choice")
    plain = await client.post("/v1/responses", json={"model": "home", "input": "hi"})
    assert "x-tools-left-out" not in plain.headers


@pytest.mark.parametrize(
    "choice", [None, "auto", "none", {"type": "auto"}, {"type": "none"}], ids=str
)
@pytest.mark.parametrize("path", ROUTES_WITH_TOOLS)
async def test_an_empty_list_is_no_tools(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, choice: Any
) -> None:
    body = {"model": "base", "messages": [], "tools": []}
    body |= {} if choice is None else {"tool_choice": choice}
    assert (await client.post(path, json=body)).status_code == 200
    leave_out_empty_tools(body)
    assert body == {"model": "base", "messages": []}


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "f"}},
        {"type": "any"},
        {"type": "tool"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ROUTES_WITH_TOOLS)
async def test_an_empty_list_and_a_demand(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, choice: Any
) -> None:
    response = await client.post(
        path, json={"model": "base", "messages": [], "tools": [], "tool_choice": choice}
    )
    assert response.status_code == 400
    assert "there is no tool to call" in response.json()["error"]["message"]
