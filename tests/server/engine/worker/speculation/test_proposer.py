"""Which requests get guesses, from which tokens, and how many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.v1.worker import gpu_model_runner

from server.engine.worker.speculation import SALT, replacing
from server.engine.worker.speculation.proposer import MOST_ROWS, Proposer, is_plain

GUESSES, MAX_TOKENS = 3, 64
SAID = [10, 11, 12, 13, 14, 15]


@pytest.fixture
def proposer(monkeypatch: pytest.MonkeyPatch) -> Proposer:
    monkeypatch.setattr("server.engine.worker.speculation.proposer.replace_parts", lambda: None)
    speculation = SimpleNamespace(num_speculative_tokens=GUESSES)
    return Proposer(SimpleNamespace(speculative_config=speculation))


class Runner:
    """vLLM's model runner, as far as it is asked."""

    max_model_len = MAX_TOKENS

    def __init__(self, *requests: Any) -> None:
        self.requests = {request.req_id: request for request in requests}
        lengths = [len(each.prompt_token_ids) + len(each.output_token_ids) for each in requests]
        ids = np.zeros((len(requests), MAX_TOKENS), np.int32)
        for row, each in zip(ids, requests, strict=True):
            tokens = each.prompt_token_ids + each.output_token_ids
            row[: len(tokens)] = tokens
        self.input_batch = SimpleNamespace(
            req_ids=list(self.requests), num_tokens_no_spec=np.array(lengths), token_ids_cpu=ids
        )


def request(
    prompt: list[int],
    answer: list[int],
    name: str = "a",
    salt: str | None = "acme",
    lora: int = 0,
    **parameters: Any,
) -> Any:
    extra = {SALT: salt} if salt else None
    given = {"temperature": 0.0, "max_tokens": 50, "extra_args": extra, **parameters}
    return SimpleNamespace(
        req_id=name,
        prompt_token_ids=prompt,
        output_token_ids=answer,
        sampling_params=SamplingParams(**given),
        lora_request=SimpleNamespace(lora_int_id=lora) if lora else None,
    )


def proposed(proposer: Proposer, *requests: Any) -> list[list[int]]:
    return proposer.propose(Runner(*requests), [each.output_token_ids[-1:] for each in requests])


def test_from_the_requests_own_tokens(proposer: Proposer) -> None:
    assert proposed(proposer, request([*SAID, 10], [11])) == [[12, 13, 14]]
    assert proposed(proposer, request([*SAID, 10], [11], salt=None)) == [[12, 13, 14]]


def test_from_recent_answers_of_the_same_adapter_and_salt(proposer: Proposer) -> None:
    proposed(proposer, request([1, 2], SAID, "first", lora=1))
    assert proposed(proposer, request([5, 6, 1, 2], [10], "second", lora=1)) == [[11, 12, 13]]
    proposed(proposer)
    for other in ({"lora": 2}, {"lora": 0}, {"lora": 1, "salt": "other"}, {"salt": None}):
        asked: dict[str, Any] = {**other}
        assert proposed(proposer, request([5, 6, 1, 2], [10], "third", **asked)) == [[]]


def test_an_answer_is_remembered_when_it_has_ended(proposer: Proposer) -> None:
    first = request([1, 2], SAID, "first")
    second = request([1, 2], [10], "second")
    assert proposed(proposer, first, second) == [[], []]
    assert proposed(proposer, second) == [[11, 12, 13]]


def test_no_more_than_a_request_can_use(proposer: Proposer) -> None:
    for most, guessed in ((1, []), (2, []), (3, [12]), (4, [12, 13])):
        asked = request([*SAID, 10], [11], max_tokens=most)
        assert proposed(proposer, asked) == [guessed], most
    filler = list(range(100, 100 + MAX_TOKENS - len(SAID) - 4))
    assert proposed(proposer, request([*SAID, *filler, 10], [11])) == [[12]]


def test_a_prompt_that_is_not_through_gets_none(proposer: Proposer) -> None:
    assert proposer.propose(Runner(request([*SAID, 10, 11], [])), [[]]) == [[]]


def test_many_requests_get_fewer(proposer: Proposer) -> None:
    def each_gets(num_requests: int) -> int:
        asked = [request([*SAID, 10], [11], str(i)) for i in range(num_requests)]
        (number,) = {len(guesses) for guesses in proposed(proposer, *asked)}
        return number

    numbers = [each_gets(count) for count in (1, 8, 10, 16, 17)]
    assert numbers == [3, 3, 2, 1, 0]
    assert MOST_ROWS == 32


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.5},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
        {"logit_bias": {3: 1.0}},
        {"bad_words": ["x"]},
        {"allowed_token_ids": [1, 2]},
        {"min_tokens": 2},
        {"logprobs": -1},
    ],
)
def test_requests_whose_tokens_depend_on_more_get_none(
    proposer: Proposer, parameters: dict[str, Any]
) -> None:
    assert proposed(proposer, request([*SAID, 10], [11], **parameters)) == [[]]


def test_log_probabilities_and_grammars_are_no_obstacle() -> None:
    assert is_plain(SamplingParams(temperature=0, logprobs=5, stop=["x"], ignore_eos=True))
    assert not is_plain(None), "pooling"


def test_what_is_replaced_in_vllms_model_runner() -> None:
    """The proposer is made first, and what is replaced is called as it is here."""
    import inspect

    runner = gpu_model_runner.GPUModelRunner
    source = inspect.getsource(runner.__init__)
    made = source.index("create_custom_proposer(")
    assert made < source.index("self.rejection_sampler = RejectionSampler(")
    assert made < source.index("logitsprocs=build_logitsprocs(")
    parameters = inspect.signature(runner.propose_draft_token_ids).parameters
    assert list(parameters)[1:3] == ["scheduler_output", "sampled_token_ids"]
    assert len(inspect.signature(runner._input_fits_in_drafter).parameters) == 2
    assert replacing._always(None, None)
