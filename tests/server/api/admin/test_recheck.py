"""What a client sees of versions that were checked on another base, and how they come back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.retirement import pin_version
from adapters_registry.registry import Registry
from server.api.registry_metrics import registry_metrics
from server.residency.leases import Leases
from tests.adapters_registry.adapters import register
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

RECHECK = "/admin/adapters/default/home/recheck?wait=true"
BODY = {"model": "home"}


@pytest.fixture
def elsewhere(registry: Registry, database_url: str) -> Iterator[Registry]:
    """The same registry on a server with another base."""
    base = replace(registry.base, name="former", fingerprint="f" * 64)
    other = Registry(database_url, registry.content, base)
    yield other
    other.close()


@pytest.fixture
def foreign(registry: Registry, elsewhere: Registry, make_adapter: AdapterFactory) -> VersionRecord:
    """A version that is ready on the other base only."""
    version = register(elsewhere, make_adapter())
    elsewhere.apply(pin_version, "default", "home", 1, True)
    registry.refresh()
    return version


def answer(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.usefixtures("foreign")
class TestIncompatible:
    async def test_it_is_not_listed(self, client: httpx.AsyncClient) -> None:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == ["base"]

    @pytest.mark.parametrize("model", ["home", "home@1", "home@live", "default/home"])
    async def test_requests_get_a_404_with_the_reason(
        self, client: httpx.AsyncClient, model: str
    ) -> None:
        response = await client.post("/v1/chat/completions", json={"model": model})
        assert answer(response) == (404, "model_incompatible")
        assert "checked on the base former" in response.json()["error"]["message"]
        assert answer(await client.get(f"/v1/models/{model}")) == (404, "model_incompatible")

    async def test_a_digest_gets_it_too(
        self, client: httpx.AsyncClient, foreign: VersionRecord
    ) -> None:
        model = f"home@sha256:{foreign.digest[:12]}"
        response = await client.post("/v1/chat/completions", json={"model": model})
        assert answer(response) == (404, "model_incompatible")

    async def test_the_admin_sees_state_and_reason(self, client: httpx.AsyncClient) -> None:
        listed = (await client.get("/admin/adapters?state=incompatible")).json()["data"]
        assert [(a["live"], a["incompatible"]) for a in listed] == [(None, [1])]
        assert "checked on the base former" in listed[0]["reason"]
        shown = (await client.get("/admin/adapters/default/home")).json()["versions"]
        assert [version["state"] for version in shown] == ["incompatible"]
        assert shown[0]["reasons"][0]["code"] == "other_base"

    async def test_the_metrics_count_it(self, registry: Registry) -> None:
        states = {
            sample.labels["state"]: sample.value
            for metric in registry_metrics(registry).collect()
            for sample in metric.samples
            if sample.name == "loraplex_registry_versions"
        }
        assert (states["incompatible"], states["ready"]) == (1, 0)

    async def test_no_alias_points_to_it(self, client: httpx.AsyncClient) -> None:
        path, body = "/admin/adapters/default/home/aliases/canary", {"targets": [{"version": 1}]}
        response = await client.put(path, json=body)
        assert response.status_code == 400
        assert "not offered on this server" in response.json()["error"]["message"]

    async def test_a_recheck_brings_it_back_with_its_pin(
        self, client: httpx.AsyncClient, leases: Leases, registry: Registry, engine: FakeEngine
    ) -> None:
        leases.follow(registry.catalog)
        response = await client.post(RECHECK)
        assert response.status_code == 200
        assert [version["state"] for version in response.json()["data"]] == ["ready"]
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
        assert (await client.post(RECHECK)).json() == {"data": []}
        (row,) = (await client.get("/admin/residency")).json()["data"]
        assert row["pinned"]

    async def test_the_trial_on_the_engine_is_part_of_it(
        self, client: httpx.AsyncClient, engine: FakeEngine, elsewhere: Registry
    ) -> None:
        engine.answer = engine.base_answer
        (version,) = (await client.post(RECHECK)).json()["data"]
        assert version["state"] == "incompatible"
        assert [reason["code"] for reason in version["reasons"]] == ["canary_no_effect"]
        elsewhere.refresh()
        assert elsewhere.get_adapter("default", "home").live is not None


async def test_the_same_upload_is_checked_on_the_present_base(
    client: httpx.AsyncClient, elsewhere: Registry, registry: Registry, make_adapter: AdapterFactory
) -> None:
    files: Path = make_adapter(config={"base_model_name_or_path": "former"})
    register(elsewhere, files)
    registry.refresh()
    body = {"name": "home", "source": str(files)}
    refused = await client.post("/admin/adapters?wait=true", json=body)
    assert answer(refused) == (422, "adapter_rejected")
    allowed = await client.post(
        "/admin/adapters?wait=true", json=body | {"allow_base_mismatch": True}
    )
    assert (allowed.status_code, allowed.json()["state"]) == (200, "ready")
    assert allowed.json()["version"] == 1


async def test_a_recheck_of_nothing_known_is_a_404(client: httpx.AsyncClient) -> None:
    assert answer(await client.post(RECHECK)) == (404, "not_found")
