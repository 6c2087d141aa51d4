"""Keys: whose they are, when they end, and that nothing gives their secrets away."""

import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import Conflict, InvalidKey, NotFound
from adapters_registry.records.keys import create_key, new_key, read_keys, revoke_key
from adapters_registry.records.tables import now
from adapters_registry.records.tenants import create_tenant, delete_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from server.cli.client import api_key
from server.errors import Unauthenticated
from server.process.startup import provide_admin_key
from server.settings import SettingsError, load_settings


def id_of(key: str) -> str:
    return key.split("-")[1]


@pytest.fixture
def replica(
    registry: Registry, tmp_path: Path, tiny_base: BaseSpec, database_url: str
) -> Iterator[Registry]:
    """Another server on the same database."""
    replica = Registry(database_url, ContentStore(tmp_path / "other"), tiny_base)
    yield replica
    replica.close()


def test_a_key_authenticates_its_tenant_and_scopes(keys: Keys) -> None:
    caller = keys.authenticate(keys.create("default", ["inference"]))
    assert (caller.tenant, caller.scopes) == ("default", frozenset({"inference"}))
    assert not caller.is_admin


def test_keys_survive_and_secrets_are_not_stored(keys: Keys, registry: Registry) -> None:
    key = keys.create("default", ["admin"])
    assert Keys(registry).authenticate(key).is_admin
    secret = key.split("-", 2)[2]
    database = Path(registry.engine.url.database or "")
    for file in database.parent.glob("registry.db*"):
        assert secret.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "bend",
    [
        str.upper,
        lambda k: k[:-1],
        lambda k: k + "x",
        lambda k: "a" + k,
        lambda k: k.replace("lpx-", "lpx--"),
        lambda k: k + "\udc80",
    ],
)
def test_a_bent_key_is_nobodys(keys: Keys, bend) -> None:  # type: ignore[no-untyped-def]
    key = keys.create("default", ["inference"])
    with pytest.raises(Unauthenticated):
        keys.authenticate(bend(key))


def test_a_key_ends(keys: Keys, registry: Registry) -> None:
    key, end = new_key(), now() + timedelta(hours=1)
    registry.apply(create_key, key, "default", ["inference"], expires_at=end)
    assert keys.authenticate(key).tenant == "default"
    with pytest.raises(Unauthenticated, match="expired"):
        Keys(registry, clock=lambda: end).authenticate(key)


def test_making_and_revoking_counts_on_other_servers(
    keys: Keys, registry: Registry, replica: Registry
) -> None:
    keys.create("default", ["admin"])
    key = keys.create("default", ["inference"])
    replica.refresh()  # what `follow_changes` does twice a second
    assert Keys(replica).authenticate(key).tenant == "default"
    registry.apply(revoke_key, id_of(key))
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(key)
    replica.refresh()
    with pytest.raises(Unauthenticated, match="revoked"):
        Keys(replica).authenticate(key)
    registry.apply(revoke_key, id_of(key))  # again: nothing happens
    assert [e.action for e in registry.audit()].count("key.revoke") == 1


def test_the_last_admin_key_stays(keys: Keys, registry: Registry) -> None:
    first = keys.create("default", ["admin"])
    registry.apply(create_tenant, "acme")
    second = keys.create("acme", ["admin"])
    registry.apply(revoke_key, id_of(first))
    with pytest.raises(Conflict, match="last valid admin key"):
        registry.apply(revoke_key, id_of(second))
    with pytest.raises(Conflict, match="last valid admin key"):
        registry.apply(delete_tenant, "acme")
    assert keys.authenticate(second).is_admin


def test_deleting_a_tenant_ends_its_keys(keys: Keys, registry: Registry) -> None:
    registry.apply(create_tenant, "acme")
    key = keys.create("acme", ["inference"])
    registry.apply(delete_tenant, "acme")
    assert "acme" not in registry.catalog.tenants
    with pytest.raises(Unauthenticated):
        keys.authenticate(key)
    with pytest.raises(NotFound):
        keys.create("acme", ["inference"])
    registry.apply(create_tenant, "acme")  # begins anew: the old key stays ended
    with pytest.raises(Unauthenticated):
        keys.authenticate(key)
    with pytest.raises(Conflict):
        registry.apply(delete_tenant, "default")


