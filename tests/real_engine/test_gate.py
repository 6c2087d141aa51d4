"""The gate before the real engine: nothing malformed reaches it, everything valid serves."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import ADAPTER_FILES
from server.bundled_base import bundled_base_directory
from tests.adapter_recipe import ALL_MODULES, Recipe, Tensors, each
from tests.corpus import MALFORMED, valid
from tests.real_engine.running_server import RunningServer

PROMPT = "The lights in the kitchen are"
MAX_RANK = 16


@pytest.fixture(scope="module")
def real_base() -> BaseSpec:
    return BaseSpec.from_directory(bundled_base_directory(), MAX_RANK)


def register(server: RunningServer, name: str, directory: Path) -> Any:
    files = [("files", (file, (directory / file).read_bytes())) for file in ADAPTER_FILES]
    return server.admin("POST", "/admin/adapters?wait=true", data={"name": name}, files=files)


def logprobs(server: RunningServer, model: str) -> list[float]:
    answer = server.client().completions.create(
        model=model, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=0
    )
    found = answer.choices[0].logprobs
    assert found is not None
    return found.token_logprobs or []


def engine_metrics(server: RunningServer) -> list[str]:
    names = ("loraplex_engine_starts_total ", "loraplex_adapter_load_seconds_count")
    lines = server.admin("GET", "/metrics").text.splitlines()
    return [line for line in lines if line.startswith(names)]


def test_malformed_adapters_leave_the_engine_as_it_was(
    server: RunningServer, real_base: BaseSpec, tmp_path: Path
) -> None:
    models = ("base", "smart-home", "icd10-chapter")
    answers = [logprobs(server, model) for model in models]
    metrics = engine_metrics(server)
    uploads = {name: recipe for name, recipe in MALFORMED.items() if recipe.upload}
    assert len(uploads) >= 40
    for number, (name, recipe) in enumerate(uploads.items()):
        directory = recipe.make(tmp_path / str(number), real_base)
        response = register(server, f"malformed-{number}", directory)
        assert response.status_code == 422, (name, response.text)
        codes = {reason["code"] for reason in response.json()["error"]["reasons"]}
        assert recipe.code in codes, name
    assert [logprobs(server, model) for model in models] == answers
    assert engine_metrics(server) == metrics
    assert server.status("/readyz") == 200


def test_valid_variants_serve_and_change_the_answer(
    server: RunningServer, real_base: BaseSpec, tmp_path: Path
) -> None:
    base = logprobs(server, "base")

    def register_and_ask(numbered: tuple[int, tuple[str, Recipe]]) -> None:
        number, (name, recipe) = numbered
        adapter = f"valid-{number}"
        response = register(server, adapter, recipe.make(tmp_path / adapter, real_base))
        assert response.status_code == 201, (name, response.text)
        answer = logprobs(server, adapter)
        assert answer != base, name
        assert all(map(math.isfinite, answer)), name

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(register_and_ask, enumerate(valid(real_base).items())))
    assert logprobs(server, "base") == base


def test_an_adapter_that_changes_nothing_is_refused(
    server: RunningServer, real_base: BaseSpec, tmp_path: Path
) -> None:
    """Finite, of the right shapes, not zero, and lost in every rounding."""
    recipe = Recipe(modules=ALL_MODULES, bend=each(lambda values: values * 1e-30, "lora_B"))
    response = register(server, "no-effect", recipe.make(tmp_path / "adapter", real_base))
    assert response.status_code == 422
    assert [r["code"] for r in response.json()["error"]["reasons"]] == ["canary_no_effect"]


def test_an_adapter_that_only_repeats_itself_is_refused(
    server: RunningServer, real_base: BaseSpec, tmp_path: Path
) -> None:
    """A constant, added to what the last layer attends to, outweighs whatever the prompt says.

    Channel 17 of the bundled base has the same sign and size before that layer, for every token.
    """

    def one_channel(tensors: Tensors) -> Tensors:
        (a, b) = sorted(tensors)
        tensors[a][:] = 0
        tensors[a][0, 17] = 1
        return {a: tensors[a], b: tensors[b] * 30}

    recipe = Recipe(rank=1, modules=("layers.29.self_attn.v_proj",), bend=one_channel)
    response = register(server, "repeats", recipe.make(tmp_path / "adapter", real_base))
    assert response.status_code == 422
    assert [r["code"] for r in response.json()["error"]["reasons"]] == ["canary_repetition"]
    assert server.status("/readyz") == 200
