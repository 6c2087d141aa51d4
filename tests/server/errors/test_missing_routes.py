"""A route that isn't there: the answer says which one is meant."""

from __future__ import annotations

import httpx
import pytest

from server.auth import Keys
from tests.server.answers import assert_error


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/v1/messages", "did you mean /v1/messages?"),
        ("/openai/v1/models", "did you mean /v1/models?"),
        ("/v1/embeddings", "embeddings aren't served here"),
        ("/v1/files/abc", "files aren't served here"),
        ("/v1/responses/resp_1", "send the earlier items as `input`"),
        ("/nowhere", "/docs lists them"),
    ],
)
@pytest.mark.parametrize("scope", ["inference", "adapters"])
async def test_what_is_meant(
    client: httpx.AsyncClient, keys: Keys, path: str, words: str, scope: str
) -> None:
    if scope == "adapters" and path.startswith("/v1/"):
        return
    client.headers["Authorization"] = f"Bearer {keys.create('default', [scope])}"
    answer = await client.get(path)
    assert_error(answer, 404, "not_found")
    assert words in answer.json()["error"]["message"]


async def test_routes_of_operators_stay_closed(client: httpx.AsyncClient, keys: Keys) -> None:
    client.headers["Authorization"] = f"Bearer {keys.create('default', ['inference'])}"
    for path in ("/admin", "/admin/", "/admin/nowhere", "/admin/keys"):
        assert_error(await client.get(path), 403, "insufficient_scope")