@pytest.mark.parametrize(
    "bad",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"label": "x" * 65},
        {"label": "two\nlines"},
        {"expires_at": now()},
        {"expires_at": (now() + timedelta(1)).replace(tzinfo=None)},
    ],
)
def test_keys_that_cannot_be_made(registry: Registry, bad: dict[str, object]) -> None:
    arguments = {"scopes": ["inference"], **bad}
    with pytest.raises(InvalidKey):
        registry.apply(create_key, new_key(), "default", **arguments)  # type: ignore[arg-type]


def test_last_use_is_recorded_when_saved(keys: Keys, registry: Registry) -> None:
    used, unused = keys.create("default", ["admin"]), keys.create("default", ["inference"])
    keys.authenticate(used)
    keys.save_last_used()
    with registry.session() as session:
        last_used = {key.id: key.last_used_at for key in read_keys(session)}
    assert last_used[id_of(used)] is not None
    assert last_used[id_of(unused)] is None


def test_a_crash_before_the_record_means_another_try(
    keys: Keys, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "admin.key"
    with monkeypatch.context() as patched:
        patched.setattr(registry, "apply", crash)
        with pytest.raises(KeyboardInterrupt):
            keys.create_first_admin_key(file)
    keys.create_first_admin_key(file)
    assert keys.authenticate(file.read_text().strip()).is_admin


def test_first_admin_key_is_written_once_for_its_owner_only(keys: Keys, tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    keys.create_first_admin_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = file.read_text().splitlines()
    assert len(lines) == 1
    assert keys.authenticate(lines[0]).is_admin
    keys.create_first_admin_key(file)
    assert file.read_text().splitlines() == lines


def test_servers_that_start_together_make_one_admin_key(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Keys(registry), Keys(registry)
    apply = registry.apply

    def apply_after_the_first(*arguments: Any) -> Any:
        monkeypatch.setattr(registry, "apply", apply)
        first.create_first_admin_key(tmp_path / "first.key")
        return apply(*arguments)

    monkeypatch.setattr(registry, "apply", apply_after_the_first)
    second.create_first_admin_key(tmp_path / "second.key")
    assert first.authenticate((tmp_path / "first.key").read_text().strip()).is_admin
    assert not (tmp_path / "second.key").exists(), "a key that opens nothing"
    with registry.session() as session:
        assert len(read_keys(session)) == 1


def test_an_admin_key_that_the_operator_chose(keys: Keys, registry: Registry) -> None:
    chosen, id_ = new_key(), "0123456789ab"
    assert keys.install_admin_key(chosen)
    assert keys.install_admin_key(chosen)
    assert keys.authenticate(chosen).is_admin
    keys.install_admin_key(f"lpx-{id_}-{'a' * 32}")
    with registry.session() as session:
        assert len(read_keys(session)) == 2
    registry.apply(revoke_key, id_)
    assert not keys.install_admin_key(f"lpx-{id_}-{'a' * 32}"), "it stays revoked"
    for refused in (f"lpx-{id_}-{'b' * 32}", "secret", f"lpx-{id_}-short"):
        with pytest.raises(InvalidKey):
            keys.install_admin_key(refused)


def test_the_file_of_the_admin_key(keys: Keys, tmp_path: Path) -> None:
    file, chosen = tmp_path / "mounted", new_key()
    settings = load_settings(data_dir=tmp_path / "data", admin_key_file=file)
    with pytest.raises(SettingsError, match=r"LORAPLEX_ADMIN_KEY_FILE.*cannot read"):
        provide_admin_key(settings, keys)
    file.write_text("hunter2\n")
    with pytest.raises(SettingsError, match=r"LORAPLEX_ADMIN_KEY_FILE.*openssl"):
        provide_admin_key(settings, keys)
    file.write_text(f"{chosen}\n")
    provide_admin_key(settings, keys)
    assert keys.authenticate(chosen).is_admin
    assert api_key(settings) == chosen, "commands on the same machine find it"
