"""The policies of tenants, for admins: whose signatures count, and which sources requests name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.records.tenants import TenantRecord, no_tenant, set_policy
from adapters_registry.registry import Registry
from adapters_registry.trust.policy import (
    SignatureRule,
    TenantPolicy,
    TrustedIdentity,
    TrustedKey,
)
from server.api.routes import Routes
from server.workers import Workers


class TrustedKeyBody(BaseModel):
    """A public key whose signatures count."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    name: str = Field(description="What versions that it has signed are recorded under.")
    pem: str = Field(description="A public key of P-256, P-384 or P-521 in PEM form.")


class TrustedIdentityBody(BaseModel):
    """Whose Sigstore signatures count."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    identity: str = Field(examples=["release@acme.com"])
    issuer: str = Field(examples=["https://accounts.google.com"])


class PolicyBody(BaseModel):
    """What a tenant trusts."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    signatures: SignatureRule = Field(
        SignatureRule.NONE,
        description="`none`: signatures are not looked at. `if_present`: a signature must fit. "
        "`required`: each adapter must have one.",
    )
    trusted_keys: list[TrustedKeyBody] = Field(default_factory=list)
    trusted_identities: list[TrustedIdentityBody] = Field(default_factory=list)
    sources: list[str] = Field(
        default_factory=list,
        description="Patterns of the sources that a request's `model` may name. None: no source.",
        examples=[["hf://acme/*", "oci://registry.acme.com/models/home"]],
    )

    @classmethod
    def of(cls, tenant: TenantRecord) -> PolicyBody:
        """Return the body of a tenant's policy."""
        return cls.model_validate(tenant.policy)

    def to_policy(self) -> TenantPolicy:
        """Return the policy, not checked yet."""
        return TenantPolicy(
            self.signatures,
            tuple(TrustedKey(key.name, key.pem) for key in self.trusted_keys),
            tuple(TrustedIdentity(w.identity, w.issuer) for w in self.trusted_identities),
            tuple(dict.fromkeys(self.sources)),
        )


def router(registry: Registry, workers: Workers) -> Routes:
    """Return the routes that show and replace policies."""
    routes = Routes(tags=["admin"])

    @routes.get("/tenants/{tenant}/policy")
    async def show_policy(tenant: str) -> PolicyBody:
        """Show what a tenant trusts."""
        record = registry.catalog.tenants.get(tenant)
        if record is None:
            raise no_tenant(tenant)
        return PolicyBody.of(record)

    @routes.put("/tenants/{tenant}/policy")
    async def put_policy(tenant: str, body: PolicyBody) -> PolicyBody:
        """Replace what a tenant trusts. It holds from the next registration and request on."""
        changed = await workers.run(registry.apply, set_policy, tenant, body.to_policy())
        return PolicyBody.of(changed)

    return routes
