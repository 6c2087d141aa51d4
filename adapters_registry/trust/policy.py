"""A tenant's policy: signatures on its adapters, and sources that its requests may name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from adapters_registry.errors import InvalidPolicy
from adapters_registry.trust.sources import check_pattern

MAX_ENTRIES = 32
MAX_CHARACTERS = 512
_MAX_KEY_CHARACTERS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""Those of Sigstore's bundles."""


class SignatureRule(StrEnum):
    """Which adapters a tenant's registrations accept."""

    NONE = "none"
    """Signatures are not looked at."""
    IF_PRESENT = "if_present"
    """Those without a signature, and those whose signature fits."""
    REQUIRED = "required"
    """Only those whose signature fits."""


@dataclass(frozen=True)
class TrustedKey:
    """A public key (P-256, P-384 or P-521) whose signatures count, and its name."""

    name: str
    pem: str

    @property
    def fingerprint(self) -> str:
        """Return what identifies the key, whatever its name: the SHA-256 digest of its DER form.

        Raises:
            ValueError: the text is no public key.
        """
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            PublicFormat,
            load_pem_public_key,
        )

        public = load_pem_public_key(self.pem.encode())
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"sha256:{hashlib.sha256(der).hexdigest()}"


@dataclass(frozen=True)
class TrustedIdentity:
    """Whose Sigstore signatures count: an identity, and the issuer that vouches for it."""

    identity: str
    issuer: str


@dataclass(frozen=True)
class TenantPolicy:
    """What a tenant trusts. By default signatures don't matter, and requests name no sources."""

    signatures: SignatureRule = SignatureRule.NONE
    trusted_keys: tuple[TrustedKey, ...] = ()
    trusted_identities: tuple[TrustedIdentity, ...] = ()
    sources: tuple[str, ...] = ()
    """Patterns of the sources that a request's `model` may name: `hf://org/*`."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> TenantPolicy:
        """Return the policy of a record, as `to_record` has made it."""
        return cls(
            SignatureRule(record.get("signatures", SignatureRule.NONE)),
            tuple(TrustedKey(**key) for key in record.get("trusted_keys", ())),
            tuple(TrustedIdentity(**who) for who in record.get("trusted_identities", ())),
            tuple(record.get("sources", ())),
        )

    def to_record(self) -> dict[str, Any]:
        """Return the policy as JSON values, without what is as by default."""
        default = asdict(TenantPolicy())
        values = {key: value for key, value in asdict(self).items() if value != default[key]}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    def to_audit(self) -> dict[str, Any]:
        """Return the record as the audit trail shows it: keys by name and fingerprint."""
        record = self.to_record()
        if self.trusted_keys:
            keys = [{"name": key.name, "fingerprint": key.fingerprint} for key in self.trusted_keys]
            record["trusted_keys"] = keys
        return record

    def check(self) -> None:
        """Raise `InvalidPolicy` if the policy cannot be used, with what to change."""
        for what, entries in (
            ("keys", self.trusted_keys),
            ("identities", self.trusted_identities),
            ("patterns of sources", self.sources),
        ):
            if len(entries) > MAX_ENTRIES:
                raise InvalidPolicy(f"a policy has at most {MAX_ENTRIES} {what}")
        for key in self.trusted_keys:
            _check_key(key)
        if len({key.name for key in self.trusted_keys}) < len(self.trusted_keys):
            raise InvalidPolicy("two trusted keys have the same name", param="trusted_keys")
        for who in self.trusted_identities:
            if not _is_short(who.identity) or not _is_short(who.issuer):
                message = f"identity and issuer have 1 to {MAX_CHARACTERS} printable characters"
                raise InvalidPolicy(message, param="trusted_identities")
        for pattern in self.sources:
            check_pattern(pattern)
        is_strict = self.signatures is not SignatureRule.NONE
        if is_strict and not self.trusted_keys and not self.trusted_identities:
            raise InvalidPolicy(
                f"signatures are {self.signatures.value}, and nobody is trusted: name a key "
                "(trusted_keys, --trust-key) or an identity (trusted_identities, --trust-identity)",
                param="signatures",
            )


def _check_key(key: TrustedKey) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not _is_short(key.name):
        message = f"the name of a trusted key has 1 to {MAX_CHARACTERS} printable characters"
        raise InvalidPolicy(message, param="trusted_keys")
    try:
        if len(key.pem) > _MAX_KEY_CHARACTERS:
            raise ValueError("it is too long")
        public = load_pem_public_key(key.pem.encode())
        if not isinstance(public, EllipticCurvePublicKey) or public.curve.name not in _CURVES:
            raise ValueError("it is of another kind")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidPolicy(
            f"the trusted key {key.name!r} is no public key of an elliptic curve (P-256, P-384 or "
            "P-521) in PEM form",
            param="trusted_keys",
        ) from error


def _is_short(text: str) -> bool:
    return 0 < len(text) <= MAX_CHARACTERS and text.isprintable()
