"""Policies over HTTP: who may set them, what a registration keeps of them, and the console."""

from pathlib import Path

import httpx
import pytest

from adapters_registry.content.adapter_files import SIGNATURE_FILE
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.server.answers import assert_error, files_of
from tests.signing import SigningKey
from tests.tiny import AdapterFactory

POLICY = "/admin/tenants/default/policy"
REGISTER = "/admin/adapters?wait=true"
pytestmark = pytest.mark.usefixtures("nothing_half_done")


async def test_an_admin_sets_a_policy(
    client: httpx.AsyncClient, keys: Keys, tmp_path: Path
) -> None:
    unset = {"signatures": "none", "trusted_keys": [], "trusted_identities": [], "sources": []}
    assert (await client.get(POLICY)).json() == unset
    key = SigningKey(tmp_path, "release")
    policy = unset | {
        "signatures": "if_present",
        "trusted_keys": [{"name": "release", "pem": key.pem}],
        "sources": ["hf://acme/*"],
    }
    assert (await client.put(POLICY, json=policy)).json() == policy
    assert (await client.get(POLICY)).json() == policy
    entries = (await client.get("/admin/audit?action=tenant.policy")).json()["data"]
    (entry,) = entries
    assert entry["after"] == {
        "signatures": "if_present",
        "trusted_keys": [{"name": "release", "fingerprint": key.details["fingerprint"]}],
        "sources": ["hf://acme/*"],
    }
    await client.put(POLICY, json=unset)
    (after, _) = (await client.get("/admin/audit?action=tenant.policy")).json()["data"]
    assert (after["before"], after["after"]) == (entry["after"], {})
    for bad, param in (
        ({"signatures": "required"}, "signatures"),
        ({"sources": ["hf://*"]}, "sources"),
        ({"trusted_keys": [{"name": "x", "pem": "x"}]}, "trusted_keys"),
        ({"signatures": "sometimes"}, "signatures"),
    ):
        response = await client.put(POLICY, json=bad)
        assert assert_error(response, 400, "invalid_request")["param"] == param
    assert_error(await client.get("/admin/tenants/nobody/policy"), 404, "not_found")
    theirs = {"Authorization": f"Bearer {keys.create('default', ['adapters'])}"}
    assert_error(await client.get(POLICY, headers=theirs), 403, "insufficient_scope")
    assert_error(await client.put(POLICY, json={}, headers=theirs), 403, "insufficient_scope")


async def test_signatures_are_required_by_tenant(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    registry: Registry,
    tmp_path: Path,
) -> None:
    registry.apply(create_tenant, "acme")
    key, other = SigningKey(tmp_path, "release"), SigningKey(tmp_path, "other")
    policy = {
        "signatures": "required",
        "trusted_keys": [{"name": "release", "pem": key.pem}],
    }
    await client.put(POLICY, json=policy)
    adapter = make_adapter()
    unsigned = files_of(adapter)
    response = await client.post(REGISTER, data={"name": "new"}, files=unsigned)
    message = str(assert_error(response, 422, "signature_refused")["message"])
    assert "model.sig is missing" in message
    form = {"name": "new", "tenant": "acme"}
    assert (await client.post(REGISTER, data=form, files=unsigned)).status_code == 201
    other.sign(adapter)
    wrong = [*unsigned, ("files", (SIGNATURE_FILE, (adapter / SIGNATURE_FILE).read_bytes()))]
    response = await client.post(REGISTER, data={"name": "new"}, files=wrong)
    assert_error(response, 422, "signature_refused")
    assert ("default", "new") not in registry.catalog.adapters, "nothing of it is kept"
    (adapter / SIGNATURE_FILE).unlink()
    key.sign(adapter)
    response = await client.post(REGISTER, json={"name": "new", "source": str(adapter)})
    assert response.status_code == 201
    assert response.json()["metadata"]["signature"] == key.details
