"""Local models, and one behind HTTP."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.training.adapters import make_adapter, mark_trained_quantization
from training.data.conversations import checked, exchange
from training.errors import TrainingError
from training.evaluation.candidates import LocalModel, Prompt, ServedModel
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


def test_an_adapter_is_evaluated_over_what_it_was_trained_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    over_original = evaluate(LocalModel(tiny_llama, adapter), tiny_llama, DATA)
    mark_trained_quantization(adapter, "nf4")
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
        httpx,
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
