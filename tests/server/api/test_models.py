"""The cards of `/v1/models`, read into the types of OpenAI's and Anthropic's clients."""

from __future__ import annotations

import anthropic.types
import httpx
import openai.types
import pytest

from adapters_registry.records.catalog import VersionRecord


@pytest.mark.parametrize("model", ["home", "base"])
async def test_both_clients_read_a_card(
    client: httpx.AsyncClient, home: VersionRecord, model: str
) -> None:
    body = (await client.get(f"/v1/models/{model}")).json()
    card = anthropic.types.ModelInfo.model_validate(body)
    assert (card.id, card.type, card.display_name) == (model, "model", model)
    assert card.created_at.tzinfo is not None
    same = openai.types.Model.model_validate(body)
    created = int(card.created_at.timestamp())
    assert (same.id, same.object, same.created) == (model, "model", created)


async def test_a_page_as_anthropics_client_reads_it(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    page = (await client.get("/v1/models")).json()
    assert [card["id"] for card in page["data"]] == ["base", "home"]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "base", "home")
