"""`/v1/models`: what the caller may use, whether it is loaded or not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from adapters_registry.composition.metadata import ON_REQUEST_NAME
from adapters_registry.composition.parts import WeightedVersion
from adapters_registry.records.catalog import AdapterRecord, VersionRecord
from adapters_registry.registry import Registry
from server.api.composition.expression import is_composition
from server.api.composition.on_request import OnRequest
from server.api.dedicated.dedicated import Dedicated
from server.api.resolve import may_use, resolve
from server.api.routes import Routes
from server.auth import Caller
from server.residency.leases import Leases
from server.residency.states import Tier
from server.workers import Workers

NUM_THREADS = 2


def router(
    registry: Registry,
    leases: Leases,
    base_name: str,
    base: str,
    on_request: OnRequest,
    dedicated: Dedicated | None = None,
) -> Routes:
    """Return the routes that list models. A dedicated server lists only its own."""
    routes = Routes(tags=["inference"])
    # With thousands of adapters a listing takes long, and no stream should wait for it.
    workers = Workers("listing", NUM_THREADS)

    @routes.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """List the base and, by name, every adapter with a live version that the key may use."""
        caller: Caller = request.state.caller
        cards = await workers.run(cards_for, caller)
        # The last three are Anthropic's.
        ids = [each["id"] for each in cards] or [None]
        ends = {"first_id": ids[0], "last_id": ids[-1]}
        return {"object": "list", "data": cards, "has_more": False, **ends}

    def cards_for(caller: Caller) -> list[dict[str, Any]]:
        if dedicated:
            return own_card(dedicated, caller)
        cards = [
            card(public_id(adapter, caller), adapter, adapter.live)
            for adapter in registry.catalog.adapters.values()
            if adapter.live and may_use(caller, adapter)
        ]
        cards.sort(key=lambda each: str(each["id"]))
        return [_base_card(base_name, base), *cards]

    def own_card(dedicated: Dedicated, caller: Caller) -> list[dict[str, Any]]:
        offered = dedicated.offered(caller, registry.catalog)
        if offered is None:
            return []
        adapter, version, is_live = offered
        shortest = public_id(adapter, caller)
        return [card(shortest if is_live else f"{shortest}@{version.number}", adapter, version)]

    @routes.get("/v1/models/{model:path}")
    async def show_model(request: Request, model: str) -> dict[str, Any]:
        """Show what a model string means, in any form that requests accept."""
        caller: Caller = request.state.caller
        if dedicated:
            dedicated.require(model, caller, registry.catalog)
        if is_composition(model, base_name):
            return composition_card(model, caller)
        version = resolve(model, caller, registry.catalog, base_name)
        if version is None:
            return _base_card(base_name, base)
        adapter = registry.get_adapter(version.tenant, version.name)
        return card(model, adapter, version)

    def composition_card(model: str, caller: Caller) -> dict[str, Any]:
        """Show a sum of adapters as requests name it. Looking at it makes nothing."""
        parts = on_request.parts_of(model, caller, None)
        version = on_request.known(parts, caller.tenant)
        if version is None:
            shown = _unmade_card(model, caller.tenant, parts, base_name)
        else:
            shown = card(model, registry.get_adapter(version.tenant, version.name), version)
        shown["adapter"]["parts"] = [
            {"model": part.version.public_name, "weight": part.weight} for part in parts
        ]
        return shown

    def card(model_id: str, adapter: AdapterRecord, version: VersionRecord) -> dict[str, Any]:
        return _card(model_id, adapter, version, base_name, leases.tier_of(version))

    return routes


def public_id(adapter: AdapterRecord, caller: Caller) -> str:
    """Return the shortest string by which a caller names an adapter."""
    own = adapter.tenant == caller.tenant
    return adapter.name if own else f"{adapter.tenant}/{adapter.name}"


def _base_card(base_name: str, base: str) -> dict[str, Any]:
    return {
        **_common(base_name, datetime.fromtimestamp(0, UTC)),
        "owned_by": "loraplex",
        "root": base,
    }


def _common(model_id: str, created_at: datetime) -> dict[str, Any]:
    """Return what OpenAI's and Anthropic's clients read of a model."""
    return {
        "id": model_id,
        "object": "model",
        "created": int(created_at.timestamp()),
        "type": "model",
        "display_name": model_id,
        "lifecycle": "active",
        "created_at": created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    }


def _unmade_card(
    model_id: str, tenant: str, parts: Sequence[WeightedVersion], base_name: str
) -> dict[str, Any]:
    """Return the card of a composition that the first request will have made."""
    unknown = ("version", "digest", "rank", "state", "tier")
    adapter: dict[str, Any] = {
        "tenant": tenant,
        "name": ON_REQUEST_NAME,
        **dict.fromkeys(unknown),
        "pinned": False,
        "suspended": False,
        "aliases": [],
    }
    newest = max(part.version.created_at for part in parts)
    card = {"owned_by": tenant, "root": None, "parent": base_name, "adapter": adapter}
    return _common(model_id, newest) | card


def _card(
    model_id: str, adapter: AdapterRecord, version: VersionRecord, base_name: str, tier: Tier
) -> dict[str, Any]:
    return {
        **_common(model_id, version.created_at),
        "owned_by": version.tenant,
        "root": version.public_name,
        "parent": base_name,
        "adapter": {
            "tenant": version.tenant,
            "name": version.name,
            "version": version.number,
            "digest": version.digest,
            "rank": version.rank,
            "state": version.state.value,
            "tier": tier.value,
            "pinned": version.pinned,
            "suspended": adapter.suspension is not None,
            "aliases": sorted(
                name
                for name, alias in adapter.aliases.items()
                if any(target.version == version.number for target in alias.targets)
            ),
        },
    }
