"""Compositions that requests have named: used, and retired when nobody uses them any more.

The functions are operations for `Registry.apply`. When a composition was used is part of its
metadata, so all servers on the database know it. They record it seldom (`NOTED_SHARE`).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from adapters_registry.composition.metadata import (
    ON_REQUEST_NAME,
    composed_of,
    is_on_request,
    used_at,
    with_use,
)
from adapters_registry.records.change import Change
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tables import Adapter, Tenant, Version, VersionState

NOTED_SHARE = 0.25
"""The share of the time that a composition is kept, after which another use is recorded."""


def note_use(change: Change, version_id: int, at: datetime) -> None:
    """Record that a composition is used. It may be gone."""
    row = change.session.get(Version, version_id, options=[joinedload(Version.adapter)])
    if row is not None and is_on_request(row.details):
        row.details = with_use(row.details, at)
        row.adapter.epoch = change.epoch


def retire_unused(change: Change, before: datetime) -> list[str]:
    """Retire compositions that requests have named, but none since a time. Returns their names.

    Those with a part that its owner does not share any more are retired, too, used or not. Those
    that are pinned, or that an alias points to, stay.
    """
    query = (
        select(Version)
        .join(Version.adapter)
        .where(
            Adapter.name == ON_REQUEST_NAME,
            Adapter.deleted.is_(False),
            Version.state == VersionState.READY,
        )
        .options(joinedload(Version.adapter))
    )
    retired = []
    for row in change.session.scalars(query).all():
        if is_on_request(row.details) and not _is_in_service(row):
            last_used = used_at(row.details) or row.created_at
            if last_used < before or not _may_use_all(change, row):
                adapter = row.adapter
                retire_version(change, adapter.tenant, adapter.name, row.number)
                retired.append(f"{adapter.tenant}/{adapter.name}@{row.number}")
    return retired


def _is_in_service(row: Version) -> bool:
    targets = [number for alias in row.adapter.aliases for number, _ in alias.targets]
    return row.pinned or row.number in targets


def _may_use_all(change: Change, row: Version) -> bool:
    """Return whether the tenant may still use the adapters that the composition was made of."""
    user = change.session.get_one(Tenant, row.adapter.tenant)
    for part in composed_of(row.details).get("parts", []):
        owner, _, name = str(part["model"]).partition("@")[0].partition("/")
        if owner == user.name:
            continue
        adapter = change.find_adapter(owner, name)
        if adapter is None or not (adapter.public or user.id in adapter.shared_with_ids):
            return False
    return True
