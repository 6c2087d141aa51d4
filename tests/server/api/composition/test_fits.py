"""Adapters whose rank is over the server's limit: kept, and served as their best fit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters_registry import rechecks
from adapters_registry.content.adapter_files import WEIGHTS_FILE
from adapters_registry.registry import Registry
from tests.adapter_recipe import A, B
from tests.adapters_registry.adapters import check
from tests.server.answers import CHAT, assert_error, files_of
from tests.tiny import AdapterFactory

URL = "/admin/adapters?wait=true"
RANK = 12
"""Of the tiny base's 16 features; the server's limit is 8."""


@pytest.fixture
def large(make_adapter: AdapterFactory) -> Path:
    return make_adapter(rank=RANK)


@pytest.fixture
def larger_server(registry: Registry, database_url: str) -> Iterator[Registry]:
    """The same registry on a server with the same base and a higher limit."""
    other = Registry(database_url, registry.content, replace(registry.base, max_rank=16))
    yield other
    other.close()


async def fit(client: httpx.AsyncClient, adapter: Path, **fields: str) -> httpx.Response:
    form = {"name": "large", "fit_rank": "true", **fields}
    return await client.post(URL, data=form, files=files_of(adapter))


def delta(folder: Path) -> np.ndarray:
    """What an adapter adds to the first module, apart from its scale."""
    tensors = load_file(folder / WEIGHTS_FILE)
    product: np.ndarray = tensors[B] @ tensors[A]
    return product


async def test_the_fit_is_served_and_the_original_is_kept(
    client: httpx.AsyncClient, registry: Registry, large: Path
) -> None:
    response = await fit(client, large)
    assert response.status_code == 201, response.text
    version = response.json()
    assert (version["model"], version["state"], version["rank"]) == ("default/large@2", "ready", 8)
    fitted = version["metadata"]["fitted"]
    original = registry.get_version("default", "large", 1)
    assert fitted["of"] == {
        "model": "default/large@1",
        "version_id": original.version_id,
        "digest": original.digest,
        "rank": RANK,
    }
    assert fitted["rank"] == 8
    assert 0 < fitted["error"] < 0.7
    assert fitted["error_by_layer"].keys() == {"0", "1"}
    assert version["metadata"]["checked"]["logprob_change"] == 0.5, "the fake engine's answers"
    left, sizes, right = np.linalg.svd(delta(large) * 4 / RANK)
    best = left[:, :8] * sizes[:8] @ right[:8]
    served = delta(registry.content.path(version["digest"]))
    np.testing.assert_allclose(served, best, atol=1e-6)
    assert (await client.post(CHAT, json={"model": "large"})).json() == {"model": "default/large@2"}
    shown = (await client.get("/admin/adapters/default/large/versions/1")).json()
    assert (shown["state"], shown["rank"]) == ("incompatible", RANK)
    assert shown["reasons"][0]["code"] == "rank_too_large"
    assert registry.content.path(original.digest).is_dir()
    error = assert_error(
        await client.post(CHAT, json={"model": "large@1"}), 404, "model_incompatible"
    )
    assert "limit of 8" in str(error["message"])
    trail = (await client.get("/admin/audit")).json()["data"]
    assert "version.keep" in {entry["action"] for entry in trail}


async def test_a_repetition_changes_nothing(client: httpx.AsyncClient, large: Path) -> None:
    await fit(client, large)
    again = await fit(client, large)
    assert (again.status_code, again.json()["model"]) == (200, "default/large@2")
    shown = (await client.get("/admin/adapters/default/large")).json()
    assert shown["num_versions"] == 2


async def test_promotion_is_of_the_fit(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory, large: Path
) -> None:
    await client.post(URL, data={"name": "large"}, files=files_of(make_adapter(seed=3)))
    assert (await fit(client, large)).json()["version"] == 3
    live = registry.get_adapter("default", "large").live
    assert live is not None
    assert live.number == 1
    other = make_adapter(seed=4, rank=RANK)
    assert (await fit(client, other, promote="true")).json()["version"] == 5
    live = registry.get_adapter("default", "large").live
    assert live is not None
    assert live.number == 5


async def test_what_fits_is_registered_as_it_is(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    version = (await fit(client, make_adapter(rank=8))).json()
    assert (version["model"], version["rank"]) == ("default/large@1", 8)
    assert "fitted" not in version["metadata"]


async def test_a_claimed_rank_counts_too(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    """The engine looks at the configuration; the tensors are smaller, so nothing is lost."""
    pattern = {"q_proj": 2, "down_proj": 2}
    adapter = make_adapter(config={"r": 32, "rank_pattern": pattern, "alpha_pattern": pattern})
    version = (await fit(client, adapter)).json()
    assert (version["model"], version["rank"]) == ("default/large@2", 2)
    assert version["metadata"]["fitted"]["error"] == 0


async def test_without_it_the_reason_names_it(client: httpx.AsyncClient, large: Path) -> None:
    response = await client.post(URL, data={"name": "large"}, files=files_of(large))
    error = assert_error(response, 422, "adapter_rejected")
    assert "--fit-rank" in str(error["message"])
    fitted = await fit(client, large)
    assert fitted.json()["model"] == "default/large@3", "after the rejected one, and the original"


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ({"rank": RANK, "config": {"use_dora": True}}, "unsupported_feature"),
        ({"rank": RANK, "config": {"lora_alpha": 1e7}}, "overflow"),
        ({"config": {"r": 1024}, "rank": 2}, "rank_too_large"),
    ],
)
async def test_what_cannot_work_anyway_is_rejected(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, recipe: dict[str, Any], code: str
) -> None:
    error = assert_error(await fit(client, make_adapter(**recipe)), 422, "adapter_rejected")
    assert code in {reason["code"] for reason in error["reasons"]}  # type: ignore[attr-defined]
    shown = (await client.get("/admin/adapters/default/large")).json()
    assert [version["state"] for version in shown["versions"]] == ["rejected"]


async def test_by_a_source(client: httpx.AsyncClient, large: Path) -> None:
    body = {"name": "large", "source": str(large), "fit_rank": True}
    version = (await client.post(URL, json=body)).json()
    assert (version["model"], version["rank"]) == ("default/large@2", 8)
    assert version["source"] == "best fit: default/large@1 at rank 8"


async def test_a_server_with_a_higher_limit_offers_the_original_after_a_check(
    client: httpx.AsyncClient, larger_server: Registry, large: Path
) -> None:
    await fit(client, large)
    larger_server.refresh()
    adapter = larger_server.get_adapter("default", "large")
    assert adapter.ready.keys() == {2}
    (reason,) = adapter.incompatible[1].reasons
    assert reason["code"] == "never_tried"
    assert "loraplex adapters recheck large" in reason["message"]
    (due,) = rechecks.begin(larger_server)
    assert check(larger_server, due).number == 1
    assert larger_server.get_adapter("default", "large").ready.keys() == {1, 2}


async def test_a_recheck_here_leaves_it_as_it_is(
    client: httpx.AsyncClient, registry: Registry, large: Path
) -> None:
    await fit(client, large)
    checked = await client.post("/admin/adapters/default/large/recheck?wait=true")
    assert [version["state"] for version in checked.json()["data"]] == ["incompatible"]
    adapter = registry.get_adapter("default", "large")
    assert adapter.incompatible[1].reasons[0]["code"] == "rank_too_large"
