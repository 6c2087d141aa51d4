"""Compositions by the route: what they are made of, and what is refused."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from safetensors.numpy import load_file

from adapters_registry.content.adapter_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    TEMPLATE_FILE,
    WEIGHTS_FILE,
)
from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import Quota, create_tenant, set_quota
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.adapter_recipe import A, B, write
from tests.adapters_registry.adapters import register
from tests.server.answers import CHAT, assert_error
from tests.tiny import AdapterFactory

COMPOSE = "/admin/adapters/default/both/compose?wait=true"


@pytest.fixture
def style(registry: Registry, make_adapter: AdapterFactory) -> VersionRecord:
    return register(registry, make_adapter(seed=1, rank=3), name="style")


@pytest.fixture
def domain(registry: Registry, make_adapter: AdapterFactory) -> VersionRecord:
    return register(registry, make_adapter(seed=2), name="domain")


def asked(*parts: tuple[str, float], **more: Any) -> dict[str, Any]:
    return {"parts": [{"model": model, "weight": weight} for model, weight in parts], **more}


def delta(folder: Path) -> np.ndarray:
    """What an adapter adds to the first module."""
    tensors = load_file(folder / WEIGHTS_FILE)
    config = json.loads((folder / CONFIG_FILE).read_text())
    scaled: np.ndarray = tensors[B] @ tensors[A] * (config["lora_alpha"] / config["r"])
    return scaled


async def test_the_sum_is_a_version_like_any_other(
    client: httpx.AsyncClient, registry: Registry, style: VersionRecord, domain: VersionRecord
) -> None:
    response = await client.post(COMPOSE, json=asked(("style", 0.7), ("domain@1", -0.3)))
    assert response.status_code == 201, response.text
    version = response.json()
    assert (version["model"], version["state"], version["rank"]) == ("default/both@1", "ready", 5)
    assert response.headers["location"] == version["location"]
    composed = version["metadata"]["composed"]
    found = {(p["model"], p["version_id"], p["digest"], p["weight"]) for p in composed["parts"]}
    assert found == {
        (v.public_name, v.version_id, v.digest, weight)
        for v, weight in ((style, 0.7), (domain, -0.3))
    }
    assert (composed["rank"], composed["error"]) == (None, 0)
    path = registry.content.path
    expected = 0.7 * delta(path(style.digest)) - 0.3 * delta(path(domain.digest))
    np.testing.assert_allclose(delta(path(version["digest"])), expected, atol=1e-6)
    answer = await client.post(CHAT, json={"model": "both"})
    assert answer.json() == {"model": "default/both@1"}
    trail = (await client.get("/admin/audit")).json()["data"]
    registered = next(entry for entry in trail if entry["action"] == "version.register")
    assert "default/style@1*0.7" in registered["after"]["source"]


@pytest.mark.usefixtures("style", "domain")
async def test_the_same_composition_is_one_version(client: httpx.AsyncClient) -> None:
    first = await client.post(COMPOSE, json=asked(("style", 0.7), ("domain", 0.3)))
    for parts in (
        (("domain@1", 0.3), ("default/style@live", 0.7)),
        (("style", 0.4), ("domain", 0.3), ("style", 0.3)),
    ):
        again = await client.post(COMPOSE, json=asked(*parts))
        assert (again.status_code, again.json()["version"]) == (200, 1)
    other = await client.post(COMPOSE, json=asked(("style", 0.7), ("domain", 0.4), promote=True))
    assert other.json()["version"] == first.json()["version"] + 1
    shown = (await client.get("/admin/adapters/default/both")).json()
    assert shown["live"] == 2


@pytest.mark.usefixtures("style", "domain")
async def test_a_smaller_rank_is_a_fit_with_its_error(client: httpx.AsyncClient) -> None:
    version = (await client.post(COMPOSE, json=asked(("style", 1), ("domain", 1), rank=4))).json()
    assert (version["state"], version["rank"]) == ("ready", 4)
    composed = version["metadata"]["composed"]
    assert 0 < composed["error"] < 1
    assert composed["error_by_layer"].keys() == {"0", "1"}
    exact = (await client.post(COMPOSE, json=asked(("style", 1), ("domain", 1), rank=8))).json()
    assert (exact["rank"], exact["metadata"]["composed"]["error"]) == (5, 0)


async def test_ranks_that_add_up_to_too_much_are_refused_with_what_rank_would_do(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    for number in range(3):
        register(registry, make_adapter(seed=number, rank=4), name=f"part{number}")
    parts = [(f"part{number}", 1.0) for number in range(3)]
    error = assert_error(await client.post(COMPOSE, json=asked(*parts)), 400, "invalid_request")
    for text in ("add up to 12", "limit of 8", "--rank 8", "best fit"):
        assert text in str(error["message"])
    assert ("default", "both") not in registry.catalog.adapters
    fitted = await client.post(COMPOSE, json=asked(*parts, rank=8))
    assert fitted.json()["rank"] == 8
    too_large = await client.post(COMPOSE, json=asked(*parts, rank=16))
    assert "rank 16 is over this server's limit of 8" in too_large.json()["error"]["message"]


@pytest.mark.usefixtures("style", "domain")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least 1"),
        ([("style", 1.0)] * 9, "at most 8"),
        ([("style", 0.0)], "other than 0"),
        ([("style", 101.0)], "from -100 to 100"),
        ([("style", -1e300)], "from -100 to 100"),
        ([("style", 0.5), ("style@1", -0.5)], "add up to 0"),
        ([("base", 1.0)], "is the base"),
    ],
)
async def test_parts_that_make_no_sum(
    client: httpx.AsyncClient, registry: Registry, parts: list[Any], message: str
) -> None:
    response = await client.post(COMPOSE, json=asked(*parts))
    assert message in str(assert_error(response, 400, "invalid_request")["message"])
    assert ("default", "both") not in registry.catalog.adapters


@pytest.mark.usefixtures("style")
async def test_weights_that_are_no_numbers(client: httpx.AsyncClient) -> None:
    for weight in ("NaN", "Infinity", "1e999", '"much"', "null"):
        body = f'{{"parts": [{{"model": "style", "weight": {weight}}}]}}'
        headers = {"content-type": "application/json"}
        response = await client.post(COMPOSE, content=body, headers=headers)
        assert_error(response, 400, "invalid_request")


@pytest.mark.usefixtures("style")
@pytest.mark.parametrize("name", ["base", "composed", "Both", "x/y"])
async def test_names_that_no_adapter_may_have(client: httpx.AsyncClient, name: str) -> None:
    path = f"/admin/adapters/default/{name}/compose"
    response = await client.post(path, json=asked(("style", 1)))
    assert response.status_code in (400, 404)
    registered = await client.post("/admin/adapters", json={"name": "composed", "source": "x"})
    assert "kept for compositions" in registered.json()["error"]["message"]


@pytest.mark.usefixtures("style")
async def test_versions_that_are_not_ready(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    register(registry, make_adapter(config={"use_dora": True}), name="domain")
    response = await client.post(COMPOSE, json=asked(("style", 1), ("domain@1", 1)))
    error = assert_error(response, 409, "conflict")
    assert "default/domain@1 is rejected" in str(error["message"])
    assert error["param"] == "parts"
    register(registry, make_adapter(seed=3), name="style")
    await client.delete("/admin/adapters/default/style/versions/2")
    response = await client.post(COMPOSE, json=asked(("default/style@2", 1)))
    assert "is retired" in str(assert_error(response, 409, "conflict")["message"])
    for unknown in ("style@9", "nothing", "style@99999999999999", "a b", "style*2"):
        response = await client.post(COMPOSE, json=asked((unknown, 1)))
        assert assert_error(response, 404, "model_not_found")["param"] == "parts"
    assert ("default", "both") not in registry.catalog.adapters


async def test_versions_of_another_base(
    client: httpx.AsyncClient,
    registry: Registry,
    database_url: str,
    style: VersionRecord,
    make_adapter: AdapterFactory,
) -> None:
    base = replace(registry.base, name="former", fingerprint="f" * 64)
    elsewhere = Registry(database_url, registry.content, base)
    register(elsewhere, make_adapter(seed=4), name="former")
    elsewhere.close()
    registry.refresh()
    response = await client.post(COMPOSE, json=asked(("style", 1), ("former", 1)))
    error = assert_error(response, 404, "model_incompatible")
    assert "checked on the base former" in str(error["message"])


async def test_adapters_that_were_trained_over_other_weights(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    for name, base in (("one", "tiny-bnb-4bit"), ("other", "tiny-awq"), ("third", "tiny-nf4")):
        config = {"base_model_name_or_path": base}
        register(registry, make_adapter(seed=len(name), config=config), name=name)
    response = await client.post(COMPOSE, json=asked(("one", 1), ("other", 1)))
    error = assert_error(response, 400, "invalid_request")
    assert "over weights rounded to nf4" in str(error["message"])
    assert "over weights rounded to awq" in str(error["message"])
    version = (await client.post(COMPOSE, json=asked(("one", 1), ("third", 1)))).json()
    assert version["metadata"]["checked"]["trained_over"] == "nf4"


async def test_what_stands_beside_the_weights(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    template = b"{% for m in messages %}<{{ m.content }}>{% endfor %}"
    cool, warm = b'{"temperature": 0.1}', b'{"temperature": 0.9}'

    def beside(generation: bytes, template: bytes) -> Any:
        def after(folder: Path) -> None:
            write(GENERATION_FILE, generation)(folder)
            write(TEMPLATE_FILE, template)(folder)

        return after

    for number, (generation, text) in enumerate(
        [(cool, template), (cool, template), (warm, template), (warm, b"{{ messages }}" + template)]
    ):
        adapter = make_adapter(seed=number, rank=1, after=beside(generation, text))
        register(registry, adapter, name=f"part{number}")
    both = (await client.post(COMPOSE, json=asked(("part0", 1), ("part1", 1)))).json()
    folder = registry.content.path(both["digest"])
    assert (folder / GENERATION_FILE).read_bytes() == cool
    assert (folder / TEMPLATE_FILE).read_bytes() == template
    both = (await client.post(COMPOSE, json=asked(("part0", 1), ("part2", 1)))).json()
    folder = registry.content.path(both["digest"])
    assert not (folder / GENERATION_FILE).exists()
    assert (folder / TEMPLATE_FILE).read_bytes() == template
    assert both["metadata"]["composed"]["defaults_of_the_base"] == ["sampling"]
    response = await client.post(COMPOSE, json=asked(("part2", 1), ("part3", 1)))
    error = assert_error(response, 400, "invalid_request")
    assert "different chat templates" in str(error["message"])


@pytest.mark.usefixtures("style")
async def test_a_split_means_its_largest_share(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    register(registry, make_adapter(seed=5), name="style")
    targets = [{"version": 2, "weight": 40}, {"version": 1, "weight": 60}]
    await client.put("/admin/adapters/default/style/aliases/live", json={"targets": targets})
    for _ in range(5):
        version = (await client.post(COMPOSE, json=asked(("style", 1)))).json()
        assert version["metadata"]["composed"]["parts"][0]["model"] == "default/style@1"


class TestTenants:
    """Another tenant's adapters exist only as far as they are shared."""

    @pytest.fixture
    def acme(
        self, app: FastAPI, registry: Registry, keys: Keys, make_adapter: AdapterFactory
    ) -> httpx.AsyncClient:
        registry.apply(create_tenant, "acme")
        stage = partial(copytree, make_adapter(seed=7), dirs_exist_ok=True)
        version, _ = registry.register("acme", "own", "test", stage)
        registry.accept(version, registry.check_files(version))
        key = keys.create("acme", ["inference", "adapters"])
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://loraplex",
            headers={"Authorization": f"Bearer {key}"},
        )

    @pytest.mark.usefixtures("style")
    async def test_foreign_parts(
        self, acme: httpx.AsyncClient, client: httpx.AsyncClient, registry: Registry
    ) -> None:
        url = "/admin/adapters/acme/both/compose?wait=true"
        body = asked(("own", 1), ("default/style", 1))
        there = assert_error(await acme.post(url, json=body), 404, "model_not_found")
        absent = asked(("own", 1), ("default/nope", 1))
        nothing = assert_error(await acme.post(url, json=absent), 404, "model_not_found")
        assert str(there["message"]).replace("style", "nope") == nothing["message"]
        # Nor may an admin give one tenant another's adapter.
        assert_error(await client.post(url, json=body), 404, "model_not_found")
        registry.apply(share_adapter, "default", "style", ["acme"], False)
        made = (await acme.post(url, json=body)).json()
        assert (made["model"], made["state"]) == ("acme/both@1", "ready")
        foreign = "/admin/adapters/default/both/compose"
        assert_error(await acme.post(foreign, json=asked(("own", 1))), 404, "not_found")
        assert_error(await acme.post(foreign, json={}), 404, "not_found")

    async def test_quotas_hold(self, acme: httpx.AsyncClient, registry: Registry) -> None:
        registry.apply(set_quota, "acme", Quota(versions=1))
        url = "/admin/adapters/acme/both/compose?wait=true"
        response = await acme.post(url, json=asked(("own", 0.5)))
        assert_error(response, 429, "insufficient_quota")
        assert list((registry.content.root / "staging").iterdir()) == []
        assert len(registry.content.sizes()) == 1


async def test_a_repetition_with_its_key_changes_nothing(
    client: httpx.AsyncClient, style: VersionRecord, domain: VersionRecord
) -> None:
    headers = {"Idempotency-Key": "once"}
    for status in (201, 200):
        body = asked(("style", 0.7), ("domain", 0.3))
        response = await client.post(COMPOSE, json=body, headers=headers)
        assert (response.status_code, response.json()["version"]) == (status, 1)
    response = await client.post(COMPOSE, json=asked(("style", 0.1)), headers=headers)
    assert_error(response, 409, "conflict")


async def test_clients_cannot_claim_a_composition(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    body = {
        "name": "new",
        "source": str(make_adapter()),
        "metadata": {"composed": {"on_request": True}, "team": "a"},
    }
    version = (await client.post("/admin/adapters?wait=true", json=body)).json()
    assert "composed" not in version["metadata"]
    assert version["metadata"]["team"] == "a"
