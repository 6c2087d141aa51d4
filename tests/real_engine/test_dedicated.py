"""`loraplex dedicate` beside a shared server: merged, compared, served, and outdated."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapters_registry.content.adapter_files import ADAPTER_FILES
from loadtest.drive.random_adapters import LlamaShape, make_adapter
from server.process.demo import DEMO_DIR
from tests.real_engine.questions import LIGHTS, LIGHTS_ANSWER, ask
from tests.real_engine.running_server import RunningServer
from training.export.served_parity import MAX_MEAN_DIFFERENCE

NAME, LARGE = "hot", "above-the-limit"


def register(server: RunningServer, demo: str) -> None:
    files = [("files", (name, (DEMO_DIR / demo / name).read_bytes())) for name in ADAPTER_FILES]
    path = "/admin/adapters?wait=true"
    registered = server.admin("POST", path, data={"name": NAME}, files=files)
    assert registered.status_code == 201, registered.text


def register_above_the_limit(server: RunningServer, directory: Path) -> None:
    """An adapter whose original is kept for servers with a higher limit."""
    make_adapter(directory, LlamaShape(layers=2), rank=32, seed=0, size=0.03)
    files = [("files", (name, (directory / name).read_bytes())) for name in ADAPTER_FILES]
    form = {"name": LARGE, "fit_rank": "true"}
    kept = server.admin("POST", "/admin/adapters?wait=true", data=form, files=files)
    assert kept.json()["model"] == f"default/{LARGE}@2", kept.text


@pytest.fixture(scope="module")
def dedicated(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    register(server, "smart-home")
    register_above_the_limit(server, tmp_path_factory.mktemp("large") / "adapter")
    own = RunningServer(
        tmp_path_factory.mktemp("dedicated") / "var",
        f"{NAME}@1",
        "--beside",
        str(server.data_dir),
        command="dedicate",
        environment={**os.environ, "LORAPLEX_URL": server.url},
        key_of=server,
    )
    try:
        own.wait_until_ready()
        yield own
    finally:
        own.stop()
        server.admin("DELETE", f"/admin/adapters/default/{LARGE}?force=true")


def test_it_answers_as_the_shared_server_until_the_name_means_another_version(
    server: RunningServer, dedicated: RunningServer
) -> None:
    said = dedicated.log.read_text()
    compared = re.search(r"log-probabilities of (\d+) tokens differ by (\S+) nats", said)
    assert compared is not None, said
    assert int(compared[1]) > 100
    assert float(compared[2]) < MAX_MEAN_DIFFERENCE
    assert "not offered" not in said, "it checks no version, so it names none to check"
    shared_answer, own_answer = (ask(each, NAME, LIGHTS) for each in (server, dedicated))
    assert own_answer.model == shared_answer.model == f"default/{NAME}@1"
    content = own_answer.choices[0].message.content
    assert content == shared_answer.choices[0].message.content
    assert all(str(value) in content for value in LIGHTS_ANSWER.values())
    (card,) = dedicated.client().models.list().data
    assert card.id == NAME
    register(server, "icd10-chapter")
    promoted = {"targets": [{"version": 2}]}
    server.admin("PUT", f"/admin/adapters/default/{NAME}/aliases/live", json=promoted)
    body = {"model": NAME, "messages": [{"role": "user", "content": LIGHTS}], "max_tokens": 1}
    refused = chat(dedicated, body)
    while refused.status_code == 200:  # the change is read within a second, as by any replica
        assert refused.json()["model"] == f"default/{NAME}@1"
        refused = chat(dedicated, body)
    assert refused.status_code == 404, refused.text
    assert refused.json()["error"]["code"] == "model_elsewhere"
    assert chat(dedicated, {**body, "model": f"{NAME}@1"}).json()["model"] == f"default/{NAME}@1"
    assert chat(server, body).json()["model"] == f"default/{NAME}@2"


def chat(server: RunningServer, body: dict[str, object]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {server.key}"}
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60)
