"""Evaluation of local models, of one behind HTTP, and the command that gates promotions."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

from server.cli.main import app
from tests.training.export.test_merge import make_adapter, mark_trained_over
from training.data.conversations import checked, exchange
from training.data.reading import write_conversations
from training.data.rendering import Renderer
from training.data.tokenization import Sample, tokenize_last_answer
from training.errors import DataError, TrainingError
from training.evaluation import candidates
from training.evaluation.candidates import Candidate, LocalModel, Prompt, ServedModel
from training.evaluation.evaluate import evaluate
from training.models.base_model import load_model, load_tokenizer

DATA = [
    exchange("ping", "pong"),
    exchange("a much longer question, for padding", '{"answer": 1}'),
    exchange("tick", "tock tock"),
]

CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
WITH_CALL = checked(
    [
        {"role": "user", "content": "ping"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ],
    [{"name": "f"}],
)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_conversations(tmp_path / "data.jsonl", DATA)
    return tmp_path / "data.jsonl"


def test_losses_are_the_models_own(tiny_llama: Path) -> None:
    scores = evaluate(LocalModel(tiny_llama), tiny_llama, DATA)
    tokenizer, model = load_tokenizer(tiny_llama), load_model(tiny_llama)
    for chat, loss, count in zip(DATA, scores.values["loss"], scores.num_tokens, strict=True):
        sample = tokenize_last_answer(Renderer(tokenizer), chat)
        ids, labels = torch.tensor([sample.input_ids]), torch.tensor([sample.labels])
        assert loss == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=0.02)
        assert count == sum(label != -100 for label in sample.labels)
    summary = scores.summary()
    assert summary["perplexity"] == pytest.approx(math.exp(summary["loss"]), rel=0.001)
    assert summary["exact_match"] == 0


def test_an_adapter_is_evaluated_over_what_it_was_trained_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    over_original = evaluate(LocalModel(tiny_llama, adapter), tiny_llama, DATA)
    mark_trained_over(adapter, "nf4")
    as_trained = evaluate(LocalModel(tiny_llama, adapter), tiny_llama, DATA)
    over_nf4 = evaluate(LocalModel(tiny_llama, adapter, nf4=True), tiny_llama, DATA)
    forced = evaluate(LocalModel(tiny_llama, adapter, nf4=False), tiny_llama, DATA)
    assert as_trained == over_nf4 != over_original
    assert forced == over_original


class FakeServer:
    """Answers as vLLM does, with a local model's answers and log-probabilities."""

    def __init__(self, base: Path) -> None:
        self.local, self.model = LocalModel(base), load_model(base)
        self.tokenizer = load_tokenizer(base)
        self.models: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.models.add(body["model"])
        if request.headers.get("authorization") != "Bearer key":
            return httpx.Response(401, json={"error": {"message": "bad key"}})
        if request.url.path == "/v1/chat/completions":
            assert body["temperature"] == 0
            tokens = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            (text,) = self.local.answers([Prompt([], [], tokens)], body["max_tokens"])
            return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})
        ids = body["prompt"]
        if "prompt_logprobs" not in body:
            assert body["temperature"] == 0
            (text,) = self.local.answers([Prompt([], [], ids)], body["max_tokens"])
            return httpx.Response(200, json={"choices": [{"text": text}]})
        with torch.inference_mode():
            logprobs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        entries: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            entries.append({str(token): {"logprob": float(logprobs[place, token])}})
        return httpx.Response(200, json={"choices": [{"prompt_logprobs": entries}]})


def test_a_served_model_scores_as_a_local_one(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = FakeServer(tiny_llama), httpx.Client
    monkeypatch.setattr(
        candidates.httpx,
        "Client",
        lambda **options: client(transport=httpx.MockTransport(server), **options),
    )
    data = [*DATA, WITH_CALL]
    served = evaluate(ServedModel("http://server", "key", "acme/tiny@2"), tiny_llama, data)
    local = evaluate(LocalModel(tiny_llama), tiny_llama, data)
    assert server.models == {"acme/tiny@2"}
    assert served.num_tokens == local.num_tokens
    assert served.values["rouge_l"] == local.values["rouge_l"]
    assert served.values["loss"] == pytest.approx(local.values["loss"], rel=0.01)
    with pytest.raises(TrainingError, match="acme: bad key"):
        evaluate(ServedModel("http://server", "wrong", "acme"), tiny_llama, DATA)


class Fixed(Candidate):
    """Always gives these answers."""

    def __init__(self, *answers: str) -> None:
        self.given = list(answers)

    def answers(self, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
        return self.given

    def losses(self, samples: list[Sample]) -> list[float]:
        return [0.5] * len(samples)


def test_a_right_call_is_what_the_template_makes_of_it(tiny_llama: Path) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    assert evaluate(Fixed(call), tiny_llama, [WITH_CALL]).mean("exact_match") == 1
    assert evaluate(Fixed("f(x=1)"), tiny_llama, [WITH_CALL]).mean("exact_match") == 0


def test_an_adapter_brings_its_own_chat_template(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    as_base = evaluate(LocalModel(tiny_llama, adapter), tiny_llama, DATA)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}|"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    (adapter / "chat_template.jinja").write_text(template)
    candidate = LocalModel(tiny_llama, adapter)
    assert candidate.chat_template == template
    assert evaluate(candidate, tiny_llama, DATA).values["loss"] != as_base.values["loss"]


def test_the_command_compares_and_gates(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    options = ("--data", data, "--base", tiny_llama, "--metric", "loss")
    facts = json.loads(run(adapter, "base", *options, "--json"))
    assert facts["num_examples"] == 3
    assert facts["scores"].keys() == {str(adapter), "base"}
    gap = facts["first_minus"]["base"]
    assert gap["low"] <= gap["mean"] <= gap["high"]
    losses = {name: score["loss"] for name, score in facts["scores"].items()}
    assert gap["mean"] == pytest.approx(losses[str(adapter)] - losses["base"], abs=2e-4)

    better, worse = sorted(losses, key=losses.__getitem__)
    middle = sum(losses.values()) / 2
    run(better, *options, "--fail-under", middle, "--no-worse-than", better, "--margin", 0)
    run(worse, *options, "--no-worse-than", better, "--margin", 100)
    gates = ("--fail-under", middle, "--no-worse-than", better, "--margin", 0)
    text = run(worse, *options, *gates, code=1)
    assert "loss is" in text
    assert "can't be ruled out" in text


def test_what_cannot_be_evaluated(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    base = ("--base", tiny_llama)
    assert "give --data or --recipe" in run("base", *base, code=2)
    assert "is nothing to evaluate" in run(tmp_path, "--data", data, *base, code=2)
    assert "--over is trained" in run("base", "--data", data, *base, "--over", "x", code=2)
    assert "no json_valid" in run(
        *("base", "--data", data, *base, "--metric", "json_valid"), code=2
    )
    assert "--metric is one of" in run("base", "--data", data, *base, "--metric", "f1", code=2)
    with pytest.raises(DataError, match="nothing to evaluate on"):
        evaluate(LocalModel(tiny_llama), tiny_llama, [])
