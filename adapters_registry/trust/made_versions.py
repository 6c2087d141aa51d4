"""Signatures behind versions that the server makes of others: compositions and best fits.

Their files are new, so nobody has signed them. What counts is who has signed the files of the
versions that they are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adapters_registry.composition.metadata import FITTED, composed_of
from adapters_registry.errors import SignatureRefused
from adapters_registry.recording import SIGNATURE
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.trust.policy import SignatureRule, TenantPolicy

SIGNED_BY = "signed_by"
"""The entry of a part, in the metadata of what was made of it: who has signed the part."""

Signature = Mapping[str, str]
"""Who has signed, as `verify_signature` returns it."""


def signatures_of(version: VersionRecord, tenant: str) -> list[Signature] | None:
    """Return who has signed all the files that a version comes from, as far as a tenant can tell.

    The name of a key means a key only to the tenant that trusts it. So another tenant's versions
    count as signed only by identities. Returns None if some files are not known to be signed.
    """
    found = _recorded(version.metadata)
    if found is None or version.tenant == tenant:
        return found
    return found if all(each.get("method") == "sigstore" for each in found) else None


def require_signed(versions: Iterable[VersionRecord], tenant: str, policy: TenantPolicy) -> None:
    """Check the versions of which a new one is to be made, as a tenant's policy wants it.

    Raises:
        SignatureRefused: signatures are required, and one of the versions isn't signed, or not by
            whom the tenant trusts now.
    """
    if policy.signatures is not SignatureRule.REQUIRED:
        return
    keys = {key.name for key in policy.trusted_keys}
    identities = {(who.identity, who.issuer) for who in policy.trusted_identities}
    for version in versions:
        signatures = signatures_of(version, tenant)
        if signatures is None:
            own = "register its files again, with their signature"
            foreign = "register its files as an adapter of this tenant, with their signature"
            raise SignatureRefused(
                f"this tenant's adapters must be signed, and {version.public_name} is not known to "
                f"be: {own if version.tenant == tenant else foreign}"
            )
        for each in signatures:
            by_identity = (each["signer"], each.get("issuer", "")) in identities
            by_key = each.get("method") == "key" and each["signer"] in keys
            if not (by_identity or by_key):
                raise SignatureRefused(
                    f"{version.public_name} was signed by {each['signer']}, whom this tenant "
                    "doesn't trust any more"
                )


def _recorded(metadata: Mapping[str, Any]) -> list[Signature] | None:
    if isinstance(signature := metadata.get(SIGNATURE), dict):
        return [signature]
    fitted = metadata.get(FITTED)
    sources = [fitted.get("of")] if isinstance(fitted, dict) else composed_of(metadata).get("parts")
    found: list[Signature] = []
    for source in sources or [None]:
        signatures = source.get(SIGNED_BY) if isinstance(source, dict) else None
        if not isinstance(signatures, list):
            return None
        found += signatures
    return found
