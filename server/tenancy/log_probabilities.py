"""Bounds the log-probabilities that one answer holds, because vLLM's handlers write them in one go.

For each token and each of its alternatives a handler makes an object, on the event loop, when the
answer is complete. While it does, no other request gets a token.
"""

from __future__ import annotations

from typing import Any

from server.errors import InvalidRequest
from server.tenancy.demand import limit_answer_to

MAX_LOG_PROBABILITIES = 32_768
"""In an answer that is sent in one piece. They take about a third of a second."""


def limit_log_probabilities(request: Any, choices: int) -> None:
    """Keep the answers of a request, all choices together, to as many log-probabilities as fit.

    A request that doesn't say how long its answers may be gets as much as fits. A stream sends the
    log-probabilities of each token by themselves, so it isn't bounded.

    Raises:
        InvalidRequest: it asks for longer answers.
    """
    per_token = _per_token(request)
    if not per_token or _is_sent_in_pieces(request):
        return
    if per_token > MAX_LOG_PROBABILITIES:
        return  # vLLM refuses so many alternatives of one token, and names their field
    most = MAX_LOG_PROBABILITIES // (per_token * choices)

    def message(name: str) -> str:
        return (
            f"{name} may be at most {most} for {choices} answers with {per_token} "
            f"log-probabilities a token, because one answer holds at most {MAX_LOG_PROBABILITIES}: "
            "ask for fewer, or stream the answer"
        )

    if not most:
        raise InvalidRequest(message("max_tokens"), param="n")
    limit_answer_to(request, most, message)


def prompt_field(request: Any) -> str:
    """Return the name of the field that asks for the log-probabilities of a prompt."""
    given = vars(request)
    if given.get("prompt_logprobs") is not None or not given.get("echo"):
        return "prompt_logprobs"
    return "top_logprobs" if "top_logprobs" in given else "logprobs"


class PromptLogProbabilities:
    """How many log-probabilities the prompts of one request may still ask for."""

    def __init__(self, field: str = "prompt_logprobs") -> None:
        """`field` of the request asks for them."""
        self._field, self._left = field, MAX_LOG_PROBABILITIES

    def take(self, num_tokens: int, alternatives: int) -> None:
        """Count a prompt of so many tokens, each with its own log-probability and alternatives.

        Raises:
            InvalidRequest: all prompts of the request together have too many.
        """
        self._left -= num_tokens * (alternatives + 1)
        if self._left < 0:
            raise InvalidRequest(
                f"{self._field}: the prompts of a request may have {MAX_LOG_PROBABILITIES} "
                f"log-probabilities together, and this one asks for {alternatives + 1} a token: "
                "ask for fewer, or send shorter prompts",
                param=self._field,
            )


def _per_token(request: Any) -> int:
    """Return how many log-probabilities each token of an answer has: its own and alternatives."""
    given = vars(request)
    asked = given.get("logprobs")
    if "include" in given:  # the Responses API
        asked = request.is_include_output_logprobs()
    if asked is None or asked is False:
        return 0
    if ids := given.get("logprob_token_ids"):
        return len(ids) + 1
    return int((given.get("top_logprobs") or 0) if asked is True else asked) + 1


def _is_sent_in_pieces(request: Any) -> bool:
    """Return whether the answer is a stream whose last event doesn't hold everything again."""
    return bool(vars(request).get("stream")) and "include" not in vars(request)
