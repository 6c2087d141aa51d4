"""Tenants whose adapters must be signed: nothing unsigned gets in by composition or best fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from adapters_registry.content.adapter_files import SIGNATURE_FILE
from adapters_registry.errors import SignatureRefused
from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import create_tenant, set_policy
from adapters_registry.registry import Registry
from adapters_registry.trust.made_versions import require_signed
from adapters_registry.trust.policy import (
    SignatureRule,
    TenantPolicy,
    TrustedIdentity,
    TrustedKey,
)
from tests.server.answers import CHAT, assert_error, files_of
from tests.signing import SigningKey
from tests.tiny import AdapterFactory

COMPOSE = "/admin/adapters/default/both/compose?wait=true"
PARTS = {"parts": [{"model": "style", "weight": 0.7}, {"model": "domain", "weight": 0.3}]}


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey(tmp_path, "release")


@pytest.fixture
def adapters(make_adapter: AdapterFactory, key: SigningKey) -> dict[str, Path]:
    """Two adapters, of which `domain` is signed."""
    found = {"style": make_adapter(seed=1), "domain": make_adapter(seed=2)}
    key.sign(found["domain"])
    return found


def take_in(registry: Registry, adapter: Path, name: str, tenant: str = "default") -> VersionRecord:
    stage = partial(copytree, adapter, dirs_exist_ok=True)
    version, is_new = registry.register(tenant, name, "test", stage)
    return registry.accept(version, registry.check_files(version)) if is_new else version


def require(registry: Registry, *keys: SigningKey, tenant: str = "default") -> None:
    trusted = tuple(
        TrustedKey("release" if key is keys[0] else key.public_file.stem, key.pem) for key in keys
    )
    registry.apply(set_policy, tenant, TenantPolicy(SignatureRule.REQUIRED, trusted))


async def test_parts_from_before_the_policy_are_refused_until_they_are_signed(
    client: httpx.AsyncClient, registry: Registry, adapters: dict[str, Path], key: SigningKey
) -> None:
    take_in(registry, adapters["style"], "style")
    require(registry, key)
    take_in(registry, adapters["domain"], "domain")
    refused = await client.post(COMPOSE, json=PARTS)
    message = str(assert_error(refused, 422, "signature_refused")["message"])
    assert "default/style@1 is not known to be" in message
    on_request = await client.post(CHAT, json={"model": "style*0.7+domain*0.3"})
    assert_error(on_request, 422, "signature_refused")
    assert not {name for _, name in registry.catalog.adapters} & {"both", "composed"}
    assert (await client.post(CHAT, json={"model": "style"})).status_code == 200, "as documented"

    key.sign(adapters["style"])
    again = take_in(registry, adapters["style"], "style")
    assert again.number == 1, "the same content is the same version, and is known to be signed now"
    assert registry.audit(action="version.sign")
    made = await client.post(COMPOSE, json=PARTS)
    assert made.status_code == 201, made.text
    parts = made.json()["metadata"]["composed"]["parts"]
    assert [part["signed_by"] for part in parts] == [[key.details]] * 2
    assert (await client.post(CHAT, json={"model": "style*0.7+domain*0.3"})).status_code == 200
    of_a_sum = {"parts": [{"model": "both", "weight": 2}, {"model": "style", "weight": 1}]}
    nested = await client.post(COMPOSE.replace("both/", "more/"), json=of_a_sum)
    assert nested.status_code == 201, nested.text


async def test_a_fit_of_an_unsigned_original_is_refused(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory, key: SigningKey
) -> None:
    large = make_adapter(rank=12)
    form, url = {"name": "large", "fit_rank": "true"}, "/admin/adapters?wait=true"
    assert (await client.post(url, data=form, files=files_of(large))).status_code == 201
    original = registry.get_version("default", "large", 1)
    require(registry, key)
    policy = registry.catalog.tenants["default"].policy
    with pytest.raises(SignatureRefused, match="default/large@1 is not known to be"):
        require_signed([original], "default", policy)
    with pytest.raises(SignatureRefused):
        require_signed([registry.get_version("default", "large", 2)], "default", policy)
    key.sign(large)
    signature = ("files", (SIGNATURE_FILE, (large / SIGNATURE_FILE).read_bytes()))
    signed = await client.post(
        url, data={**form, "name": "signed"}, files=[*files_of(large), signature]
    )
    assert signed.status_code == 201, signed.text
    assert signed.json()["metadata"]["fitted"]["of"]["signed_by"][0]["signer"] == "release"


async def test_a_key_is_known_by_its_fingerprint_not_by_its_name(
    client: httpx.AsyncClient,
    registry: Registry,
    adapters: dict[str, Path],
    key: SigningKey,
    tmp_path: Path,
) -> None:
    """Names are reused: by other tenants, and for the key that replaces another."""
    registry.apply(create_tenant, "acme")
    for tenant in ("acme", "default"):
        require(registry, key, tenant=tenant)
        take_in(registry, adapters["domain"], "domain", tenant)
    registry.apply(share_adapter, "acme", "domain", ["default"], False)
    replaced = SigningKey(tmp_path, "replaced")
    require(registry, replaced)
    for model, what_to_do in (
        ("domain", "register its files again"),
        ("acme/domain", "register its files as an adapter of this tenant"),
    ):
        parts = {"parts": [{"model": model, "weight": 1}]}
        refused = await client.post(COMPOSE, json=parts)
        message = str(assert_error(refused, 422, "signature_refused")["message"])
        assert key.details["fingerprint"] in message
        assert what_to_do in message
    require(registry, key, replaced)
    made = await client.post(COMPOSE, json={"parts": [{"model": "acme/domain", "weight": 1}]})
    assert made.status_code == 201, made.text
    (part,) = made.json()["metadata"]["composed"]["parts"]
    print_of_key = key.details["fingerprint"]
    assert part["signed_by"] == [key.details | {"signer": print_of_key}], "the name is acme's own"


def test_identities_count_across_tenants_and_trust_may_end(
    registry: Registry, adapters: dict[str, Path], key: SigningKey
) -> None:
    own = take_in(registry, adapters["style"], "style")
    signed = {"signer": "release@acme.com", "issuer": "https://issuer", "method": "sigstore"}
    foreign = VersionRecord(**{**vars(own), "tenant": "acme", "metadata": {"signature": signed}})
    who = TrustedIdentity("release@acme.com", "https://issuer")
    trusting = TenantPolicy(SignatureRule.REQUIRED, trusted_identities=(who,))
    require_signed([foreign], "default", trusting)
    for other in (TrustedIdentity("release@acme.com", "https://other"), TrustedIdentity("x", "y")):
        policy = TenantPolicy(SignatureRule.REQUIRED, trusted_identities=(other,))
        with pytest.raises(SignatureRefused, match="doesn't trust now"):
            require_signed([foreign], "default", policy)
    for rule in (SignatureRule.NONE, SignatureRule.IF_PRESENT):
        require_signed([own], "default", TenantPolicy(rule))
