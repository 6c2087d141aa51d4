"""Verifies the signature that came with an adapter's files: who has signed them, and all of them.

The format is that of the package `model-signing` (OpenSSF): a Sigstore bundle over a list of files
with their digests, signed with a key, or without one by an identity that Sigstore vouches for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    ALL_FILES,
    SIGNATURE_FILE,
    companions_in,
    signatures_in,
)
from adapters_registry.errors import SignatureRefused, StoreUnavailable
from adapters_registry.trust.policy import (
    SignatureRule,
    TenantPolicy,
    TrustedIdentity,
    TrustedKey,
)

if TYPE_CHECKING:
    from model_signing.verifying import Config

log = logging.getLogger(__name__)

MAX_SIGNATURE_BYTES = 1 << 20


@dataclass(frozen=True)
class Signer:
    """Who has signed, and how to verify it."""

    details: dict[str, str]
    """What the version's metadata keep."""
    verifier: Callable[[], Config]


def verify_signature(
    directory: Path, policy: TenantPolicy, trust_config: Path | None = None
) -> dict[str, str] | None:
    """Verify the signature beside the files in a directory, as a tenant's policy wants it.

    `trust_config`: a private Sigstore's certificates and logs; None means the public one, which
    needs the network. Returns who has signed, or None if nobody had to.

    Raises:
        SignatureRefused: the signature is missing or does not fit, or nobody trusted has signed.
        StoreUnavailable: Sigstore's certificates cannot be fetched.
    """
    if policy.signatures is SignatureRule.NONE:
        return None
    signatures = signatures_in(directory)
    if not signatures:
        if policy.signatures is SignatureRule.IF_PRESENT:
            return None
        raise SignatureRefused(
            f"this tenant's adapters must be signed, and {SIGNATURE_FILE} is missing: sign the "
            "files with the package model-signing"
        )
    refusals = []
    for signature in signatures:
        try:
            return _signer_of(signature, directory, policy, trust_config)
        except _Unfit as error:
            refusals.append(str(error))
    raise SignatureRefused(
        f"the signature {SIGNATURE_FILE} does not fit: {_most_telling(refusals)}"
    )


_NOT_THEIRS = "nobody whom this tenant trusts has signed it"
_NO_BUNDLE = "it is no Sigstore bundle"


class _Unfit(Exception):
    """A signature is not this signer's, or not over these files."""


def _signer_of(
    signature: Path, directory: Path, policy: TenantPolicy, trust_config: Path | None
) -> dict[str, str]:
    """Return who has made one signature. Raises `_Unfit` if it was nobody trusted, or not these."""
    refusals = []
    for signer in _signers(_read(signature), policy, trust_config):
        try:
            _verify(signer.verifier(), directory, signature)
        except _Unfit as error:
            refusals.append(str(error))
            continue
        return signer.details
    raise _Unfit(_most_telling(refusals))


def _most_telling(refusals: list[str]) -> str:
    """Return one reason. A file that differs says more than that other keys don't fit."""
    telling = [text for text in refusals if text not in (_NOT_THEIRS, _NO_BUNDLE)]
    return next(iter([*telling, *refusals]), _NOT_THEIRS)


def _read(signature: Path) -> dict[str, Any]:
    try:
        if signature.stat().st_size > MAX_SIGNATURE_BYTES:
            raise _Unfit(f"it is over {MAX_SIGNATURE_BYTES >> 20} MiB")
        material = json.loads(signature.read_bytes())["verificationMaterial"]
        if not isinstance(material, dict):
            raise TypeError(type(material))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Unfit(_NO_BUNDLE) from error
    return material


def _signers(
    material: dict[str, Any], policy: TenantPolicy, trust_config: Path | None
) -> Iterator[Signer]:
    """Yield those trusted signers who may have made a bundle of this kind."""
    if "publicKey" in material:
        yield from map(_by_key, policy.trusted_keys)
    else:
        for who in policy.trusted_identities:
            yield _by_identity(who, trust_config)


def _by_key(key: TrustedKey) -> Signer:
    def verifier() -> Config:
        from model_signing.verifying import Config

        with NamedTemporaryFile(suffix=".pem") as file:  # the library takes files only
            file.write(key.pem.encode())
            file.flush()
            return Config().use_elliptic_key_verifier(public_key=file.name)

    details = {"signer": key.name, "fingerprint": key.fingerprint, "method": "key"}
    return Signer(details, verifier)


def _by_identity(who: TrustedIdentity, trust_config: Path | None) -> Signer:
    def verifier() -> Config:
        from model_signing.verifying import Config

        try:
            return Config().use_sigstore_verifier(
                identity=who.identity, oidc_issuer=who.issuer, trust_config=trust_config
            )
        except Exception as error:
            log.warning("Sigstore's certificates cannot be read: %r", error)
            raise StoreUnavailable(
                "signatures of identities cannot be verified now: Sigstore's certificates cannot "
                "be fetched; check the connection, or set LORAPLEX_SIGSTORE_TRUST_CONFIG"
            ) from error

    return Signer({"signer": who.identity, "issuer": who.issuer, "method": "sigstore"}, verifier)


def _verify(config: Config, directory: Path, signature: Path) -> None:
    from model_signing import hashing, manifest

    class StagedFiles(manifest.Manifest):
        """The files of an adapter, compared with those that a signature lists.

        A signature covers a whole repository, of which only an adapter's files are kept. So others
        may be missing, but each that is here must be signed, and each of ours that was signed must
        be here.
        """

        def __init__(self) -> None: ...

        def __eq__(self, signed: object) -> bool:
            assert isinstance(signed, manifest.Manifest)
            _compare(directory, signed)
            return True

        __hash__ = None  # type: ignore[assignment]

    class Hashing(hashing.Config):
        def hash(self, *_: Any, **__: Any) -> manifest.Manifest:
            return StagedFiles()

    try:
        hashed = Hashing()  # type: ignore[no-untyped-call]
        config.set_hashing_config(hashed).verify(directory, signature)
    except _Unfit:
        raise
    except Exception as error:  # the library parses what a stranger has sent
        log.info("a signature does not fit: %r", error)
        raise _Unfit(_NOT_THEIRS) from error


def _compare(directory: Path, signed: Any) -> None:
    """Raise `_Unfit` unless a signature's list has exactly the adapter's files in a directory."""
    from model_signing import hashing

    form = signed.serialization_type
    if form.get("method") != "files":
        raise _Unfit("it is over parts of files: sign whole files")
    listed = {entry.identifier: entry.digest.digest_hex for entry in signed.resource_descriptors()}
    names = (*ADAPTER_FILES, *companions_in(directory))
    if missing := [name for name in ALL_FILES if name in listed and name not in names]:
        raise _Unfit(f"{missing[0]} was signed, and is missing")
    algorithm: Any = str(form.get("hash_type")).replace("blake2b", "blake2")  # its two names
    own = hashing.Config().use_file_serialization(hashing_algorithm=algorithm)
    found = own.hash(directory, files_to_hash=[directory / name for name in names])
    for entry in found.resource_descriptors():
        if entry.identifier not in listed:
            raise _Unfit(f"{entry.identifier} was not signed")
        if listed[entry.identifier] != entry.digest.digest_hex:
            raise _Unfit(f"{entry.identifier} is not the file that was signed")
