"""Signatures of both kinds by the library that makers use, and every way in which one can't fit."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from model_signing import hashing

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
)
from adapters_registry.errors import InvalidPolicy, SignatureRefused, StoreUnavailable
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records.tenants import set_policy
from adapters_registry.registry import Registry
from adapters_registry.trust.policy import (
    SignatureRule,
    TenantPolicy,
    TrustedIdentity,
    TrustedKey,
)
from adapters_registry.trust.signatures import verify_signature
from tests.signing import PrivateSigstore, SigningKey
from tests.tiny import AdapterFactory

REQUIRED, IF_PRESENT = SignatureRule.REQUIRED, SignatureRule.IF_PRESENT
WHO = TrustedIdentity("release@acme.test", "https://accounts.acme.test")


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey(tmp_path, "release")


@pytest.fixture
def adapter(make_adapter: AdapterFactory) -> Path:
    return make_adapter()


def trusting(*keys: SigningKey, rule: SignatureRule = REQUIRED) -> TenantPolicy:
    named = tuple(TrustedKey(key.public_file.stem, key.pem) for key in keys)
    return TenantPolicy(rule, named)


def test_a_signature_with_a_trusted_key(key: SigningKey, adapter: Path, tmp_path: Path) -> None:
    other = SigningKey(tmp_path, "other")
    key.sign(adapter)
    found = verify_signature(adapter, trusting(other, key))
    assert found == key.details


def test_the_command_of_the_page_makes_a_signature_that_fits(
    key: SigningKey, adapter: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "adapters.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("model_signing sign")]
    command = line.replace("./my-adapter", str(adapter)).replace("release.key", str(key.file))
    arguments = shlex.split(command)
    arguments[0] = str(Path(sys.executable).with_name(arguments[0]))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert verify_signature(adapter, trusting(key)) == key.details


@pytest.mark.parametrize("algorithm", ["blake2", "blake3"])
def test_other_digests(key: SigningKey, adapter: Path, algorithm: Any) -> None:
    key.sign(adapter, hashing.Config().use_file_serialization(hashing_algorithm=algorithm))
    assert verify_signature(adapter, trusting(key))
    (adapter / CONFIG_FILE).write_text("{}")
    with pytest.raises(SignatureRefused, match=f"{CONFIG_FILE} is not the file that was signed"):
        verify_signature(adapter, trusting(key))


def test_a_signature_over_a_whole_repository(key: SigningKey, adapter: Path) -> None:
    """Only an adapter's files are kept of it."""
    (adapter / "README.md").write_text("#")
    (adapter / "data").mkdir()
    (adapter / "data" / "x.csv").write_text("1")
    key.sign(adapter)
    (adapter / "README.md").unlink()
    (adapter / "data" / "x.csv").unlink()
    assert verify_signature(adapter, trusting(key))


