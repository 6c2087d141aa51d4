"""`loraplex tenants` and `loraplex keys`, as a person would call them, on the app."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.keys import KeyPolicy
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.server.answers import CHAT
from tests.server.cli.commands import run
from tests.signing import SigningKey
from tests.tiny import AdapterFactory

pytestmark = pytest.mark.usefixtures("served")


def test_tenants() -> None:
    assert "tenant acme is created" in run("tenants", "create", "acme")
    assert "already" in run("tenants", "create", "acme", code=1)
    assert [t["name"] for t in json.loads(run("tenants", "list", "--json"))] == ["acme", "default"]
    assert "acme" in run("tenants", "list")
    assert "num_adapters: 0" in run("tenants", "show", "acme")
    assert "is deleted" in run("tenants", "delete", "acme")
    assert "no tenant" in run("tenants", "show", "acme", code=1)


def test_quotas() -> None:
    run("tenants", "create", "acme")
    run("tenants", "quota", "acme", "--requests-per-minute", "60", "--max-tokens", "100")
    quota = json.loads(run("tenants", "quota", "acme", "--max-tokens", "none", "--json"))
    assert (quota["requests_per_minute"], quota["max_tokens"]) == (60, None)
    assert "max_tokens: no limit" in run("tenants", "quota", "acme")
    assert "service_tiers: none" in run("tenants", "quota", "acme")
    said = run("tenants", "quota", "acme", "--service-tiers", "priority, flex")
    assert "service_tiers: flex, priority" in said
    assert "service_tiers: none" in run("tenants", "quota", "acme", "--service-tiers", "none")
    assert "must be" in run("tenants", "quota", "acme", "--service-tiers", "best", code=1)
    assert "greater" in run("tenants", "quota", "acme", "--adapters", "-1", code=1)


def test_suspension(home: VersionRecord, registry: Registry) -> None:
    run("tenants", "create", "acme")
    assert "acme is suspended" in run("tenants", "suspend", "acme", "--reason", "unpaid")
    assert "unpaid" in run("tenants", "list")
    assert registry.catalog.tenants["acme"].suspension
    assert "acme is in service" in run("tenants", "resume", "acme")
    assert "unpaid" not in run("tenants", "list")
    assert "home is suspended" in run("adapters", "suspend", "home", "--reason", "review")
    assert "suspended: review" in run("adapters", "list")
    assert "default/home is suspended: review" in run("adapters", "show", "home")
    assert "home is in service" in run("adapters", "resume", "home")
    assert "suspended" not in run("adapters", "list")
    assert "no adapter" in run("adapters", "suspend", "nope", code=1)


def test_policies(tmp_path: Path) -> None:
    key = SigningKey(tmp_path, "release")
    assert "signatures: none" in run("tenants", "policy", "default")
    identity = "release@acme.com,https://accounts.acme.com"
    options = ["--signatures", "required", "--trust-key", str(key.public_file)]
    options += ["--trust-identity", identity, "--source", "hf://acme/*", "--source", "s3://b.c/d"]
    policy = json.loads(run("tenants", "policy", "default", *options, "--json"))
    assert policy == {
        "signatures": "required",
        "trusted_keys": [{"name": "release", "pem": key.pem}],
        "trusted_identities": [
            {"identity": "release@acme.com", "issuer": "https://accounts.acme.com"}
        ],
        "sources": ["hf://acme/*", "s3://b.c/d"],
    }
    shown = run("tenants", "policy", "default", "--source", "hf://acme/home")
    assert f"trusted key: release ({key.details['fingerprint']})" in shown
    assert "sources of requests: hf://acme/home" in shown
    assert "nobody is trusted" in run("tenants", "policy", "default", "--trust-nobody", code=1)
    cleared = ["--signatures", "none", "--trust-nobody", "--no-sources"]
    assert "sources of requests: none" in run("tenants", "policy", "default", *cleared)
    assert "cannot be read" in run("tenants", "policy", "default", "--trust-key", "/none", code=1)
    wrong = run("tenants", "policy", "default", "--trust-identity", "me", code=1)
    assert "IDENTITY,ISSUER" in wrong
    assert "no tenant" in run("tenants", "policy", "nobody", code=1)


def test_who_has_signed_is_said(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    key = SigningKey(tmp_path, "release")
    options = ["--signatures", "required", "--trust-key", str(key.public_file)]
    run("tenants", "policy", "default", *options)
    adapter = make_adapter()
    key.sign(adapter)
    said = run("adapters", "register", "rooms", str(adapter))
    assert f"signed by release ({key.details['fingerprint']})" in said
    assert "signed by release" in run("adapters", "show", "rooms")
    assert "trusted_keys: release" in run("audit", "--action", "tenant.policy")


def test_keys(keys: Keys) -> None:
    key = run("keys", "create", "--scope", "adapters", "--label", "ci", "--expires-days", "1")
    caller = keys.authenticate(key.strip())
    assert caller.scopes == {"adapters"}
    (row,) = [k for k in json.loads(run("keys", "list", "--json")) if k["id"] == caller.key_id]
    assert (row["label"], row["revoked_at"]) == ("ci", None)
    assert row["expires_at"] is not None
    assert caller.key_id in run("keys", "list", "--tenant", "default")
    assert "is revoked" in run("keys", "revoke", caller.key_id)
    assert "must be 'inference'" in run("keys", "create", "--scope", "root", code=1)


def test_key_rotation(keys: Keys, registry: Registry) -> None:
    key = run("keys", "create", "--label", "web").strip()
    key_id = key.split("-")[1]
    rotated = json.loads(run("keys", "rotate", key_id, "--overlap-hours", "1", "--json"))
    assert rotated["replaces"] == key_id
    assert registry.catalog.keys[key_id].replaced_by == rotated["id"]
    assert keys.authenticate(key).tenant == keys.authenticate(rotated["key"]).tenant
    assert rotated["id"] in run("keys", "list")
    said = run("keys", "rotate", rotated["id"], "--expires-days", "2")
    assert f"{rotated['id']} works until" in said
    assert "ends at" in said
    assert "was replaced by" in run("keys", "rotate", key_id, code=1)


def test_a_policy_is_said_when_it_gives_a_key_its_end(keys: Keys) -> None:
    keys.policy = KeyPolicy(timedelta(days=3))
    assert "no key may live longer" in run("keys", "create")
    assert "no key may live longer" not in run("keys", "create", "--expires-days", "3")
    assert "may live 3 days" in run("keys", "create", "--expires-days", "4", code=1)


def test_sharing(home: VersionRecord) -> None:
    assert "shared with acme" in run("adapters", "share", "home", "--with", "acme")
    assert "shared with everyone" in run("adapters", "share", "home", "--public")
    assert "shared with nobody" in run("adapters", "share", "home")


def test_usage_and_audit(home: VersionRecord, app: FastAPI, keys: Keys) -> None:
    with TestClient(app, headers={"x-api-key": keys.create("default", ["inference"])}) as client:
        assert client.post(CHAT, json={"model": "home"}).status_code == 200
    (row,) = json.loads(run("usage", "--since", "2026-01-01", "--json"))
    assert (row["adapter"], row["requests"]) == ("default/home", 1)
    assert run("usage", "--until", "2026-01-01", "--csv").count("\n") == 1
    assert "requests" in run("usage", "--tenant", "default")
    run("tenants", "create", "acme")
    (entry,) = json.loads(run("audit", "--tenant", "acme", "--json"))
    assert (entry["action"], entry["subject"]) == ("tenant.create", "acme")
    assert entry["actor"].startswith("key ")
    assert "when" in run("audit", "--action", "tenant.create")


def test_the_keys_own_tenant_is_the_default(
    keys: Keys, registry: Registry, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("tenants", "create", "acme")
    run("adapters", "register", "bot", str(make_adapter()), "--tenant", "acme")
    assert "no adapter default/bot" in run("adapters", "show", "bot", code=1)
    monkeypatch.setenv("LORAPLEX_API_KEY", keys.create("acme", ["adapters"]))
    assert json.loads(run("adapters", "show", "bot", "--json"))["tenant"] == "acme"
    run("adapters", "register", "new", str(make_adapter()))
    assert ("acme", "new") in registry.catalog.adapters
    run("adapters", "delete", "bot", "--force")
