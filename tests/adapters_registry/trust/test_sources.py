"""Which sources a request may name: one spelling a source, and no way around a pattern."""

import pytest

from adapters_registry.errors import InvalidPolicy, SourceRefused
from adapters_registry.names import check_name
from adapters_registry.trust.sources import (
    RequestedSource,
    check_pattern,
    is_allowed,
    is_source,
)

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("model", "source", "alias"),
    [
        ("hf://acme/home", "hf://acme/home@main", "main"),
        ("hf://acme/home@v2.1", "hf://acme/home@v2.1", "v2.1"),
        ("hf://acme/home/fold/er@" + "0a" * 20, "hf://acme/home/fold/er@" + "0a" * 20, "0a" * 20),
        ("hf://acme/home@refs/pr/1", "hf://acme/home@refs/pr/1", None),
        ("hf://acme/home@live", "hf://acme/home@live", None),
        ("hf://acme/home@3", "hf://acme/home@3", None),
        ("hf://Acme/Home@V2", "hf://Acme/Home@V2", None),
        ("s3://bucket/a/b", "s3://bucket/a/b", None),
        ("oci://ghcr.io/acme/home", "oci://ghcr.io/acme/home:latest", "latest"),
        ("oci://localhost:5000/home:v2", "oci://localhost:5000/home:v2", "v2"),
        (f"oci://ghcr.io/home@{DIGEST}", f"oci://ghcr.io/home@{DIGEST}", None),
    ],
)
def test_sources(model: str, source: str, alias: str | None) -> None:
    assert is_source(model)
    parsed = RequestedSource.parse(model)
    assert parsed.source == source
    assert RequestedSource.parse(source) == parsed
    check_name(parsed.adapter_name, "adapter")
    check_name(parsed.alias, "alias")
    if alias is None:
        assert parsed.alias.startswith("revision-")
    else:
        assert parsed.alias == alias


@pytest.mark.parametrize(
    "model",
    [
        "hf://",
        "hf://acme",
        "hf://acme/",
        "hf://acme/home/",
        "hf://acme//home",
        "hf:///acme/home",
        "hf://acme/../other/home",
        "hf://acme/./home",
        "hf://acme/..",
        "hf://acme/home/../../other",
        "hf://acme/%2e%2e/home",
        "hf://acme/home%2fx",
        "hf://acme\\home",
        "hf://acme/home@",
        "hf://acme/home@main@v2",
        "hf://acme/home@../main",
        "hf://acme/home@a/../b",
        "hf://acme/home@main?x=1",
        "hf://acme/home#x",
        "hf://acme/home ",
        "hf://acme/home\n",
        "hf://аcme/home",  # a Cyrillic a
        "hf://acme/ｈome",
        "hf://user:secret@acme/home",
        "hf://acme/" + "x" * 600,
        "s3://bucket/a@b",
        "s3://bucket/../a",
        "s3://Bucket/a",
        "s3://bucket/a/",
        "oci://ghcr.io",
        "oci://ghcr.io/home:",
        "oci://ghcr.io/home:a:b",
        f"oci://ghcr.io/home:v2@{DIGEST}",
        "oci://ghcr.io/home@main",
        "oci://GHCR.io/home",
        "oci://user@ghcr.io/home",
        "oci://ghcr.io:port/home",
    ],
)
def test_spellings_that_are_refused(model: str) -> None:
    assert is_source(model)
    with pytest.raises(SourceRefused, match="is not of the form"):
        RequestedSource.parse(model)


@pytest.mark.parametrize("model", ["base", "acme/home@3", "HF://acme/home", "ftp://x/y", "/etc"])
def test_other_models_are_no_sources(model: str) -> None:
    assert not is_source(model)


@pytest.mark.parametrize(
    ("pattern", "model", "allowed"),
    [
        ("hf://acme/*", "hf://acme/home@v2", True),
        ("hf://acme/*", "hf://acme/home/folder", True),
        ("hf://acme/*", "hf://acme-evil/home", False),
        ("hf://acme/*", "hf://ACME/home", False),
        ("hf://acme/*", "s3://acme/home", False),
        ("hf://acme/home", "hf://acme/home@any", True),
        ("hf://acme/home", "hf://acme/home2", False),
        ("hf://acme/home", "hf://acme/home/folder", False),
        ("s3://bucket/prefix/*", "s3://bucket/prefix/a", True),
        ("s3://bucket/prefix/*", "s3://bucket/prefix", False),
        ("s3://bucket/prefix/*", "s3://bucket/prefix2/a", False),
        ("s3://bucket/*", "s3://bucket/a/b", True),
        ("oci://ghcr.io/acme/*", "oci://ghcr.io/acme/home:v2", True),
        ("oci://ghcr.io/*", "oci://ghcr.io/acme/home", True),
        ("oci://ghcr.io/*", "oci://ghcr.io.evil.com/acme", False),
        ("oci://ghcr.io/*", "oci://ghcr.io:5000/acme", False),
        ("oci://ghcr.io/home", "oci://ghcr.io/home:v2", True),
    ],
)
def test_patterns(pattern: str, model: str, allowed: bool) -> None:
    check_pattern(pattern)
    assert is_allowed(RequestedSource.parse(model), [pattern]) is allowed
    assert not is_allowed(RequestedSource.parse(model), [])


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "hf://",
        "hf://*",
        "hf://acme",
        "hf://acme/",
        "hf://acme/**",
        "hf://acme/ho*",
        "hf://*/home",
        "hf://acme/../*",
        "hf://acme/home@main",
        "/local/*",
        "ftp://x/*",
        "oci://*",
    ],
)
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(InvalidPolicy, match="is no pattern of sources"):
        check_pattern(pattern)


def test_no_two_locations_have_the_same_adapter() -> None:
    models = ["hf://acme/home", "hf://acme/Home", "hf://acme/ho/me", "hf://acme/ho.me"]
    models += ["s3://bucket/acme/home", "oci://acme/home", "hf://" + "a/" * 100 + "b"]
    models += ["hf://" + "a/" * 101 + "b"]
    names = {RequestedSource.parse(model).adapter_name for model in models}
    assert len(names) == len(models)
