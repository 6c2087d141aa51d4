"""`loraplex train` and what follows it, as a person would call them, on a tiny base."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from server.cli.adapters import registration
from server.cli.main import app
from server.cli.training import train
from tests.llama import LLAMA31_8B
from training.data.conversations import exchange
from training.data.reading import write_conversations


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    write_conversations(file, [exchange(f"ping {n}", "pong") for n in range(8)])
    return file


FAST = ("--rank", 2, "--steps", 4, "--batch-size", 4, "--validation-share", 0.2)


def test_train_evaluates_registers_merges_and_combines(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    def call(method: str, path: str, **arguments: Any) -> httpx.Response:
        if path == "/admin/whoami":
            assert not (tmp_path / "pong").exists(), "asked before the training"
            return httpx.Response(200, json={"tenant": "default", "scopes": ["adapters"]})
        sent.update(arguments)
        answer = {"model": "default/pong@1", "state": "ready", "digest": "0" * 64}
        return httpx.Response(201, json=answer)

    for module in (registration, train):
        monkeypatch.setattr(module, "call", call)
    out, base = tmp_path / "pong", ("--base", tiny_llama)
    text = run(
        *("train", out, *base, "--data", data, "--test", data, *FAST, "--register", "pong"),
    )
    assert "exact_match" in text
    assert "Scores on 8 held-out examples" in text
    assert "expected" not in text, "no column without values"
    assert "step 1 of 4: loss" in text, "where there is no terminal lines say how far it is"
    assert f"the losses are drawn in {out / 'training_run.png'}" in text
    assert f"{data}: JSON lines: 8 × messages" in text
    modes = {file.name: file.stat().st_mode for file in out.iterdir()}
    assert len(set(modes.values())) == 1, modes
    assert "default/pong@1 is ready" in text
    assert [name for _, (name, _) in sent["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    facts = json.loads(sent["data"]["metadata"])["training"]
    assert facts["base"] == "tiny-llama"
    assert facts["evaluation"]["num_examples"] == 8
    assert facts["evaluation"]["trained"].keys() == facts["evaluation"]["base"].keys()
    record = json.loads((out / "training_run.json").read_text())
    assert record["evaluation"] == facts["evaluation"]

    text = run("merge", out, tmp_path / "merged", *base, "--dtype", "float32")
    assert "logits differ by at most" in text
    text = run("combine", tmp_path / "both", out, f"{out}=0.5", *base)
    assert "away from the weighted sum" in text
    run("quantize", tmp_path / "nf4", "--method", "nf4", *base)
    assert (tmp_path / "nf4" / "model.safetensors.index.json").is_file()


def test_what_is_asked_wrongly_is_one_line_and_code_2(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = ("--base", tiny_llama), tmp_path / "out"
    assert "give --data or --recipe" in run("train", out, *base, code=2)
    arguments = ("train", out, *base, "--data", data)
    assert "method must be" in run(*arguments, "--method", "ia3", code=2)
    text = run(*arguments, "--method", "full", "--register", "x", code=2)
    assert "--register takes adapters" in text
    assert "no API key" in run(*arguments, "--register", "x", code=1)
    monkeypatch.setenv("LORAPLEX_API_KEY", "lpx-0-0")
    monkeypatch.setenv("LORAPLEX_URL", "http://127.0.0.1:1")
    assert "no answer from http://127.0.0.1:1" in run(*arguments, "--register", "x", code=1)
    assert "is not allowed" in run(*arguments, "--register", "Bad_Name!", code=2)
    assert "it isn't there" in run("train", out, *base, "--data", tmp_path / "none", code=2)
    assert "isn't a weight" in run("combine", out, data, f"{data}=x", *base, code=2)
    assert "isn't an adapter" in run("merge", data, out, *base, code=2)
    assert "--method must be w4a16 or nf4" in run("quantize", out, *base, "--method", "q", code=2)
    assert not out.exists()


def answering(monkeypatch: pytest.MonkeyPatch, tenant: str, *scopes: str) -> list[str]:
    """Have the server say whose key asks; the paths that are asked are noted."""
    asked: list[str] = []

    def call(method: str, path: str, **arguments: Any) -> httpx.Response:
        asked.append(path)
        return httpx.Response(200, json={"tenant": tenant, "scopes": list(scopes)})

    monkeypatch.setattr(train, "call", call)
    return asked


def test_a_foreign_tenant_is_refused_before_the_training(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", tmp_path / "out", "--base", tiny_llama, "--data", data)
    to_beta = ("--register", "x", "--tenant", "beta")
    asked = answering(monkeypatch, "acme", "adapters")
    text = run(*arguments, *to_beta, code=2)
    assert "this key belongs to the tenant 'acme'" in text
    assert asked == ["/admin/whoami"]
    asked = answering(monkeypatch, "default", "admin")
    too_short = ("--max-length", 1)
    assert "are longer than" in run(*arguments, *to_beta, *too_short, code=2)
    assert asked == ["/admin/whoami", "/admin/tenants/beta"]
    assert not (tmp_path / "out").exists()


def test_without_a_server_it_says_what_comes_next_and_keeps_its_template(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    arguments = ("--base", tiny_llama, "--data", data, *FAST, "--date", "2026-01-02")
    text = run("train", tmp_path / "Pong", *arguments, "--chat-template", template)
    assert f"loraplex adapters register pong {tmp_path / 'Pong'}" in text
    assert (tmp_path / "Pong" / "chat_template.jinja").read_text() == template.read_text()
    record = json.loads((tmp_path / "Pong" / "training_run.json").read_text())
    assert record["recipe"]["date"] == "2026-01-02"
    assert record["device"] == "cpu"
    missing = ("--chat-template", tmp_path / "none")
    text = run("train", tmp_path / "out", *arguments, *missing, code=2)
    assert "can't read the chat template" in text


def test_too_little_memory_is_refused_with_figures(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from psutil import virtual_memory

    little = virtual_memory()._replace(available=1 << 20)
    monkeypatch.setattr("psutil.virtual_memory", lambda: little)
    out = tmp_path / "out"
    arguments = ("train", out, "--base", tiny_llama, "--data", data, *FAST)
    text = run(*arguments, code=2)
    assert re.search(r"takes [2-9] MiB by the plan \(weights 0, .* activations [1-9]", text), text
    assert "and 1 are free" in text
    run(*arguments, "--force")
    assert out.is_dir()


def test_plan(tmp_path: Path) -> None:
    config = tmp_path / "llama.json"
    config.write_text(json.dumps(LLAMA31_8B))
    arguments = ("plan", "--base", config, "--batch-size", 1, "--gradient-checkpointing")
    hardware = ("--memory-gb", 24, "--tflops", 100, "--price", 2, "--examples", 5000)
    text = run(*arguments, *hardware)
    assert "choose: lora" in text
    assert "cost" in text
    facts = json.loads(run(*arguments, *hardware, "--json"))
    assert facts["num_parameters"] == 8_030_261_248
    assert facts["advice"]["method"] == "lora"
    assert [e["method"] for e in facts["training"]] == ["full", "lora", "qlora"]
    assert facts["serving"]["slot_bytes"] == 83_886_080
    assert facts["serving"]["kv_tokens_that_fit"]["bfloat16"] > 50_000
    assert "can't read" in run("plan", "--base", tmp_path / "none", code=2)
