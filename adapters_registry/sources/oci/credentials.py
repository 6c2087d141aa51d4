"""Credentials for registries, from a file in the form of Docker's `config.json`.

Kubernetes keeps them in the same form, in Secrets of type `kubernetes.io/dockerconfigjson`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_registry.errors import StoreUnavailable

_NAMES_OF_DOCKER_HUB = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")


@dataclass(frozen=True)
class Credentials:
    """What a registry is shown: a name with a password, or a token."""

    username: str = ""
    password: str = ""
    token: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.token)


NO_CREDENTIALS = Credentials()


def read_credentials(file: Path | None, registry: str) -> Credentials:
    """Return the credentials for a registry; they are empty if the file has none for it.

    The file is read each time, so credentials that were renewed count at once.

    Raises:
        StoreUnavailable: the file cannot be read, or is not in this form.
    """
    if file is None:
        return NO_CREDENTIALS
    try:
        entries = json.loads(file.read_text()).get("auths", {})
        names = (
            _NAMES_OF_DOCKER_HUB if registry == "docker.io" else (registry, f"https://{registry}")
        )
        entry = next((entries[name] for name in names if name in entries), None)
        return NO_CREDENTIALS if entry is None else _credentials(entry)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise StoreUnavailable(
            f"LORAPLEX_OCI_AUTH_FILE cannot be used ({type(error).__name__}): it must be a file in "
            "the form of Docker's config.json"
        ) from error


def _credentials(entry: dict[str, Any]) -> Credentials:
    if token := entry.get("registrytoken"):
        return Credentials(token=str(token))
    if encoded := entry.get("auth"):
        username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        return Credentials(username, password)
    return Credentials(str(entry.get("username", "")), str(entry.get("password", "")))
