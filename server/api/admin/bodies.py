"""The admin API's JSON for a version, an adapter, an alias."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.names import LIVE
from adapters_registry.records.access.suspension import Suspension
from adapters_registry.records.catalog import AdapterRecord, AliasRecord, Target, VersionRecord
from adapters_registry.records.tables import VersionState
from adapters_registry.rollout.promotion import Warmth
from server.rollout.warm_promotions import Promoted

DIGEST_EXAMPLE = "9f2b" * 16


class ReasonBody(BaseModel):
    """One cause why the gate refused a version."""

    code: str = Field(examples=["bad_shape"])
    message: str = Field(description="The cause, how often it holds, and what to do.")
    key: str | None = Field(description="The first tensor, module or configuration key it is in.")
    count: int = Field(1, description="In how many of them it is.", examples=[60])
    keys: list[str] = Field(default_factory=list, description="The first few of them.")


class VersionBody(BaseModel):
    """An immutable version of an adapter."""

    tenant: str = Field(examples=["default"])
    name: str = Field(examples=["smart-home"])
    version: int = Field(examples=[3])
    model: str = Field(
        description="The name that answers give it.", examples=["default/smart-home@3"]
    )
    digest: str = Field(description="The sha256 over both files.", examples=[DIGEST_EXAMPLE])
    state: VersionState
    rank: int | None = Field(description="The largest rank of a module.", examples=[8])
    size_bytes: int = Field(examples=[495_000])
    reasons: list[ReasonBody] = Field(
        description="Why it was rejected, or is incompatible: one reason a cause."
    )
    source: str = Field(examples=["hf://acme/smart-home@4f1c2d7"])
    metadata: dict[str, Any] = Field(description="What the client sent, and what the gate found.")
    created_at: datetime
    location: str = Field(examples=["/admin/adapters/default/smart-home/versions/3"])

    @classmethod
    def of(cls, version: VersionRecord) -> VersionBody:
        """Return the body of a record."""
        return cls(
            tenant=version.tenant,
            name=version.name,
            version=version.number,
            model=version.public_name,
            digest=version.digest,
            state=version.state,
            rank=version.rank,
            size_bytes=version.size_bytes,
            reasons=[ReasonBody(**reason) for reason in version.reasons],
            source=version.source,
            metadata=version.metadata,
            created_at=version.created_at,
            location=f"/admin/adapters/{version.adapter_id}/versions/{version.number}",
        )


class TargetBody(BaseModel):
    """A version that an alias points to."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(examples=[3])
    weight: int = Field(100, description="Share of requests in per cent. All shares add up to 100.")


class AliasBody(BaseModel):
    """Where an alias points, and where it pointed before (what a rollback restores)."""

    alias: str = Field(examples=["live"])
    targets: list[TargetBody]
    previous: list[TargetBody] | None
    revision: int = Field(description="The number of changes so far, which is the ETag.")

    @classmethod
    def of(cls, name: str, alias: AliasRecord) -> AliasBody:
        """Return the body of a record."""
        return cls(
            alias=name,
            targets=_targets(alias.targets),
            previous=_targets(alias.previous) if alias.previous else None,
            revision=alias.revision,
        )


class ServerWarmth(BaseModel):
    """What one server says of the versions that a promotion waited for."""

    server: str = Field(description="The id in the file `server.id` of its data folder.")
    state: Warmth = Field(
        description="`warm`: in memory. `loading`, `failed`, `unheard`: not yet. `unused`: the "
        "server doesn't serve the adapter. `not offered`: the version is for another base."
    )


class WarmBody(BaseModel):
    """How a promotion waited for servers."""

    complete: bool = Field(description="Whether every server that serves the adapter was warm.")
    waited_seconds: float
    servers: list[ServerWarmth]


class WarmAliasBody(AliasBody):
    """Where an alias points after a promotion that waited for servers."""

    warm: WarmBody

    @classmethod
    def of_promotion(cls, name: str, promoted: Promoted) -> WarmAliasBody:
        """Return the body of a promotion."""
        servers = [ServerWarmth(server=s, state=said) for s, said in promoted.servers.items()]
        warm = WarmBody(
            complete=all(said.is_settled for said in promoted.servers.values()),
            waited_seconds=round(promoted.waited_seconds, 3),
            servers=servers,
        )
        return cls(**dict(AliasBody.of(name, promoted.alias)), warm=warm)


class Sharing(BaseModel):
    """Which other tenants may use an adapter."""

    model_config = ConfigDict(extra="forbid")

    shared_with: list[str] = Field(default_factory=list, examples=[["acme"]])
    public: bool = False


