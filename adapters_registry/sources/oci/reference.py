"""The reference `oci://registry/repository:tag@sha256:...`, and where its registry answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from adapters_registry.errors import SourceRefused

OCI_SCHEME = "oci://"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"oci://(?P<registry>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?)"
    rf"/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_MAX_CHARACTERS = 512

_DOCKER_HUB = "docker.io"
_HOST_OF_DOCKER_HUB = "registry-1.docker.io"
_OFFICIAL = "library/"
"""The organisation of those repositories on Docker Hub that are named without one."""


@dataclass(frozen=True)
class Reference:
    """An artefact of a repository: by its digest, by a tag, or `latest`."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, source: str) -> Reference:
        """Parse `oci://registry/repository[:tag][@sha256:...]`.

        Raises:
            SourceRefused: the source does not have this form.
        """
        match = _REFERENCE.fullmatch(source) if len(source) <= _MAX_CHARACTERS else None
        if match is None:
            raise SourceRefused(
                f"{source[:200]!r} is not of the form oci://registry/repository:tag or "
                "oci://registry/repository@sha256:<64 hexadecimal digits>"
            )
        return cls(match["registry"], match["repository"], match["tag"], match["digest"])

    @property
    def location(self) -> str:
        """Return the repository without tag and digest."""
        return f"{OCI_SCHEME}{self.registry}/{self.repository}"

    @property
    def selector(self) -> str:
        """Return what the registry is asked for: the digest if one is given, else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def path(self) -> str:
        """Return the repository's path in the registry's API."""
        is_official = self.registry == _DOCKER_HUB and "/" not in self.repository
        return f"{_OFFICIAL}{self.repository}" if is_official else self.repository

    def pinned(self, digest: str) -> str:
        """Return the source that names this digest, whatever the tag means later."""
        return f"{self.location}@{digest}"

    def base_url(self, registries: Sequence[str]) -> str:
        """Return the URL of the registry's API.

        `registries`: those that may be read, with `http://` in front of those without TLS.

        Raises:
            SourceRefused: the registry is not among them.
        """
        if not registries:
            raise SourceRefused(
                "oci:// sources are off: set LORAPLEX_OCI_REGISTRIES on the server, or upload the "
                "files"
            )
        host = _HOST_OF_DOCKER_HUB if self.registry == _DOCKER_HUB else self.registry
        for allowed in registries:
            scheme, _, name = allowed.rpartition("://")
            if name == self.registry:
                return f"{scheme or 'https'}://{host}"
        raise SourceRefused(
            f"the registry {self.registry} is not among LORAPLEX_OCI_REGISTRIES on the server"
        )
