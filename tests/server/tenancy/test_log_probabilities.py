"""One answer holds a bounded number of log-probabilities, of its tokens and of its prompts."""

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from server.errors import InvalidRequest
from server.tenancy.log_probabilities import (
    MAX_LOG_PROBABILITIES,
    PromptLogProbabilities,
    limit_log_probabilities,
    prompt_field,
)

MESSAGES = [{"role": "user", "content": "Hello"}]


def completion(**more: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "base", "prompt": "Hello", **more})


def chat(**more: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "base", "messages": MESSAGES, **more})


def response(**more: object) -> ResponsesRequest:
    return ResponsesRequest.model_validate({"model": "base", "input": "Hello", **more})


@pytest.mark.parametrize(
    ("request_", "choices", "field"),
    [
        (completion(n=16, max_tokens=98, logprobs=20), 16, "max_tokens"),
        (completion(max_tokens=40_000, logprobs=1), 1, "max_tokens"),
        (chat(max_completion_tokens=4000, logprobs=True, top_logprobs=20), 1, "max_completion"),
        (chat(max_tokens=40_000, logprobs=True, logprob_token_ids=[1, 2]), 1, "max_tokens"),
        (
            response(
                max_output_tokens=4000,
                top_logprobs=20,
                include=["message.output_text.logprobs"],
                stream=True,
            ),
            1,
            "max_output_tokens",
        ),
    ],
)
def test_longer_answers_are_refused(request_: object, choices: int, field: str) -> None:
    with pytest.raises(InvalidRequest, match="stream the answer") as caught:
        limit_log_probabilities(request_, choices)
    assert (caught.value.param or "").startswith(field)


@pytest.mark.parametrize(
    "request_",
    [
        completion(n=16, max_tokens=97, logprobs=20),
        completion(max_tokens=100_000),
        chat(max_tokens=100_000, logprobs=False),
        chat(max_tokens=100_000, logprobs=True, top_logprobs=20, stream=True),
        response(max_output_tokens=100_000),
        completion(max_tokens=5, logprobs=10**9),
    ],
)
def test_others_are_left_as_they_are(request_: object) -> None:
    before = vars(request_).copy()
    limit_log_probabilities(request_, 16)
    assert vars(request_) == before


def test_answers_of_no_said_length_get_as_much_as_fits() -> None:
    request = chat(logprobs=True, top_logprobs=20)
    limit_log_probabilities(request, 2)
    assert request.max_completion_tokens == MAX_LOG_PROBABILITIES // (21 * 2)


def test_too_many_choices_for_any_answer() -> None:
    with pytest.raises(InvalidRequest) as caught:
        limit_log_probabilities(completion(max_tokens=1, logprobs=20), 10_000)
    assert caught.value.param == "n"


def test_the_prompts_of_a_request_share_the_bound() -> None:
    prompts = PromptLogProbabilities("logprobs")
    for _ in range(2):
        prompts.take(MAX_LOG_PROBABILITIES // 4, 1)
    with pytest.raises(InvalidRequest, match="shorter prompts") as caught:
        prompts.take(1, 0)
    assert caught.value.param == "logprobs"


def test_the_field_that_asked_is_named() -> None:
    assert prompt_field(completion(prompt_logprobs=1)) == "prompt_logprobs"
    assert prompt_field(completion(echo=True, logprobs=1)) == "logprobs"
    assert prompt_field(chat(echo=True, logprobs=True, top_logprobs=1)) == "top_logprobs"
