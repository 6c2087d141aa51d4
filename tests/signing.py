"""Signs adapters as their makers do: with a key, or by an identity of a private Sigstore."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from model_signing import hashing, signing

from adapters_registry.content.adapter_files import SIGNATURE_FILE

PREDICATE = "https://model_signing/signature/v1.0"
_SHA256 = ec.ECDSA(hashes.SHA256())
_ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_TIMESTAMPS_OID = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


class SigningKey:
    """A key pair of P-256, and signatures with it by the package `model-signing`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        self.file = directory / f"{name}.key"
        pem = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.file.write_bytes(pem)
        public = self._private.public_key()
        self.pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        self.public_file = directory / f"{name}.pub"
        self.public_file.write_text(self.pem)

    @property
    def details(self) -> dict[str, str]:
        """What the metadata of a version say that this key has signed."""
        fingerprint = f"sha256:{_key_id(self._private).hex()}"
        return {"signer": self.public_file.stem, "fingerprint": fingerprint, "method": "key"}

    def sign(self, directory: Path, config: hashing.Config | None = None) -> None:
        """Sign all files of a directory, and put the signature beside them."""
        signer = signing.Config().use_elliptic_key_signer(private_key=self.file)
        if config is not None:
            signer.set_hashing_config(config)
        signer.sign(directory, directory / SIGNATURE_FILE)


class PrivateSigstore:
    """What vouches for identities: a certificate authority, and two logs of one entry each."""

    def __init__(self) -> None:
        self._authority_key, self._log_key, self._certificates_key = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(3)
        )
        now = datetime.now(UTC)
        self._begin, self._end = now - timedelta(hours=1), now + timedelta(hours=1)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        public = self._authority_key.public_key()
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
                "key_cert_sign",
                "crl_sign",
            ),
            False,
        )
        self._no_usage = usage
        self._authority = (
            self._builder(name, name, public)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage | {"key_cert_sign": True}), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._authority_key, hashes.SHA256())
        )

    def write_trust_config(self, file: Path) -> Path:
        """Write what a verifier must know of it."""
        valid_for = {"start": self._begin.isoformat()}

        def log_of(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            return {
                "baseUrl": "https://log.test",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": _b64(_der(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": valid_for,
                },
                "logId": {"keyId": _b64(_key_id(key))},
            }

        authority = {
            "subject": {"organization": "test", "commonName": "test authority"},
            "uri": "https://authority.test",
            "certChain": {
                "certificates": [{"rawBytes": _b64(self._authority.public_bytes(Encoding.DER))}]
            },
            "validFor": valid_for,
        }
        config = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log_of(self._log_key)],
                "certificateAuthorities": [authority],
                "ctlogs": [log_of(self._certificates_key)],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            },
        }
        file.write_text(json.dumps(config))
        return file

    def sign(self, directory: Path, identity: str, issuer: str) -> None:
        """Sign all files of a directory as an identity, and put the bundle beside them."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(key, identity, issuer)
        payload = _statement(directory)
        signature = key.sign(_pre_authentication(payload), _SHA256)
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": _b64(certificate.public_bytes(Encoding.DER))},
                "tlogEntries": [self._log_entry(certificate, payload, signature)],
            },
            "dsseEnvelope": {
                "payload": _b64(payload),
                "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"sig": _b64(signature)}],
            },
        }
        (directory / SIGNATURE_FILE).write_text(json.dumps(bundle))

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        return builder.not_valid_before(self._begin).not_valid_after(self._end)

    def _certificate(
        self, key: ec.EllipticCurvePrivateKey, identity: str, issuer: str
    ) -> x509.Certificate:
        """Return a certificate for an identity, with the promise of the certificates' log."""
        authority_public = self._authority_key.public_key()
        usage = x509.KeyUsage(**self._no_usage | {"digital_signature": True})
        names = x509.SubjectAlternativeName([x509.RFC822Name(identity)])
        builder = (
            self._builder(x509.Name([]), self._authority.subject, key.public_key())
            .add_extension(usage, critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_public),
                critical=False,
            )
            .add_extension(names, critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_OID, issuer.encode()), critical=False)
        )
        before = builder.sign(self._authority_key, hashes.SHA256()).tbs_certificate_bytes
        promise = x509.UnrecognizedExtension(_TIMESTAMPS_OID, self._promise(before))
        return builder.add_extension(promise, critical=False).sign(
            self._authority_key, hashes.SHA256()
        )

    def _promise(self, certificate: bytes) -> bytes:
        """Return the extension with the log's signed timestamp (RFC 6962)."""
        moment = struct.pack("!Q", int(datetime.now(UTC).timestamp()) * 1000)
        entry = _key_id(self._authority_key) + len(certificate).to_bytes(3, "big") + certificate
        # Version 1, a certificate's timestamp; an entry of a certificate without it; nothing more.
        signed = b"\0\0" + moment + b"\0\1" + entry + b"\0\0"
        signature = self._certificates_key.sign(signed, _SHA256)
        timestamp = b"\0" + _key_id(self._certificates_key) + moment + b"\0\0"
        timestamp += b"\4\3" + struct.pack("!H", len(signature)) + signature
        listed = struct.pack("!H", len(timestamp)) + timestamp
        listed = struct.pack("!H", len(listed)) + listed
        length = bytes([len(listed)]) if len(listed) < 128 else bytes([0x81, len(listed)])
        return b"\4" + length + listed  # an octet string of DER

    def _log_entry(
        self, certificate: x509.Certificate, payload: bytes, signature: bytes
    ) -> dict[str, Any]:
        """Return the entry of the signatures' log, which has no other one."""
        pem = certificate.public_bytes(Encoding.PEM)
        digest = {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}
        spec = {
            "envelopeHash": digest,
            "payloadHash": digest,
            "signatures": [{"signature": _b64(signature), "verifier": _b64(pem)}],
        }
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}).encode()
        moment, log_id = int(datetime.now(UTC).timestamp()), _key_id(self._log_key)
        promised = {
            "body": _b64(body),
            "integratedTime": moment,
            "logID": log_id.hex(),
            "logIndex": 0,
        }
        canonical = json.dumps(promised, sort_keys=True, separators=(",", ":")).encode()
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"log.test\n1\n{_b64(root)}\n"
        of_note = _b64(log_id[:4] + self._log_key.sign(note.encode(), _SHA256))
        return {
            "logIndex": "0",
            "logId": {"keyId": _b64(log_id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(moment),
            "inclusionPromise": {
                "signedEntryTimestamp": _b64(self._log_key.sign(canonical, _SHA256))
            },
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _b64(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n— log.test {of_note}\n"},
            },
            "canonicalizedBody": _b64(body),
        }


def _statement(directory: Path) -> bytes:
    """Return the list of a directory's files that is signed."""
    found = list(hashing.hash(directory).resource_descriptors())
    whole = hashlib.sha256(b"".join(entry.digest.digest_value for entry in found))
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": directory.name, "digest": {"sha256": whole.hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [
                {"name": e.identifier, "algorithm": "sha256", "digest": e.digest.digest_hex}
                for e in found
            ],
        },
    }
    return json.dumps(statement).encode()


def _pre_authentication(payload: bytes) -> bytes:
    kind = b"application/vnd.in-toto+json"
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(_der(key)).digest()
