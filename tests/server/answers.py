"""What tests of the routes send, and how they read errors."""

from __future__ import annotations

from pathlib import Path

import httpx

from adapters_registry.content.adapter_files import ADAPTER_FILES

CHAT = "/v1/chat/completions"


def files_of(adapter: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name, (adapter / name).read_bytes())) for name in ADAPTER_FILES]


def assert_error(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status
    error: dict[str, object] = response.json()["error"]
    assert error["code"] == code
    assert set(error) >= {"message", "type", "param", "code"}
    return error
