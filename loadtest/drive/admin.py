"""The adapters of the server under test: which there are, and how they change.

There are three kinds of server: one with our admin API, vLLM's own with its endpoint that loads
adapters, and any other, whose adapters are fixed.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.drive.http_client import HttpClient
from loadtest.errors import LoadTestError


@dataclass(frozen=True)
class Admin:
    """What an operator does on one server."""

    client: HttpClient

    @property
    def url(self) -> str:
        """Return the server's address."""
        return self.client.url

    async def models(self, key: str | None = None) -> list[dict[str, Any]]:
        """Return what `/v1/models` lists for a key.

        Raises:
            LoadTestError: no answer came, the key is refused, or the answer is not a list of
                models.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else None
        status, text = await self.client.call("GET", "/v1/models", headers=headers)
        if status in (401, 403):
            raise LoadTestError(f"{self.url} refuses the key ({status}): set LORAPLEX_API_KEY")
        try:
            if status == 200:
                return [dict(model) for model in json.loads(text)["data"]]
        except (ValueError, KeyError, TypeError):
            pass
        raise LoadTestError(f"{self.url}/v1/models: {status} {text[:200]}")

    async def base(self) -> str:
        """Return the name under which the server serves its base.

        Raises:
            LoadTestError: as `models` does, or no base is listed.
        """
        return base_of(self.url, await self.models())

    async def model_names(self) -> set[str]:
        """Return the names of the base and of all adapters, without their tenants."""
        return {str(model["id"]).rpartition("/")[2] for model in await self.models()}

    async def page(self, path: str) -> bytes:
        """Return the body of a page.

        Raises:
            LoadTestError: there is none.
        """
        status, text = await self.client.call("GET", path)
        if status != 200:
            raise LoadTestError(f"{self.url}{path}: {status}")
        return text.encode()

    async def has_registry(self) -> bool:
        """Return whether the server has our admin API."""
        return (await self.client.call("GET", "/admin/adapters?limit=1"))[0] != 404

    async def live_version(self, tenant: str, name: str) -> int | None:
        """Return the number of the version that the bare name means, or None without one."""
        status, text = await self.client.call("GET", f"/admin/adapters/{tenant}/{name}")
        return json.loads(text)["live"] if status == 200 else None

    async def register(self, tenant: str, name: str, files: Path, *, promote: bool) -> int:
        """Upload a version and wait until it is ready. Returns the number that it got."""
        form = {"tenant": tenant, "name": name, "promote": str(promote).lower()}
        with contextlib.ExitStack() as stack:
            parts = [
                ("files", (file.name, stack.enter_context(file.open("rb"))))
                for file in sorted(files.iterdir())
            ]
            path, what = "/admin/adapters?wait=true", f"registering {name}"
            registered = await self.client.json("POST", path, what, data=form, files=parts)
        return int(registered["version"])

    async def load(self, name: str, files: Path) -> None:
        """Load an adapter vLLM's way, from a directory that the server can read."""
        body = {"lora_name": name, "lora_path": str(files.resolve())}
        status, text = await self.client.call("POST", "/v1/load_lora_adapter", json=body)
        if status == 404:
            raise LoadTestError(
                f"{self.url} has no adapter {name} and no way to load it: start vLLM's server with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        if status != 200:
            raise LoadTestError(f"loading {name}: {status} {text[:300]}")

    async def unload(self, name: str) -> None:
        """Unload an adapter vLLM's way."""
        body = {"lora_name": name}
        status, text = await self.client.call("POST", "/v1/unload_lora_adapter", json=body)
        if status != 200:
            raise LoadTestError(f"unloading {name}: {status} {text[:300]}")

    async def promote(self, tenant: str, name: str, version: int) -> None:
        """Point `live` to a version."""
        path = f"/admin/adapters/{tenant}/{name}/aliases/live"
        body = {"targets": [{"version": version}]}
        await self.client.json("PUT", path, f"promoting {name}", json=body)

    async def roll_back(self, tenant: str, name: str) -> None:
        """Point `live` back to what it pointed to before."""
        path = f"/admin/adapters/{tenant}/{name}/rollback"
        await self.client.json("POST", path, f"rolling {name} back")

    async def retire(self, tenant: str, name: str, version: int) -> None:
        """Take a version out of service."""
        path = f"/admin/adapters/{tenant}/{name}/versions/{version}"
        await self.client.json("DELETE", path, f"retiring {name}@{version}")


def base_of(url: str, models: list[dict[str, Any]]) -> str:
    """Return the name of the base in a list of models.

    Raises:
        LoadTestError: there is none.
    """
    for model in models:
        if not model.get("parent"):
            return str(model["id"])
    raise LoadTestError(f"{url}/v1/models lists no base")
