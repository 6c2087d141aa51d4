"""Two starts on one data folder with bases of the same shapes and other weights."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters_registry.content.adapter_files import ADAPTER_FILES
from server.bundled_base import ensure_bundled_base
from server.process.demo import DEMO_DIR, PROMPTS
from tests.real_engine.running_server import RunningServer

NAME = "smart-home"
DEMO = DEMO_DIR / NAME


@pytest.fixture
def other_base(tmp_path: Path) -> Path:
    """The bundled base with a small change in each MLP weight: configuration and sizes stay."""
    directory = tmp_path / "OtherModel-135M"
    copytree(ensure_bundled_base(), directory)
    file = directory / "model.safetensors"
    tensors, noise = load_file(file), torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if ".mlp." in name:
            factor = 1 + 0.01 * torch.randn(tensor.shape, generator=noise)
            tensors[name] = (tensor.float() * factor).bfloat16()
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def ask(server: RunningServer) -> str:
    messages = [{"role": "user", "content": PROMPTS[NAME]}]
    answer = server.client().chat.completions.create(
        model=NAME,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=1,
    )
    return answer.model


def models(server: RunningServer) -> set[str]:
    return {model.id for model in server.client().models.list()}


def test_a_version_is_offered_on_the_base_that_it_was_checked_on(
    tmp_path: Path, other_base: Path
) -> None:
    server = RunningServer(tmp_path / "var")
    try:
        server.wait_until_ready()
        files = [("files", (name, (DEMO / name).read_bytes())) for name in ADAPTER_FILES]
        path = "/admin/adapters?wait=true"
        registered = server.admin("POST", path, data={"name": NAME}, files=files)
        assert registered.status_code == 201, registered.text
        assert ask(server) == f"default/{NAME}@1"
    finally:
        server.stop()
    server = RunningServer(tmp_path / "var", "--base", str(other_base))
    try:
        server.wait_until_ready()
        assert models(server) == {"base"}
        with pytest.raises(openai.NotFoundError, match=r"checked on the base .* OtherModel-135M"):
            ask(server)
        again = server.admin("POST", path, data={"name": NAME}, files=files)
        assert again.status_code == 422
        assert [r["code"] for r in again.json()["error"]["reasons"]] == ["base_mismatch"]
        recheck = f"/admin/adapters/default/{NAME}/recheck?wait=true"
        checked = server.admin("POST", recheck, json={"allow_base_mismatch": True})
        assert [version["state"] for version in checked.json()["data"]] == ["ready"]
        assert models(server) == {"base", NAME}
        assert ask(server) == f"default/{NAME}@1"
    finally:
        server.stop()
    assert "loraplex adapters recheck --all" in server.log.read_text()