class SuspensionAsked(BaseModel):
    """Why something is suspended."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(
        "",
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Clients read it in the error.",
        examples=["under review"],
    )


class SuspensionBody(BaseModel):
    """Since when something is suspended, and why."""

    model_config = ConfigDict(from_attributes=True)

    at: datetime
    reason: str
    by_admin: bool = Field(description="Whether only an admin can resume it.")


class NewestBody(BaseModel):
    """The newest version of an adapter, in whichever state it is."""

    version: int = Field(examples=[4])
    state: VersionState
    reason: str | None = Field(
        description="Why it was rejected, or is incompatible: the first reason."
    )

    @classmethod
    def of(cls, version: VersionRecord) -> NewestBody:
        """Return the body of a record."""
        reason = version.reasons[0]["message"] if version.reasons else None
        return cls(version=version.number, state=version.state, reason=reason)


class AdapterBody(BaseModel):
    """An adapter in a list."""

    tenant: str = Field(examples=["default"])
    name: str = Field(examples=["smart-home"])
    live: int | None = Field(description="The version that most requests for the bare name get.")
    described: int | None = Field(
        description="The version whose rank and size these are: the live one, or the newest that "
        "is ready if there is no live one."
    )
    rank: int | None = Field(description="That of the version `described`.")
    size_bytes: int | None = Field(description="That of the version `described`.")
    pinned: list[int] = Field(description="The versions that keep a slot in every engine.")
    newest: NewestBody | None
    incompatible: list[int] = Field(
        description="Versions that are not offered: they were not accepted on this base, or their "
        "rank is over this server's limit."
    )
    reason: str | None = Field(
        description="Why the version that most requests would get is not offered, if it is "
        "incompatible with this server."
    )
    num_versions: int
    shared_with: list[str] = Field(description="The other tenants that may use it.")
    public: bool = Field(description="Whether every tenant may use it.")
    suspended: SuspensionBody | None = Field(description="Null while it is in service.")
    aliases: list[AliasBody]
    created_at: datetime

    @classmethod
    def of(cls, adapter: AdapterRecord, newest: VersionRecord | None) -> AdapterBody:
        """Return the body of a record, with its newest version in whichever state."""
        return cls(**cls._values(adapter, newest))

    @staticmethod
    def _values(adapter: AdapterRecord, newest: VersionRecord | None) -> dict[str, Any]:
        live, described = adapter.live, adapter.described
        return {
            "tenant": adapter.tenant,
            "name": adapter.name,
            "live": live.number if live else None,
            "described": described.number if described else None,
            "rank": described.rank if described else None,
            "size_bytes": described.size_bytes if described else None,
            "pinned": [number for number, v in adapter.ready.items() if v.pinned],
            "newest": NewestBody.of(newest) if newest else None,
            "incompatible": sorted(adapter.incompatible),
            "reason": _reason(adapter),
            "num_versions": adapter.num_versions,
            "shared_with": sorted(adapter.shared_with),
            "public": adapter.public,
            "suspended": suspension_body(adapter.suspension),
            "aliases": [AliasBody.of(name, alias) for name, alias in adapter.aliases.items()],
            "created_at": adapter.created_at,
        }


class AdapterDetail(AdapterBody):
    """An adapter with its versions, a page of them at a time."""

    versions: list[VersionBody] = Field(description="The newest ones, oldest first.")
    next: int | None = Field(
        description="The `before` of the page with older ones; null on the last page."
    )

    @classmethod
    def of_page(
        cls,
        adapter: AdapterRecord,
        newest: VersionRecord | None,
        versions: list[VersionRecord],
        limit: int,
    ) -> AdapterDetail:
        """Return the body of an adapter and of at most `limit` of these versions, newest first."""
        page = [VersionBody.of(version) for version in reversed(versions[:limit])]
        following = page[0].version if len(versions) > limit else None
        return cls(**cls._values(adapter, newest), versions=page, next=following)


class AdapterPage(BaseModel):
    """A page of adapters."""

    data: list[AdapterBody]
    next: str | None = Field(description="The `after` of the next page; null on the last page.")


class AuditBody(BaseModel):
    """One change of the registry."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    at: datetime
    actor: str = Field(description="The public part of the API key; `server` is the server itself.")
    actor_label: str = Field("", description="The key's label, which says what it is for.")
    origin: str = Field(description="The network address of the client.", examples=["127.0.0.1"])
    tenant: str
    action: str = Field(examples=["alias.point"])
    subject: str = Field(examples=["default/smart-home@live"])
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditPage(BaseModel):
    """A page of the audit trail, newest first."""

    data: list[AuditBody]
    next: int | None = Field(description="The `before` of the next page; null on the last page.")


def suspension_body(suspension: Suspension | None) -> SuspensionBody | None:
    """Return the body of a suspension, or None if there is none."""
    return SuspensionBody.model_validate(suspension) if suspension else None


def _reason(adapter: AdapterRecord) -> str | None:
    alias = adapter.aliases.get(LIVE)
    version = adapter.incompatible.get(alias.main) if alias else None
    return str(version.reasons[0]["message"]) if version else None


def _targets(targets: tuple[Target, ...]) -> list[TargetBody]:
    return [TargetBody(version=target.version, weight=target.weight) for target in targets]
