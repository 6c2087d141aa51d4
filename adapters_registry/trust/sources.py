"""Sources that a request's `model` may name, and the patterns that allow them. Pure.

The forms are stricter than those of a registration: one source has one spelling. So a pattern that
allows an organisation cannot be left with `..`, other cases, encoded or look-alike characters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from adapters_registry.errors import InvalidPolicy, SourceRefused
from adapters_registry.names import LIVE, is_name

_SCHEMES = ("hf", "s3", "oci")
_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.=+-]+"
_HOST = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?"
_PATHS = {
    "hf": re.compile(rf"(?:{_SEGMENT})(?:/{_SEGMENT})+", re.ASCII),
    "s3": re.compile(rf"[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](?:/{_SEGMENT})*", re.ASCII),
    "oci": re.compile(rf"{_HOST}(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+", re.ASCII),
}
_ROOTS = {
    "hf": re.compile(_SEGMENT, re.ASCII),
    "s3": _PATHS["s3"],
    "oci": re.compile(_HOST, re.ASCII),
}
"""What may stand alone in front of `/*`: an organisation, a bucket, a registry."""
_REVISIONS = {
    "hf": re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*", re.ASCII),
    "oci": re.compile(r"sha256:[0-9a-f]{64}", re.ASCII),
}
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_MAX_CHARACTERS = 512
_ANYTHING_BELOW = "/*"
_READABLE = 40
"""Characters of an adapter's name that tell where it came from."""


def is_source(model: str) -> bool:
    """Return whether a request's `model` names a source. No name of an adapter has this form."""
    scheme, separator, _ = model.partition("://")
    return bool(separator) and scheme in _SCHEMES


@dataclass(frozen=True)
class RequestedSource:
    """A source as a request names it."""

    scheme: str
    path: str
    """Where it is, without its revision."""
    revision: str
    """A branch, tag, commit or digest; empty in a bucket."""

    @classmethod
    def parse(cls, model: str) -> RequestedSource:
        """Parse a source.

        Raises:
            SourceRefused: it does not have the one form of its kind.
        """
        scheme, _, rest = model.partition("://")
        path, at, revision = rest.partition("@")
        tag = None
        if scheme == "oci" and ":" in path.rpartition("/")[2]:
            path, _, tag = path.rpartition(":")
        is_right = (
            len(model) <= _MAX_CHARACTERS
            and scheme in _PATHS
            and _PATHS[scheme].fullmatch(path) is not None
            and (not at or (scheme in _REVISIONS and bool(_REVISIONS[scheme].fullmatch(revision))))
            and (tag is None or (not at and bool(_TAG.fullmatch(tag))))
        )
        if not is_right:
            raise SourceRefused(
                f"{model[:200]!r} is not of the form hf://org/repo@revision, "
                "s3://bucket/prefix, oci://registry/repository:tag or "
                "oci://registry/repository@sha256:<digest>"
            )
        default = {"hf": "main", "oci": "latest"}.get(scheme, "")
        return cls(scheme, path, revision or tag or default)

    @property
    def location(self) -> str:
        """Return the source without its revision."""
        return f"{self.scheme}://{self.path}"

    @property
    def source(self) -> str:
        """Return the source as a registration names it."""
        if not self.revision:
            return self.location
        is_tag = self.scheme == "oci" and not self.revision.startswith("sha256:")
        return f"{self.location}{':' if is_tag else '@'}{self.revision}"

    @property
    def adapter_name(self) -> str:
        """Return the name of the adapter that has its versions. No two locations have the same."""
        readable = re.sub(r"[^a-z0-9]+", "-", f"{self.scheme}-{self.path}".lower())
        return f"{readable[:_READABLE].strip('-')}-{_digest(self.location)}"

    @property
    def alias(self) -> str:
        """Return the alias that points to the version of its revision."""
        if is_name(self.revision) and self.revision != LIVE and not self.revision.isdigit():
            return self.revision
        return f"revision-{_digest(self.revision)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_allowed(source: RequestedSource, patterns: Iterable[str]) -> bool:
    """Return whether a pattern allows a source: its own location, or one above it with `/*`."""
    return any(
        source.location.startswith(pattern[:-1])
        if pattern.endswith(_ANYTHING_BELOW)
        else source.location == pattern
        for pattern in patterns
    )


def check_pattern(pattern: str) -> None:
    """Raise `InvalidPolicy` if a pattern is not a location, or one with `/*` behind it."""
    scheme, separator, path = pattern.partition("://")
    if separator and scheme in _PATHS and len(pattern) <= _MAX_CHARACTERS:
        if _PATHS[scheme].fullmatch(path):
            return
        above = path.removesuffix(_ANYTHING_BELOW)
        if above != path and (_PATHS[scheme].fullmatch(above) or _ROOTS[scheme].fullmatch(above)):
            return
    raise InvalidPolicy(
        f"{pattern[:200]!r} is no pattern of sources: give one like hf://org/*, hf://org/repo, "
        "s3://bucket/prefix/*, oci://registry/repository or oci://registry/org/*",
        param="sources",
    )
