"""The built image, run as the chart runs it: `make image` and then `make image-test`."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from server.process.demo import PROMPTS
from tests.deploy.container import START_SECONDS, Container, Volume

IMAGE = os.environ.get("IMAGE", "")
ANSWER_TOKENS = 150
IMPORT_ALL = """
import importlib, json, pkgutil
failed = {}
for package in ("server", "adapters_registry", "training", "loadtest"):
    folders = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(folders, package + "."):
        if not module.name.endswith((".__main__", ".migrations.env")):
            try:
                importlib.import_module(module.name)
            except Exception as error:
                failed[module.name] = str(error)
print(json.dumps(failed))
"""

pytestmark = pytest.mark.skipif(not IMAGE, reason="it needs a built image: make image image-test")


@pytest.fixture(scope="module")
def volume() -> Iterator[Volume]:
    volume = Volume(f"loraplex-{uuid.uuid4().hex[:8]}")
    try:
        yield volume
    finally:
        volume.remove()


@contextmanager
def running(
    volume: Volume, folder: Path, *command: str, program: str = "loraplex"
) -> Iterator[Container]:
    container = Container(IMAGE, volume, folder / "log", *command, program=program)
    try:
        yield container
    finally:
        container.stop()


def answers(client: openai.OpenAI) -> dict[str, str | None]:
    """Return what each of the demo's adapters says."""
    said = {}
    for name, prompt in PROMPTS.items():
        answer = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=60,
        )
        said[name] = answer.choices[0].message.content
    return said


def test_it_lacks_nothing(volume: Volume, tmp_path: Path) -> None:
    with running(volume, tmp_path, "doctor") as container:
        assert container.wait(START_SECONDS) == 0, container.log
    assert "the LoRA kernel compiles" in container.log, "though nothing in /tmp can be executed"


def test_every_module_of_its_packages_can_be_imported(volume: Volume, tmp_path: Path) -> None:
    with running(volume, tmp_path, "-c", IMPORT_ALL, program="python") as container:
        assert container.wait(START_SECONDS) == 0, container.log
    failed = json.loads(container.log.splitlines()[-1])
    assert {name: why for name, why in failed.items() if "'triton'" not in why} == {}


def test_it_answers_drains_and_has_its_adapters_again(volume: Volume, tmp_path: Path) -> None:
    with running(volume, tmp_path, "serve", "--demo", "--kv-cache-gib", "0.5") as container:
        print(f"ready after {container.wait_until_ready():.1f} s")
        assert container.execute("id", "-u") == "10001"
        assert " ro" in container.execute("grep", " / ", "/proc/mounts")
        assert "Read-only file system" in container.execute("touch", "/home/x")
        client = container.client()
        first = answers(client)
        assert json.loads(first["smart-home"] or ""), first
        stream = client.chat.completions.create(
            model="smart-home",
            messages=[{"role": "user", "content": "Count."}],
            max_tokens=ANSWER_TOKENS,
            extra_body={"min_tokens": ANSWER_TOKENS},
            stream=True,
            stream_options={"include_usage": True},
        )
        next(stream)
        container.terminate()
        *_, last = chunks = list(stream)
        assert last.usage is not None
        assert last.usage.completion_tokens == ANSWER_TOKENS
        assert "length" in [c.choices[0].finish_reason for c in chunks if c.choices]
        assert container.wait() == 0, container.log
    with running(volume, tmp_path, "serve", "--kv-cache-gib", "0.5") as container:
        print(f"ready again after {container.wait_until_ready():.1f} s")
        assert answers(container.client()) == first
        container.terminate()
        assert container.wait() == 0, container.log
    assert "LoRA kernel" not in container.log, "it could not be loaded"
