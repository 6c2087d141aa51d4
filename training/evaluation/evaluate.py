"""Scores a candidate on held-out conversations. All kinds of candidates get the same metrics."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.rollout.scores import Scores, score_answers
from training.data.conversations import Conversation
from training.data.rendering import DEFAULT_DATE, Renderer
from training.data.tokenization import Sample, tokenize_last_answer
from training.errors import DataError
from training.evaluation.candidates import Candidate, Prompt
from training.models.base_model import load_tokenizer

SPARE_TOKENS = 16
"""Tokens beyond the longest right answer, so that a longer, wrong answer isn't cut off."""

THINK_END = "</think>"
"""Ends the reasoning of most models that show it."""


def evaluate(
    candidate: Candidate,
    base: Path,
    conversations: list[Conversation],
    date: str = DEFAULT_DATE,
) -> Scores:
    """Score a candidate's greedy answers to the last turns, and its loss on the right answers.

    `base` provides the tokenizer, and the chat template if the candidate has none of its own.
    Answers may be a little longer than the longest right one.

    Raises:
        DataError: there is nothing to evaluate on, or the template can't render it.
        TrainingError: the candidate can't answer.
    """
    if not conversations:
        raise DataError("there is nothing to evaluate on")
    renderer = Renderer(load_tokenizer(base, candidate.chat_template), date)
    samples = [tokenize_last_answer(renderer, chat) for chat in conversations]
    expected = [
        _expected(renderer, chat, sample)
        for chat, sample in zip(conversations, samples, strict=True)
    ]
    ids = renderer.tokenizer(expected, add_special_tokens=False)["input_ids"]
    prompts = [_prompt(renderer, chat) for chat in conversations]
    given = candidate.answers(prompts, max(map(len, ids)) + SPARE_TOKENS)
    answers = [_without_reasoning(*pair) for pair in zip(given, expected, strict=True)]
    values = {**score_answers(answers, expected), "loss": candidate.losses(samples)}
    return Scores(values, [len(sample.answer_ids) for sample in samples])


def _without_reasoning(answer: str, expected: str) -> str:
    """Return an answer without its reasoning, unless the right answer has some.

    Some templates (Qwen 3's) put an empty one before answers that have none, so that is learned.
    """
    return answer if THINK_END in expected else answer.rpartition(THINK_END)[2].strip()


def _prompt(renderer: Renderer, conversation: Conversation) -> Prompt:
    last = len(conversation.messages) - 1
    ids, _ = renderer.encode(renderer.render(conversation, last, opens_answer=True))
    return Prompt(conversation.messages[:-1], conversation.tools, ids)


def _expected(renderer: Renderer, conversation: Conversation, sample: Sample) -> str:
    """Return the right answer's text. A tool call's text is what the template makes of the call."""
    if not conversation.answer.get("tool_calls"):
        return str(conversation.answer["content"]).strip()
    text: str = renderer.tokenizer.decode(sample.answer_ids, skip_special_tokens=True)
    return text.strip()
