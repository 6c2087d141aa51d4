"""The adapters of the server under test: which there are, and how they change.

Three kinds of server: one with our admin API, vLLM's own with its loading endpoint, and any other,
whose adapters are fixed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from loadtest.errors import LoadTestError

SECONDS = 300


@dataclass
class Admin:
    """An operator's view of one server."""

    url: str
    key: str
    http: aiohttp.ClientSession

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: str, key: str) -> AsyncIterator[Admin]:
        """Connect on first use."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=SECONDS, sock_connect=10)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
            yield cls(url.rstrip("/"), key, http)

    async def models(self, key: str | None = None) -> list[dict[str, Any]]:
        """What `/v1/models` lists for a key.

        Raises:
            LoadTestError: nothing answers, the key is refused, or it isn't such a server.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else None
        status, text = await self._call("GET", "/v1/models", headers=headers)
        if status in (401, 403):
            raise LoadTestError(f"{self.url} refuses the key ({status}): give LORAPLEX_API_KEY")
        try:
            models = json.loads(text)["data"]
            return [dict(model) for model in models] if status == 200 else _not_a_list(text)
        except (ValueError, KeyError, TypeError) as error:
            raise LoadTestError(f"{self.url}/v1/models: {status} {text[:200]}") from error

    async def page(self, path: str) -> bytes:
        """The body of a page.

        Raises:
            LoadTestError: there is none.
        """
        status, text = await self._call("GET", path)
        if status != 200:
            raise LoadTestError(f"{self.url}{path}: {status}")
        return text.encode()

    async def has_registry(self) -> bool:
        """Whether there is our admin API."""
        return (await self._call("GET", "/admin/adapters?limit=1"))[0] != 404

    async def live_version(self, tenant: str, name: str) -> int | None:
        """The number that the bare name means; None if there is no such adapter."""
        status, text = await self._call("GET", f"/admin/adapters/{tenant}/{name}")
        return json.loads(text)["live"] if status == 200 else None

    async def register(self, tenant: str, name: str, files: Path, *, promote: bool) -> int:
        """Upload a version and wait until it is ready; its number."""
        form = aiohttp.FormData({"tenant": tenant, "name": name, "promote": str(promote).lower()})
        with contextlib.ExitStack() as stack:
            for file in sorted(files.iterdir()):
                form.add_field("files", stack.enter_context(file.open("rb")), filename=file.name)
            status, text = await self._call("POST", "/admin/adapters?wait=true", data=form)
        return int(self._expect(status, text, f"registering {name}")["version"])

    async def load(self, name: str, files: Path) -> None:
        """vLLM's way: load from a directory that the server can read."""
        body = {"lora_name": name, "lora_path": str(files.resolve())}
        status, text = await self._call("POST", "/v1/load_lora_adapter", json=body)
        if status == 404:
            raise LoadTestError(
                f"{self.url} has no adapter {name} and no way to load it: vLLM's server wants "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        if status != 200:
            raise LoadTestError(f"loading {name}: {status} {text[:300]}")

    async def unload(self, name: str) -> None:
        """vLLM's way: forget a name."""
        status, text = await self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": name})
        if status != 200:
            raise LoadTestError(f"unloading {name}: {status} {text[:300]}")

    async def promote(self, tenant: str, name: str, version: int) -> None:
        """Point `live` to a version."""
        path = f"/admin/adapters/{tenant}/{name}/aliases/live"
        body = {"targets": [{"version": version}]}
        self._expect(*await self._call("PUT", path, json=body), f"promoting {name}")

    async def roll_back(self, tenant: str, name: str) -> None:
        """Point `live` back."""
        path = f"/admin/adapters/{tenant}/{name}/rollback"
        self._expect(*await self._call("POST", path), f"rolling {name} back")

    async def retire(self, tenant: str, name: str, version: int) -> None:
        """Take a version out of service."""
        path = f"/admin/adapters/{tenant}/{name}/versions/{version}"
        self._expect(*await self._call("DELETE", path), f"retiring {name}@{version}")

    def _expect(self, status: int, text: str, what: str) -> dict[str, Any]:
        if status >= 300:
            raise LoadTestError(f"{what}: {status} {text[:300]}")
        return dict(json.loads(text)) if text else {}

    async def _call(self, method: str, path: str, **arguments: Any) -> tuple[int, str]:
        try:
            async with self.http.request(method, self.url + path, **arguments) as response:
                return response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise LoadTestError(f"no answer from {self.url}: {reason}") from error


def _not_a_list(text: str) -> list[dict[str, Any]]:
    raise ValueError(text)