def test_files_that_are_not_those_that_were_signed(key: SigningKey, adapter: Path) -> None:
    (adapter / GENERATION_FILE).write_text("{}")
    key.sign(adapter)
    assert verify_signature(adapter, trusting(key))
    weights = bytearray((adapter / WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    for change, why in (
        (lambda: (adapter / GENERATION_FILE).unlink(), f"{GENERATION_FILE} was signed, and is"),
        (lambda: (adapter / GENERATION_FILE).write_text("{}"), None),
        (lambda: (adapter / "chat_template.jinja").write_text("x"), "jinja was not signed"),
        (lambda: (adapter / "chat_template.jinja").unlink(), None),
        (
            lambda: (adapter / WEIGHTS_FILE).write_bytes(weights),
            f"{WEIGHTS_FILE} is not the file that was signed",
        ),
    ):
        change()
        if why is None:
            assert verify_signature(adapter, trusting(key))
            continue
        with pytest.raises(SignatureRefused, match=why):
            verify_signature(adapter, trusting(key))


def test_a_signer_cannot_leave_our_files_out(key: SigningKey, adapter: Path) -> None:
    key.sign(adapter, hashing.Config().set_ignored_paths(paths=[adapter / CONFIG_FILE]))
    with pytest.raises(SignatureRefused, match=f"{CONFIG_FILE} was not signed"):
        verify_signature(adapter, trusting(key))


def test_signatures_over_parts_of_files(key: SigningKey, adapter: Path) -> None:
    key.sign(adapter, hashing.Config().use_shard_serialization())
    with pytest.raises(SignatureRefused, match="sign whole files"):
        verify_signature(adapter, trusting(key))


def test_of_several_signatures_one_must_fit(key: SigningKey, adapter: Path, tmp_path: Path) -> None:
    """Those that are attached to an artefact may be of several makers."""
    (adapter / f"{SIGNATURE_FILE}.2").write_text("{}")
    key.sign(adapter)
    (adapter / SIGNATURE_FILE).rename(adapter / f"{SIGNATURE_FILE}.3")
    SigningKey(tmp_path, "other").sign(adapter)
    assert verify_signature(adapter, trusting(key)) == key.details
    (adapter / CONFIG_FILE).write_text("{}")
    with pytest.raises(SignatureRefused, match=f"{CONFIG_FILE} is not the file that was signed"):
        verify_signature(adapter, trusting(key))


def test_nobody_trusted(key: SigningKey, adapter: Path, tmp_path: Path) -> None:
    key.sign(adapter)
    other = SigningKey(tmp_path, "other")
    for policy in (trusting(other), TenantPolicy(REQUIRED, trusted_identities=(WHO,))):
        with pytest.raises(SignatureRefused, match="nobody whom this tenant trusts has signed"):
            verify_signature(adapter, policy)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"verificationMaterial": 7}',
        '{"verificationMaterial": {"publicKey": {}}}',
        '{"verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []}}',
        "[" * 100_000,
        '"' + "x" * (1 << 20) + '"',
    ],
)
def test_files_that_are_no_signature(key: SigningKey, adapter: Path, content: str) -> None:
    (adapter / SIGNATURE_FILE).write_text(content)
    with pytest.raises(SignatureRefused, match=r"no Sigstore bundle|does not fit|over 1 MiB"):
        verify_signature(adapter, trusting(key))


def test_a_bundle_whose_list_was_changed(key: SigningKey, adapter: Path) -> None:
    key.sign(adapter)
    bundle = json.loads((adapter / SIGNATURE_FILE).read_text())
    payload = bundle["dsseEnvelope"]["payload"]
    bundle["dsseEnvelope"]["payload"] = payload[:200] + "AAAA" + payload[204:]
    (adapter / SIGNATURE_FILE).write_text(json.dumps(bundle))
    with pytest.raises(SignatureRefused, match="nobody whom this tenant trusts"):
        verify_signature(adapter, trusting(key))


def test_the_rules(key: SigningKey, adapter: Path) -> None:
    assert verify_signature(adapter, trusting(key, rule=IF_PRESENT)) is None
    with pytest.raises(SignatureRefused, match="must be signed, and model"):
        verify_signature(adapter, trusting(key))
    (adapter / SIGNATURE_FILE).write_text("{}")
    with pytest.raises(SignatureRefused):
        verify_signature(adapter, trusting(key, rule=IF_PRESENT))
    assert verify_signature(adapter, TenantPolicy()) is None


# --- Sigstore ---


