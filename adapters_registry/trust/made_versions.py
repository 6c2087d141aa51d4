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
    """Return who has signed all the files that a version comes from, as a tenant may see it.

    The name of a key is its tenant's own, so for others the key's fingerprint stands in its place.
    Returns None if some files are not known to be signed.
    """
    found = _recorded(version.metadata)
    if found is None or version.tenant == tenant:
        return found
    return [{**each, "signer": each.get("fingerprint", each["signer"])} for each in found]


def require_signed(versions: Iterable[VersionRecord], tenant: str, policy: TenantPolicy) -> None:
    """Check the versions of which a new one is to be made, as a tenant's policy wants it.

    A key counts by its fingerprint, and an identity with its issuer: the names of keys are reused.

    Raises:
        SignatureRefused: signatures are required, and one of the versions isn't signed, or not by
            whom the tenant trusts now.
    """
    if policy.signatures is not SignatureRule.REQUIRED:
        return
    trusted = {
        _identifying({"method": "key", "fingerprint": key.fingerprint})
        for key in policy.trusted_keys
    }
    trusted |= {
        _identifying({"method": "sigstore", "signer": who.identity, "issuer": who.issuer})
        for who in policy.trusted_identities
    }
    for version in versions:
        own = "register its files again, with their signature"
        foreign = "register its files as an adapter of this tenant, with their signature"
        what_to_do = own if version.tenant == tenant else foreign
        signatures = signatures_of(version, tenant)
        if signatures is None:
            raise SignatureRefused(
                f"this tenant's adapters must be signed, and {version.public_name} is not known to "
                f"be: {what_to_do}"
            )
        for each in signatures:
            if _identifying(each) not in trusted:
                raise SignatureRefused(
                    f"{version.public_name} was signed by {_shown(each)}, whom this tenant doesn't "
                    f"trust now: {what_to_do}"
                )


def _identifying(signature: Signature) -> tuple[str | None, ...]:
    """Return what a signature must share with what is trusted."""
    by_key = signature.get("method") == "key"
    fields = ("method", "fingerprint") if by_key else ("method", "signer", "issuer")
    return tuple(signature.get(field) for field in fields)


def _shown(signature: Signature) -> str:
    """Return who has signed, with what tells signers of the same name apart."""
    signer = signature["signer"]
    apart = signature.get("fingerprint") or signature.get("issuer")
    return f"{signer} ({apart})" if apart and apart != signer else signer


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
