"""What a candidate is worth on held-out conversations: every metric, the same for all kinds."""

from __future__ import annotations

from pathlib import Path

from training.data.conversations import IGNORED_LABEL, Conversation, tokenize
from training.errors import DataError
from training.evaluation.candidates import Candidate
from training.evaluation.scores import Scores, score_answers
from training.models.base_model import load_tokenizer

SPARE_TOKENS = 16
"""Room beyond the longest right answer: a wrong one may be longer, and must not look cut off."""


def evaluate(candidate: Candidate, base: Path, conversations: list[Conversation]) -> Scores:
    """Score a candidate's greedy answers to the last turns, and how likely it finds the right ones.

    `base` gives the tokenizer and the chat template. Answers may be as long as the longest right
    one and a little longer.

    Raises:
        DataError: there is nothing to evaluate on.
        TrainingError: the candidate can't answer.
    """
    if not conversations:
        raise DataError("there is nothing to evaluate on")
    expected = [conversation[-1]["content"].strip() for conversation in conversations]
    tokenizer = load_tokenizer(base)
    longest = max(len(ids) for ids in tokenizer(expected, add_special_tokens=False)["input_ids"])
    samples = [tokenize(tokenizer, chat, last_only=True) for chat in conversations]
    prompts = [conversation[:-1] for conversation in conversations]
    answers = candidate.answers(prompts, longest + SPARE_TOKENS)
    lengths = [sum(label != IGNORED_LABEL for label in sample.labels) for sample in samples]
    values = {**score_answers(answers, expected), "loss": candidate.losses(samples)}
    return Scores(values, lengths)
