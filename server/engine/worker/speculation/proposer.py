"""Proposes the tokens that the engine's next step checks. vLLM makes one `Proposer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.engine.worker.speculation import SALT
from server.engine.worker.speculation.lookup import guess
from server.engine.worker.speculation.recent_answers import Key, RecentAnswers
from server.engine.worker.speculation.replacing import replace_parts

MOST_ROWS = 32
"""New tokens and guesses of a step. With more rows a step takes longer, however few weights it
reads, so guesses pay less the more requests run."""

NO_PENALTY = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}

CHANGES_LOGITS = (
    *("logit_bias", "bad_words", "allowed_token_ids", "min_tokens", "thinking_token_budget"),
    "logprob_token_ids",
)
"""Parameters with which a token depends on more than the model. Guesses of such requests would have
to be checked in other ways."""

_GREEDY = 1e-5
"""vLLM takes the likeliest token if the temperature is below this."""


class Proposer:
    """Guesses tokens for the requests of each step, and remembers the answers that ended."""

    def __init__(self, config: Any) -> None:
        """Take vLLM's configuration. vLLM's model runner calls this while it is made."""
        self._num_guessed: int = config.speculative_config.num_speculative_tokens
        self._answers = RecentAnswers()
        self._running: dict[str, Any] = {}
        replace_parts()

    def load_model(self, model: Any) -> None:
        """Do nothing: there is no model that guesses."""

    def propose(self, runner: Any, sampled: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return guesses for each request of the step that has ended.

        `sampled`: the tokens that each request has got. Those whose prompts aren't through have
        none.
        """
        batch = runner.input_batch
        self._remember_ended(runner.requests)
        of_each = min(self._num_guessed, MOST_ROWS // max(1, len(sampled)) - 1)
        guesses: list[list[int]] = []
        for index, tokens in enumerate(sampled):
            request = runner.requests[batch.req_ids[index]]
            self._running[request.req_id] = request
            length = int(batch.num_tokens_no_spec[index])
            count = min(of_each, _wanted(request, runner.max_model_len - length)) if tokens else 0
            own = batch.token_ids_cpu[index, :length]
            guesses.append(self._guess(request, own, count))
        return guesses

    def _guess(self, request: Any, own: Any, count: int) -> list[int]:
        if count < 1:
            return []
        key = key_of(request)
        before = self._answers.of(key) if key else own[:0]
        return guess(np.concatenate((before, own)), count)

    def _remember_ended(self, requests: Mapping[str, Any]) -> None:
        for name in self._running.keys() - requests.keys():
            request = self._running.pop(name)
            if key := key_of(request):
                self._answers.add(key, request.prompt_token_ids or (), request.output_token_ids)


def _wanted(request: Any, left: int) -> int:
    """Return how many guesses a request can use. The step gives one token more.

    `left`: how many tokens its context has left.
    """
    parameters = request.sampling_params
    if not is_plain(parameters) or request.prompt_token_ids is None:
        return 0
    if parameters.max_tokens is not None:
        left = min(left, parameters.max_tokens - len(request.output_token_ids))
    return left - 1


def key_of(request: Any) -> Key | None:
    """Return under which key a request's answer is remembered, or None if it isn't."""
    salt = (getattr(request.sampling_params, "extra_args", None) or {}).get(SALT)
    if salt is None:
        return None
    return (request.lora_request.lora_int_id if request.lora_request else 0, salt)


def is_plain(parameters: Any) -> bool:
    """Say whether a request takes the token that the model, and its grammar, find likeliest."""
    return (
        parameters is not None
        and parameters.temperature < _GREEDY
        and parameters.logprobs != -1
        and not any(getattr(parameters, name, None) for name in CHANGES_LOGITS)
        and all(getattr(parameters, name) == value for name, value in NO_PENALTY.items())
    )
