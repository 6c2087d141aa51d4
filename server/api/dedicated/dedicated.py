"""Decides which requests a dedicated server answers. Pure: it reads only the catalog.

It answers a request only if its `model` can mean nothing but the version that it holds. For all
others it says so with an error that lets a proxy ask a shared server. So nobody gets an answer of
another version than the one that the name means now.
"""

from __future__ import annotations

from adapters_registry.content.merged_model import MergedVersion
from adapters_registry.names import LIVE
from adapters_registry.records.catalog import AdapterRecord, Catalog, VersionRecord
from adapters_registry.trust.sources import is_source
from server.api.composition.expression import is_composition
from server.api.resolve import may_use, resolve
from server.auth import Caller
from server.errors.of_dedicated import ModelElsewhere


class Dedicated:
    """The version of a dedicated server, and the requests that it answers."""

    def __init__(self, merged: MergedVersion, base_name: str) -> None:
        """`base_name`: the name of the shared servers' base, which this server doesn't have."""
        self.merged, self._base_name = merged, base_name

    def require(self, model: str, caller: Caller, catalog: Catalog) -> None:
        """Return if `model` can mean only this server's version.

        While an alias is split, its requests belong to the shared servers: they draw the version
        by the alias's weights, and a canary is judged by requests on the same servers.

        Raises:
            ModelElsewhere: it means something else, or may do so.
            ModelNotFound: it names nothing that the caller may use.
        """
        if is_source(model) or is_composition(model, self._base_name):
            raise self._elsewhere(caller, catalog)
        version = resolve(model, caller, catalog, self._base_name)
        if version is None or version.adapter_id != self.merged.adapter_id:
            raise self._elsewhere(caller, catalog)
        if _is_split(model, catalog.adapters[(version.tenant, version.name)]):
            raise self._elsewhere(caller, catalog, "the alias is split between versions now")
        if not self._is_held(version):
            raise self._elsewhere(caller, catalog, f"{model[:200]!r} means {version.public_name}")

    def elsewhere(self) -> ModelElsewhere:
        """Return the error for a route that only shared servers have."""
        return ModelElsewhere(
            "this server answers requests for one version of one adapter and has no other routes: "
            "ask a shared server"
        )

    def offered(
        self, caller: Caller, catalog: Catalog
    ) -> tuple[AdapterRecord, VersionRecord, bool] | None:
        """Return the adapter, the version, and whether the bare name means that version alone.

        None if the version isn't ready any more, or if the caller may not use the adapter.
        """
        adapter = catalog.adapters.get((self.merged.tenant, self.merged.name))
        if adapter is None or not may_use(caller, adapter):
            return None
        version = adapter.ready.get(self.merged.version)
        if version is None or not self._is_held(version):
            return None
        is_live = adapter.live is version and not _is_split(adapter.name, adapter)
        return adapter, version, is_live

    def state(self, catalog: Catalog) -> str:
        """Return what has become of the version, as one sentence, or "" while it is `live`."""
        adapter = catalog.adapters.get((self.merged.tenant, self.merged.name))
        version = adapter.ready.get(self.merged.version) if adapter else None
        if adapter is None or version is None or not self._is_held(version):
            return (
                f"{self.merged.public_name} is not offered any more, so this server answers "
                "nothing: stop it"
            )
        if _is_split(adapter.name, adapter):
            return (
                f"{adapter.id} is split between versions, so shared servers answer its bare name "
                f"for now; this one answers {self.merged.public_name}"
            )
        if adapter.live is not version:
            now = adapter.live.public_name if adapter.live else "no version that is offered"
            return (
                f"{adapter.id} means {now}, so shared servers answer it; this one answers only "
                f"{self.merged.public_name}. Start one for the new version: `loraplex dedicate`"
            )
        return ""

    def _is_held(self, version: VersionRecord) -> bool:
        same_number = version.number == self.merged.version
        return same_number and version.digest == self.merged.digest

    def _elsewhere(self, caller: Caller, catalog: Catalog, why: str = "") -> ModelElsewhere:
        if self.offered(caller, catalog) is None:
            return self.elsewhere()  # which says nothing of another tenant's adapter
        reason = f", and {why}" if why else ""
        return ModelElsewhere(
            f"this server answers for {self.merged.public_name} only{reason}: ask a shared server",
            param="model",
        )


def _is_split(model: str, adapter: AdapterRecord) -> bool:
    """Return whether `model` names an alias that points to several versions."""
    _, at, selector = model.partition("@")
    alias = adapter.aliases.get(selector if at else LIVE)
    return alias is not None and len(alias.targets) > 1
