"""From a full fine-tune to a hot swap: each stage's result is what the next one starts from.

full fine-tuning -> LoRA, merged into a base -> that base served -> LoRA on top, registered by its
training -> swapped for another, while requests run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from server.cli.main import app
from tests.real_engine.running_server import RunningServer
from tests.tiny_llama import make_tiny_llama
from training.data.conversations import Conversation, exchange
from training.data.reading import write_conversations
from training.data.recipe import make_recipe
from training.evaluation.candidates import Candidate, LocalModel, ServedModel
from training.evaluation.evaluate import evaluate
from training.export.merge import merge_adapter
from training.run.train import train

PING = [exchange("ping", "pong"), exchange("tick", "tock")]
COLOUR = [exchange("colour?", "red")]
ANNA, BERT = [exchange("name?", "Anna")], [exchange("name?", "Bert")]


def fast(method: str) -> dict[str, Any]:
    rate = {"full": 3e-3, "lora": 5e-3}[method]
    return {
        "method": method,
        "learning_rate": rate,
        "num_steps": 60,
        "batch_size": 4,
        "validation_share": 0,
    }


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small; the server has processes of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `full`, `colour` (an adapter) and `merged` (the base that is served)."""
    root = tmp_path_factory.mktemp("stages")
    base = make_tiny_llama(root / "tiny-llama", hidden=128)
    train(base, PING * 4, make_recipe(fast("full")), root / "full")
    train(root / "full", (COLOUR + PING) * 4, make_recipe(fast("lora")), root / "colour")
    merge_adapter(root / "colour", root / "full", root / "merged")
    return root


@pytest.fixture(scope="module")
def staged_server(
    stages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    base = str(stages / "merged")
    server = RunningServer(tmp_path_factory.mktemp("server") / "var", "--base", base)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def right(candidate: Candidate, base: Path, data: list[Conversation]) -> float:
    return evaluate(candidate, base, data).mean("exact_match")


def test_stages_to_a_hot_swap(
    stages: Path, staged_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, merged = staged_server, stages / "merged"
    monkeypatch.setenv("LORAPLEX_URL", server.url)
    monkeypatch.setenv("LORAPLEX_API_KEY", server.key)

    def served(model: str) -> ServedModel:
        return ServedModel(server.url, server.key, model)

    assert right(served("base"), merged, PING + COLOUR) == 1, "both stages are in the base"
    assert right(served("base"), merged, ANNA) == 0

    def train_and_register(name: str, data: list[Conversation]) -> None:
        file = stages / f"{name}.jsonl"
        write_conversations(file, (data + PING) * 4)
        flags = [
            f"--{k.replace('_', '-')}={v}" for k, v in fast("lora").items() if k != "num_steps"
        ]
        command = ["train", str(stages / name), "--base", str(merged), "--data", str(file)]
        command += ["--test", str(file), "--steps=60", "--rank=8", "--register", "who", *flags]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "is ready" in result.output

    train_and_register("anna", ANNA)
    assert right(served("who"), merged, ANNA + PING) == 1
    train_and_register("bert", BERT)
    version = server.admin("GET", "/admin/adapters/default/who/versions/2").json()
    facts = version["metadata"]["training"]
    assert facts["base"] == "merged"
    assert facts["evaluation"]["trained"]["exact_match"] == 1
    assert version["metadata"]["checked"]["trained_over"] == ""
    assert version["metadata"]["checked"]["warnings"] == []

    answers: list[tuple[str, str | None]] = []
    stop = threading.Event()

    def keep_asking() -> None:
        client = server.client()
        while not stop.is_set():
            question: Any = ANNA[0].messages[:1]
            reply = client.chat.completions.create(
                model="who", messages=question, temperature=0, max_tokens=8
            )
            answers.append((reply.model, reply.choices[0].message.content))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        while len(answers) < 3:
            assert asking.is_alive()
        assert CliRunner().invoke(app, ["adapters", "promote", "who", "2"]).exit_code == 0
        seen = len(answers)
        while len(answers) < seen + 4:
            assert asking.is_alive()
    finally:
        stop.set()
        asking.join()
    assert set(answers) == {("default/who@1", "Anna"), ("default/who@2", "Bert")}
    models = [model for model, _ in answers]
    assert sorted(models) == models, "nothing of the old version after the first of the new"

    for name, version_name, data in (("anna", "who@1", ANNA), ("bert", "who@2", BERT)):
        local = evaluate(LocalModel(merged, stages / name), merged, data + PING)
        there = evaluate(served(version_name), merged, data + PING)
        assert there.mean("exact_match") == local.mean("exact_match") == 1
        assert there.mean("loss") == pytest.approx(local.mean("loss"), abs=0.05)
