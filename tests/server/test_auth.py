import stat
from pathlib import Path

import pytest

from adapters_registry.records import Registry
from server.auth import Keys
from server.errors import Unauthenticated


def test_a_key_authenticates_its_tenant_and_scopes(keys: Keys) -> None:
    caller = keys.authenticate(keys.create("default", ["inference"]))
    assert (caller.tenant, caller.scopes) == ("default", {"inference"})
    assert not caller.is_admin


def test_keys_survive_and_secrets_are_not_stored(keys: Keys, registry: Registry) -> None:
    key = keys.create("default", ["admin"])
    assert Keys(registry).authenticate(key).is_admin
    secret = key.split("-", 2)[2]
    database = Path(registry.engine.url.database or "")
    for file in database.parent.glob("registry.db*"):
        assert secret.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "bend", [str.upper, lambda k: k[:-1], lambda k: k + "x", lambda k: "a" + k]
)
def test_a_bent_key_is_nobodys(keys: Keys, bend) -> None:  # type: ignore[no-untyped-def]
    key = keys.create("default", ["inference"])
    with pytest.raises(Unauthenticated):
        keys.authenticate(bend(key))


def test_a_crash_before_the_record_means_another_try(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "admin.key"
    with monkeypatch.context() as patched:
        patched.setattr(keys, "_add", crash)
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
