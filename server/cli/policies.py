"""The command `loraplex tenants policy`: whose signatures count, what requests may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from adapters_registry.trust.policy import SignatureRule, TrustedKey
from server.cli.client import call
from server.cli.console import fail

EXAMPLES = """Examples:

loraplex tenants policy acme --signatures required --trust-key release.pub

loraplex tenants policy acme --source 'hf://acme/*' --source oci://registry.acme.com/models/home
"""


def set_policy(
    name: Annotated[str, typer.Argument(help="The tenant's name, for example acme.")],
    signatures: Annotated[
        SignatureRule | None,
        typer.Option(
            help="Whether adapters must be signed: none doesn't look at signatures, if_present "
            "refuses those that don't fit, required also adapters without one."
        ),
    ] = None,
    trust_key: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file with a public key (PEM) whose signatures count, under the file's name. "
            "Repeat it for more. The keys before are replaced."
        ),
    ] = None,
    trust_identity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IDENTITY,ISSUER",
            help="Whose Sigstore signatures count, for example "
            "release@acme.com,https://accounts.google.com. Repeat it for more. The identities "
            "before are replaced.",
        ),
    ] = None,
    trust_nobody: Annotated[
        bool, typer.Option("--trust-nobody", help="Remove all keys and identities first.")
    ] = False,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="A source that a request's model may name: hf://org/*, hf://org/repo, "
            "s3://bucket/prefix/* or oci://registry/repository. Repeat it for more. The patterns "
            "before are replaced.",
        ),
    ] = None,
    no_sources: Annotated[
        bool, typer.Option("--no-sources", help="Let requests name no source.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Change what a tenant trusts, or show it. What isn't named stays."""
    path = f"/admin/tenants/{quote(name, safe='')}/policy"
    policy = call("GET", path).json()
    changed = dict(policy)
    if trust_nobody:
        changed |= {"trusted_keys": [], "trusted_identities": []}
    if no_sources:
        changed["sources"] = []
    if signatures is not None:
        changed["signatures"] = signatures.value
    if trust_key:
        changed["trusted_keys"] = [_key(file) for file in trust_key]
    if trust_identity:
        changed["trusted_identities"] = [_identity(text) for text in trust_identity]
    if source:
        changed["sources"] = source
    if changed != policy:
        policy = call("PUT", path, json=changed).json()
    if as_json:
        print(json.dumps(policy))
        return
    print(f"signatures: {policy['signatures']}")
    for key in policy["trusted_keys"]:
        print(f"trusted key: {key['name']} ({TrustedKey(**key).fingerprint})")
    for who in policy["trusted_identities"]:
        print(f"trusted identity: {who['identity']} ({who['issuer']})")
    print(f"sources of requests: {', '.join(policy['sources']) or 'none'}")


def _key(file: Path) -> dict[str, Any]:
    try:
        return {"name": file.stem, "pem": file.read_text()}
    except (OSError, UnicodeError) as error:
        fail(f"{file} cannot be read: {error}")


def _identity(text: str) -> dict[str, Any]:
    identity, comma, issuer = text.partition(",")
    if not comma or not identity or not issuer:
        fail(f"{text!r} is not of the form IDENTITY,ISSUER")
    return {"identity": identity.strip(), "issuer": issuer.strip()}