def test_an_identity_of_a_private_sigstore(adapter: Path, tmp_path: Path) -> None:
    sigstore = PrivateSigstore()
    config = sigstore.write_trust_config(tmp_path / "trust.json")
    sigstore.sign(adapter, WHO.identity, WHO.issuer)
    policy = TenantPolicy(REQUIRED, trusted_identities=(WHO,))
    found = verify_signature(adapter, policy, config)
    assert found == {"signer": WHO.identity, "issuer": WHO.issuer, "method": "sigstore"}
    for other in (
        TrustedIdentity("someone@acme.test", WHO.issuer),
        TrustedIdentity(WHO.identity, "https://accounts.evil.test"),
    ):
        with pytest.raises(SignatureRefused, match="nobody whom this tenant trusts"):
            verify_signature(adapter, TenantPolicy(REQUIRED, (), (other,)), config)
    elsewhere = PrivateSigstore().write_trust_config(tmp_path / "elsewhere.json")
    with pytest.raises(SignatureRefused, match="nobody whom this tenant trusts"):
        verify_signature(adapter, policy, elsewhere)
    (adapter / CONFIG_FILE).write_text("{}")
    with pytest.raises(SignatureRefused, match=f"{CONFIG_FILE} is not the file that was signed"):
        verify_signature(adapter, policy, config)


def test_certificates_that_cannot_be_read(adapter: Path, tmp_path: Path) -> None:
    sigstore = PrivateSigstore()
    sigstore.sign(adapter, WHO.identity, WHO.issuer)
    (tmp_path / "trust.json").write_text("{}")
    policy = TenantPolicy(REQUIRED, trusted_identities=(WHO,))
    with pytest.raises(StoreUnavailable, match="set LORAPLEX_SIGSTORE_TRUST_CONFIG"):
        verify_signature(adapter, policy, tmp_path / "trust.json")


# --- in a registration ---


def test_a_registration_keeps_who_has_signed(
    registry: Registry, key: SigningKey, adapter: Path
) -> None:
    registry.apply(set_policy, DEFAULT_TENANT, trusting(key))
    stage = partial(copytree, adapter, dirs_exist_ok=True)
    with pytest.raises(SignatureRefused):
        registry.register(DEFAULT_TENANT, "home", "test", stage)
    assert not registry.catalog.adapters
    assert not list(registry.content.sizes())
    key.sign(adapter)
    forged = {"signature": {"signer": "evil"}, "artifact": {}, "mine": 1}
    version, _ = registry.register(DEFAULT_TENANT, "home", "test", stage, metadata=forged)
    assert version.metadata == {"signature": key.details, "mine": 1}
    kept = registry.content.path(version.digest)
    assert sorted(file.name for file in kept.iterdir()) == sorted(ADAPTER_FILES)
    (entry,) = registry.audit(action="version.register")
    assert entry.after is not None
    assert entry.after["signed_by"] == "release"
    assert entry.after["fingerprint"] == key.details["fingerprint"]
    assert registry.audit(action="tenant.policy")


def test_a_policy_goes_with_the_tenant(registry: Registry, key: SigningKey) -> None:
    policy = TenantPolicy(
        IF_PRESENT, trusting(key).trusted_keys, (WHO,), ("hf://acme/*", "s3://bucket/x")
    )
    registry.apply(set_policy, DEFAULT_TENANT, policy)
    assert registry.catalog.tenants[DEFAULT_TENANT].policy == policy
    registry.apply(set_policy, DEFAULT_TENANT, TenantPolicy())
    assert registry.catalog.tenants[DEFAULT_TENANT].policy == TenantPolicy()


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (TenantPolicy(REQUIRED), "nobody is trusted: name a key"),
        (TenantPolicy(trusted_keys=(TrustedKey("a", "no key"),)), "'a' is no public key"),
        (TenantPolicy(trusted_keys=(TrustedKey("", "no key"),)), "name of a trusted key"),
        (TenantPolicy(trusted_identities=(TrustedIdentity("", "x"),)), "printable characters"),
        (TenantPolicy(trusted_identities=(TrustedIdentity("a\n", "x"),)), "printable"),
        (TenantPolicy(sources=("hf://*",)), "is no pattern of sources"),
        (TenantPolicy(sources=("hf://a/*",) * 33), "at most 32 patterns"),
    ],
)
def test_policies_that_cannot_be_used(registry: Registry, policy: TenantPolicy, why: str) -> None:
    with pytest.raises(InvalidPolicy, match=why):
        registry.apply(set_policy, DEFAULT_TENANT, policy)
