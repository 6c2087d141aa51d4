"""Keys are replaced with an overlap, and live no longer than an operator allows."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from adapters_registry.errors import Conflict, InvalidKey, NotFound
from adapters_registry.records.access.key_life import Rotated, bound_lives, rotate_key
from adapters_registry.records.keys import (
    KeyPolicy,
    KeyRecord,
    create_key,
    new_key,
    revoke_key,
)
from adapters_registry.records.tables import now
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from server.errors import Unauthenticated

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
UNBOUNDED = KeyPolicy()


@pytest.fixture(autouse=True)
def acme(registry: Registry) -> None:
    registry.apply(create_tenant, "acme")


def make(registry: Registry, expires_at: datetime | None = None) -> tuple[str, KeyRecord]:
    key = new_key()
    scopes = ["adapters", "inference"]
    record = registry.apply(create_key, key, "acme", scopes, label="ci", expires_at=expires_at)
    return key, record


def rotate(
    registry: Registry,
    key_id: str,
    overlap: timedelta = HOUR,
    policy: KeyPolicy = UNBOUNDED,
    expires_at: datetime | None = None,
) -> tuple[str, Rotated]:
    key = new_key()
    rotated = registry.apply(rotate_key, key_id, key, overlap, policy, expires_at=expires_at)
    return key, rotated


def is_valid(registry: Registry, key: str, after: timedelta) -> bool:
    """Whether a key is valid at a later moment."""
    try:
        Keys(registry, clock=lambda: now() + after).authenticate(key)
    except Unauthenticated:
        return False
    return True


def test_both_keys_work_for_the_overlap_and_then_the_new_one(registry: Registry) -> None:
    old_key, old = make(registry)
    key, rotated = rotate(registry, old.id)
    new = rotated.new
    assert (new.tenant, new.scopes, new.label, new.expires_at) == (
        old.tenant,
        old.scopes,
        old.label,
        None,
    )
    assert rotated.old.replaced_by == new.id
    assert is_valid(registry, old_key, after=0.9 * HOUR)
    assert not is_valid(registry, old_key, after=1.1 * HOUR)
    assert is_valid(registry, key, after=1.1 * HOUR)


def test_without_an_overlap_the_old_one_ends_at_once(registry: Registry) -> None:
    old_key, old = make(registry)
    rotate(registry, old.id, timedelta(0))
    assert not is_valid(registry, old_key, after=timedelta(0))


def test_the_new_one_lives_as_long_as_the_old_one_was_to(registry: Registry) -> None:
    old_key, old = make(registry, now() + 10 * DAY)
    key, rotated = rotate(registry, old.id, overlap=20 * DAY)
    assert rotated.old.expires_at == old.expires_at, "an overlap makes no life longer"
    assert not is_valid(registry, old_key, after=10 * DAY)
    assert is_valid(registry, key, after=9.9 * DAY)
    assert not is_valid(registry, key, after=10.1 * DAY)


def test_what_cannot_be_rotated(registry: Registry) -> None:
    with pytest.raises(NotFound):
        rotate(registry, "nothing")
    _, old = make(registry)
    rotate(registry, old.id)
    with pytest.raises(Conflict, match="was replaced by"):
        rotate(registry, old.id)
    _, revoked = make(registry)
    registry.apply(revoke_key, revoked.id)
    with pytest.raises(Conflict, match="revoked or has expired"):
        rotate(registry, revoked.id)
    with pytest.raises(InvalidKey, match="future"):
        rotate(registry, make(registry)[1].id, expires_at=now() - HOUR)


def test_a_refused_rotation_changes_nothing(registry: Registry) -> None:
    _, old = make(registry)
    before = registry.catalog.keys
    with pytest.raises(InvalidKey, match="LORAPLEX_MAX_KEY_DAYS"):
        rotate(registry, old.id, policy=KeyPolicy(DAY), expires_at=now() + 2 * DAY)
    assert registry.catalog.keys == before


def test_the_policy_gives_an_end_and_refuses_a_longer_life(registry: Registry) -> None:
    policy = KeyPolicy(30 * DAY)

    def end(expires_at: datetime | None) -> datetime:
        made = registry.apply(
            create_key, new_key(), "acme", ["inference"], expires_at=expires_at, policy=policy
        )
        assert made.expires_at
        return made.expires_at

    latest = now() + 30 * DAY
    assert abs(end(None) - latest) < HOUR
    assert abs(end(latest + timedelta(minutes=1)) - latest) < timedelta(seconds=50), "clocks differ"
    assert end(soon := now() + DAY) == soon
    with pytest.raises(InvalidKey, match="may live 30 days"):
        end(latest + HOUR)


def test_a_rotation_keeps_to_the_policy(registry: Registry) -> None:
    _, old = make(registry)
    key, _ = rotate(registry, old.id, policy=KeyPolicy(DAY))
    assert is_valid(registry, key, after=0.9 * DAY)
    assert not is_valid(registry, key, after=1.1 * DAY)


def test_keys_that_are_there_get_an_end_once(registry: Registry) -> None:
    endless, _ = make(registry)
    short, known = make(registry, now() + HOUR)
    operators, exempt = make(registry)
    policy = KeyPolicy(DAY)
    assert registry.apply(bound_lives, policy, {exempt.id}) == 1
    assert is_valid(registry, endless, after=0.9 * DAY)
    assert not is_valid(registry, endless, after=1.1 * DAY)
    assert registry.catalog.keys[known.id].expires_at == known.expires_at
    assert is_valid(registry, short, after=0.9 * HOUR)
    assert is_valid(registry, operators, after=100 * DAY)
    assert registry.apply(bound_lives, policy, {exempt.id}) == 0
    (entry,) = registry.audit(action="key.bound")
    assert entry.before == {"expires_at": None}


def test_both_ids_are_in_the_audit_trail_and_no_secret(registry: Registry) -> None:
    _, old = make(registry)
    key, rotated = rotate(registry, old.id)
    (entry,) = registry.audit(action="key.rotate")
    assert entry.subject == f"key {old.id}"
    assert entry.after
    assert entry.after["replaced_by"] == rotated.new.id
    trail = str([(each.before, each.after, each.subject) for each in registry.audit()])
    assert key.split("-", 2)[2] not in trail
