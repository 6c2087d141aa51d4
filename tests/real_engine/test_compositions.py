"""Compositions on the real engine against PEFT's `add_weighted_adapter`, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapters_registry.content.adapter_files import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from server.bundled_base import ensure_bundled_base
from server.process.demo import DEMO_DIR
from tests.real_engine.questions import BRONCHITIS, FRANCE, LIGHTS, ask
from tests.real_engine.reference import distance, load
from tests.real_engine.running_server import RunningServer

NOISE = 0.1
"""Bound on the mean difference of log-probabilities between the engine in BF16 and float32."""
WEIGHTS = {"smart-home": 0.8, "icd10-chapter": 0.6}
EXPRESSION = "+".join(f"{name}*{weight}" for name, weight in WEIGHTS.items())
COMPOSE = "/admin/adapters/default/both/compose?wait=true"


@dataclass(frozen=True)
class Said:
    """A greedy answer: the version that gave it, its tokens, and how likely each was."""

    model: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


def say(server: RunningServer, model: str, text: str) -> Said:
    extra = {"return_token_ids": True}
    answer = ask(server, model, text, max_tokens=24, logprobs=True, extra_body=extra)
    choice = answer.choices[0]
    logprobs = [entry.logprob for entry in choice.logprobs.content]
    return Said(answer.model, answer.prompt_token_ids, choice.token_ids, logprobs)


@pytest.fixture(scope="module")
def composed(server: RunningServer) -> Iterator[dict[str, Any]]:
    parts = [{"model": name, "weight": weight} for name, weight in WEIGHTS.items()]
    response = server.admin("POST", COMPOSE, json={"parts": parts})
    assert response.status_code == 201, response.text
    yield response.json()
    server.admin("DELETE", "/admin/adapters/default/both?force=true")


@pytest.fixture(scope="module")
def answers(server: RunningServer, composed: dict[str, Any]) -> dict[str, list[Said]]:
    models = ("both", EXPRESSION, "base", *WEIGHTS)
    return {m: [say(server, m, text) for text in (LIGHTS, BRONCHITIS, FRANCE)] for m in models}


def test_the_served_log_probabilities_are_pefts(answers: dict[str, list[Said]]) -> None:
    first, second = WEIGHTS
    model: Any = PeftModel.from_pretrained(load(ensure_bundled_base()), DEMO_DIR / first, first)
    model.load_adapter(DEMO_DIR / second, second)
    model.add_weighted_adapter(
        [first, second], list(WEIGHTS.values()), "both", combination_type="cat"
    )
    model.set_adapter("both")
    distances = {
        name: [distance(model, said.prompt, said.tokens, said.logprobs) for said in found]
        for name, found in answers.items()
    }
    print(f"\ndistances from PEFT's cat: {distances}")
    assert max(distances["both"]) < NOISE
    assert max(distances[EXPRESSION]) < NOISE
    for other in ("base", first, second):
        assert max(distances[other]) > 2 * NOISE, other


def test_a_request_may_name_the_composition(
    server: RunningServer, answers: dict[str, list[Said]]
) -> None:
    by_route, by_name = answers["both"], answers[EXPRESSION]
    assert {said.model for said in by_route} == {"default/both@1"}
    assert {said.model for said in by_name} == {"default/composed@1"}
    assert [said.tokens for said in by_name] == [said.tokens for said in by_route]
    shown = server.admin("GET", "/admin/adapters/default/composed/versions/1").json()
    assert shown["state"] == "ready"
    assert shown["metadata"]["composed"]["on_request"] is True


def test_a_sum_over_the_limit_of_ranks(server: RunningServer) -> None:
    parts = [{"model": name, "weight": weight} for name, weight in WEIGHTS.items()]
    refused = server.admin("POST", COMPOSE, json={"parts": parts, "rank": 512})
    assert refused.status_code == 400
    assert "over this server's limit" in refused.json()["error"]["message"]
    fitted = server.admin("POST", COMPOSE, json={"parts": parts, "rank": 4}).json()
    assert (fitted["state"], fitted["rank"]) == ("ready", 4)
    assert 0 < fitted["metadata"]["composed"]["error"] < 1
    assert fitted["metadata"]["composed"]["error_by_layer"].keys() <= {str(n) for n in range(30)}


def test_a_fit_answers_as_its_original(server: RunningServer, tmp_path: Path) -> None:
    """The original has rank 32, of which only four matter. The server's limit is 16."""
    source = DEMO_DIR / "smart-home"
    config = json.loads((source / CONFIG_FILE).read_text())
    scale = config["lora_alpha"] / config["r"]
    torch.manual_seed(0)
    tensors = {}
    for key, value in load_file(source / WEIGHTS_FILE).items():
        side = 0 if "lora_A" in key else 1
        shape = list(value.shape)
        shape[side] = 28
        noise = torch.randn(shape) * 1e-3
        own = value.float() * (scale if side else 1)
        tensors[key] = torch.cat([own, noise], dim=side).contiguous()
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"r": 32, "lora_alpha": 32}))
    files = [("files", (name, (tmp_path / name).read_bytes())) for name in ADAPTER_FILES]
    form = {"name": "large", "fit_rank": "true"}
    response = server.admin("POST", "/admin/adapters?wait=true", data=form, files=files)
    assert response.status_code == 201, response.text
    version = response.json()
    assert (version["model"], version["rank"]) == ("default/large@2", 16)
    assert 0 < version["metadata"]["fitted"]["error"] < 0.1
    assert version["metadata"]["checked"]["logprob_change"] > 0
    said = [say(server, "large", text) for text in (LIGHTS, FRANCE)]
    original: Any = PeftModel.from_pretrained(load(ensure_bundled_base()), tmp_path)
    distances = [distance(original, each.prompt, each.tokens, each.logprobs) for each in said]
    print(f"\ndistances of the fit from its original: {distances}")
    assert max(distances) < NOISE
    server.admin("DELETE", "/admin/adapters/default/large?force=true")
