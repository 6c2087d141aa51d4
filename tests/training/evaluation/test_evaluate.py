"""Evaluation of local models, of one behind HTTP, and the command that gates promotions."""

import math
from pathlib import Path

import pytest
import torch

from training.data.conversations import checked, exchange
from training.data.rendering import Renderer
from training.data.tokenization import Sample, tokenize_last_answer
from training.evaluation.candidates import Candidate, LocalModel, Prompt
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


class Fixed(Candidate):
    """Always gives these answers."""

    def __init__(self, *answers: str) -> None:
        self.given = list(answers)

    def answers(self, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
        return self.given

    def logprobs(self, samples: list[Sample]) -> list[list[float]]:
        return [[-0.5] for _ in samples]


def test_a_right_call_is_what_the_template_makes_of_it(tiny_llama: Path) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    assert evaluate(Fixed(call), tiny_llama, [WITH_CALL]).mean("exact_match") == 1
    assert evaluate(Fixed("f(x=1)"), tiny_llama, [WITH_CALL]).mean("exact_match") == 0


def test_reasoning_before_an_answer_does_not_count_unless_it_is_expected(tiny_llama: Path) -> None:
    thought = "<think>\n\n</think>\n\npong"
    assert evaluate(Fixed(thought), tiny_llama, DATA[:1]).mean("exact_match") == 1
    expected = [exchange("ping", thought)]
    assert evaluate(Fixed(thought), tiny_llama, expected).mean("exact_match") == 1
    assert evaluate(Fixed("pong"), tiny_llama, expected).mean("exact_match") == 0
