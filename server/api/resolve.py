"""Resolves the `model` string of a request for a caller. Pure: it reads only the catalog."""

from __future__ import annotations

import hashlib
import random
import re

from adapters_registry.names import LIVE
from adapters_registry.records.catalog import AdapterRecord, Catalog, VersionRecord, pick
from adapters_registry.records.tables import VersionState
from adapters_registry.trust.sources import is_source
from server.auth import Caller
from server.errors import ModelIncompatible, ModelNotFound

MIN_DIGEST_CHARACTERS = 12

_DIGEST = re.compile(rf"sha256:[0-9a-f]{{{MIN_DIGEST_CHARACTERS},64}}")


def resolve(
    model: str, caller: Caller, catalog: Catalog, base_name: str, conversation: str | None = None
) -> VersionRecord | None:
    """Return the version that `model` names, or None for the base.

    Forms: the base's name, alone or with a colon before any of the others (SGLang's and Ray's
    form), `name`, `tenant/name`, and either with `@3`, `@alias` or
    `@sha256:<12 or more hex digits>`. Adapters that the caller may not use do not exist for it. If
    an alias is split, requests of one `conversation` get the same version. Others are drawn by
    weight. The share of a version of another base goes to the alias's other versions.

    Raises:
        ModelNotFound: it names nothing that the caller may use.
        ModelIncompatible: what it names belongs to another base, or has too large a rank.
    """
    if model == base_name:
        return None
    model = model.removeprefix(f"{base_name}:")
    path, at, selector = model.partition("@")
    tenant, slash, name = path.rpartition("/")
    adapter = catalog.adapters.get((tenant if slash else caller.tenant, name))
    version = None
    if adapter is not None and may_use(caller, adapter):
        version = _select(adapter, selector if at else LIVE, conversation)
    if version is None:
        raise ModelNotFound(
            f"the model {model[:200]!r} does not exist; GET /v1/models lists what you may use",
            param="model",
        )
    if version.state is VersionState.INCOMPATIBLE:
        reasons = [str(reason["message"]) for reason in version.reasons]
        more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
        raise ModelIncompatible(
            f"{version.public_name} is not offered on this server: {reasons[0]}{more}",
            param="model",
        )
    return version


def arm_of(model: str, version: VersionRecord | None, catalog: Catalog) -> tuple[int, int] | None:
    """Return the version's id and the revision of `live`, if a split of `live` chose the version.

    Requests that name a version, another alias or a source tell nothing about the split.
    """
    _, at, selector = model.partition("@")
    if version is None or is_source(model) or (at and selector != LIVE):
        return None
    adapter = catalog.adapters.get((version.tenant, version.name))
    alias = adapter.aliases.get(LIVE) if adapter else None
    if adapter is None or alias is None or len(alias.targets) < 2:
        return None
    return version.version_id, adapter.live_revision


def may_use(caller: Caller, adapter: AdapterRecord) -> bool:
    """Return whether the caller may use an adapter: its own, a shared one, or as an admin any."""
    is_shared = adapter.public or caller.tenant_id in adapter.shared_with_ids
    return is_shared or caller.manages(adapter.tenant)


def _select(
    adapter: AdapterRecord, selector: str, conversation: str | None
) -> VersionRecord | None:
    known = {**adapter.incompatible, **adapter.ready}
    if selector.isascii() and selector.isdigit() and len(selector) < 10:
        return known.get(int(selector))
    if _DIGEST.fullmatch(selector):
        digest = selector.removeprefix("sha256:")
        matches = [v for v in adapter.ready.values() if v.digest.startswith(digest)]
        matches = matches or [v for v in known.values() if v.digest.startswith(digest)]
        return matches[0] if len(matches) == 1 else None
    alias = adapter.aliases.get(selector)
    if alias is None:
        return None
    offered = alias.among(adapter.ready)
    if len(offered) == 1:
        return known.get(offered[0].version)
    return known.get(pick(offered, _share(f"{adapter.id}@{selector}", conversation)))


def _share(alias: str, conversation: str | None) -> float:
    """Return a number in [0, 1), which is always the same for a conversation."""
    if conversation is None:
        return random.random()
    digest = hashlib.sha256(f"{alias}\0{conversation}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
