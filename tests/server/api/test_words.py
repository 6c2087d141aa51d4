"""Changes of the registry in words."""

from typing import Any

import pytest

from server.api.words import change_in_words, signer_in_words

KEY = {"name": "release", "fingerprint": "sha256:12"}
IDENTITY = {"identity": "release@acme.com", "issuer": "https://accounts.acme.com"}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"state": "ready"}, {"state": "retired"}, "state: ready → retired"),
        ({"trusted_keys": [KEY]}, {}, "trusted_keys: release (sha256:12) → none"),
        (
            None,
            {"trusted_identities": [IDENTITY, IDENTITY]},
            "trusted_identities: release@acme.com (https://accounts.acme.com), "
            "release@acme.com (https://accounts.acme.com)",
        ),
        (None, {"sources": ["hf://acme/*", "s3://b/c"]}, "sources: hf://acme/*, s3://b/c"),
        ({"x": {"a": 1}}, {"x": {}}, 'x: {"a": 1} → none'),
        ({"x": {"a": 1}}, {"x": {"a": 2}}, 'x: {"a": 1} → {"a": 2}'),
    ],
)
def test_a_change(before: dict[str, Any] | None, after: dict[str, Any], words: str) -> None:
    assert change_in_words(before, after) == words


def test_who_has_signed() -> None:
    assert signer_in_words({}) is None
    by_key = {"signer": "release", "fingerprint": "sha256:12", "method": "key"}
    assert signer_in_words({"signature": by_key}) == "signed by release (sha256:12)"
    by_identity = {"signer": "me@acme.com", "issuer": "https://acme.com", "method": "sigstore"}
    assert signer_in_words({"signature": by_identity}) == "signed by me@acme.com (https://acme.com)"
    of_before = {"signer": "release", "method": "key"}
    assert signer_in_words({"signature": of_before}) == "signed by release"
