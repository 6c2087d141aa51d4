"""Verifies that the files of all versions exist and match their digests."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from adapters_registry.content.store import ContentStore
from adapters_registry.garbage import NEEDS_CONTENT
from adapters_registry.records.tables import Version


class ContentState(enum.StrEnum):
    """The result for the files of one digest."""

    SOUND = "sound"
    AT_ORIGIN = "at origin"
    """Not here, but at the origin. The files are fetched and verified when they are used."""
    NOT_AT_ORIGIN = "not at origin"
    """Sound here, but not available to other replicas: it was registered without an origin."""
    DAMAGED = "damaged"
    MISSING = "missing"


FINE = (ContentState.SOUND, ContentState.AT_ORIGIN)


@dataclass(frozen=True)
class Finding:
    """The files of one digest that versions need."""

    digest: str
    state: ContentState
    versions: list[str]


def needed_content(session: Session) -> dict[str, list[str]]:
    """Return every digest that versions need, with those versions (`tenant/name@3`)."""
    query = select(Version).where(Version.state.in_(NEEDS_CONTENT)).order_by(Version.id)
    needed: dict[str, list[str]] = defaultdict(list)
    for row in session.scalars(query.options(joinedload(Version.adapter))):
        adapter = row.adapter
        needed[row.digest].append(f"{adapter.tenant}/{adapter.name}@{row.number}")
    return needed


def verify(content: ContentStore, needed: dict[str, list[str]]) -> Iterator[Finding]:
    """Read all needed files and compare them with their digests.

    Raises:
        StoreUnavailable: there is an origin, and it does not answer.
    """
    at_origin = content.origin.sizes() if content.origin else {}
    for digest, versions in needed.items():
        yield Finding(digest, _state_of(content, digest, at_origin), versions)


def _state_of(content: ContentStore, digest: str, at_origin: dict[str, int]) -> ContentState:
    if not content.path(digest).is_dir():
        return ContentState.AT_ORIGIN if digest in at_origin else ContentState.MISSING
    if not content.is_sound(digest):
        return ContentState.DAMAGED
    if content.origin and digest not in at_origin:
        return ContentState.NOT_AT_ORIGIN
    return ContentState.SOUND
