"""Reads a `model` that names a composition: `style*0.7+domain@3*0.3`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adapters_registry.composition.parts import WeightedVersion, check_count, checked_parts
from adapters_registry.errors import CannotCompose
from adapters_registry.names import LIVE
from adapters_registry.records.catalog import Catalog, VersionRecord, largest
from adapters_registry.records.tenants import TenantRecord
from server.api.resolve import resolve
from server.auth import Caller
from server.errors import InvalidRequest

MAX_CHARACTERS = 1024
_PART = re.compile(r"(?P<model>[^*]+)(?:\*(?P<weight>-?\d{1,6}(?:\.\d{1,9})?))?", re.ASCII)
_FORM = "write name*weight for each part and + between them, as in style*0.7+domain@3*0.3"


def is_composition(model: str, base_name: str) -> bool:
    """Return whether a `model` names a composition: names of adapters have neither + nor *."""
    return ("+" in model or "*" in model) and model != base_name


def parse_composition(model: str) -> list[tuple[str, float]]:
    """Return the parts that a `model` names, each with its weight, which is 1 if it has none.

    Raises:
        InvalidRequest: it is too long, has too many parts, or cannot be read.
    """
    if len(model) > MAX_CHARACTERS:
        raise InvalidRequest(
            f"a model may have at most {MAX_CHARACTERS} characters, not {len(model):,}",
            param="model",
        )
    texts = model.split("+")
    try:
        check_count(len(texts))
    except CannotCompose as error:
        raise InvalidRequest(str(error), param="model") from None
    parts = []
    for text in texts:
        match = _PART.fullmatch(text)
        if match is None:
            raise InvalidRequest(
                f"{text[:80]!r} is no part of a composition: {_FORM}", param="model"
            )
        parts.append((match["model"], float(match["weight"] or 1)))
    return parts


def resolve_parts(
    named: Sequence[tuple[str, float]],
    tenant: TenantRecord,
    catalog: Catalog,
    base_name: str,
    conversation: str | None = None,
    *,
    is_split_drawn: bool,
) -> tuple[WeightedVersion, ...]:
    """Return the versions that the parts of a composition name, for the tenant that will own it.

    It may add its own adapters and those that are shared with it, whoever asks. With
    `is_split_drawn` a split alias means what it means in a request: one of its versions, drawn by
    weight. Otherwise it means the version with the largest share.

    Raises:
        ModelNotFound: a part names nothing that the tenant may use.
        ModelIncompatible: a part belongs to another base, or has too large a rank.
        CannotCompose: the parts cannot be added.
    """
    owner = Caller(tenant.name, frozenset(), tenant_id=tenant.id)
    parts = []
    for model, weight in named:
        version = resolve(model, owner, catalog, base_name, conversation)
        if version is None:
            raise CannotCompose(f"{model!r} is the base, which every part changes: leave it out")
        if not is_split_drawn:
            version = _main(model, version, catalog)
        parts.append(WeightedVersion(version, weight))
    return checked_parts(parts)


def _main(model: str, drawn: VersionRecord, catalog: Catalog) -> VersionRecord:
    """Return the version with the largest share of the alias that `model` names, if it is one."""
    adapter = catalog.adapters[(drawn.tenant, drawn.name)]
    _, at, selector = model.partition("@")
    alias = adapter.aliases.get(selector if at else LIVE)
    number = largest(alias.among(adapter.ready)) if alias else drawn.number
    return adapter.ready.get(number, drawn)
