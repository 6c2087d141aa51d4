"""Guesses are accepted up to the first that the model doesn't say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from server.engine.worker.speculation.verifier import Verifier

VOCABULARY = 40


@pytest.fixture(autouse=True)
def vllms_operators() -> Iterator[None]:
    """As in the engine on CPU, torch compiles nothing."""
    current_platform.import_kernels()
    with torch.compiler.set_stance("force_eager"):
        yield


def given(guesses: list[list[int]]) -> SpecDecodeMetadata:
    """What vLLM says of a step with these guesses."""
    counts = np.array([len(each) for each in guesses])
    rows = np.cumsum(counts + 1)
    targets = [i for end, n in zip(rows, counts, strict=True) for i in range(end - n - 1, end - 1)]
    return SpecDecodeMetadata(
        draft_token_ids=torch.tensor([t for each in guesses for t in each], dtype=torch.int32),
        num_draft_tokens=counts.tolist(),
        cu_num_draft_tokens=torch.tensor(np.cumsum(counts)),
        cu_num_sampled_tokens=torch.tensor(rows),
        target_logits_indices=torch.tensor(targets, dtype=torch.int64),
        bonus_logits_indices=torch.tensor(rows - 1),
        logits_indices=torch.arange(int(rows[-1])),
    )


def sampling(num_requests: int, **options: Any) -> SamplingMetadata:
    plain: dict[str, Any] = {
        "temperature": None,
        "all_greedy": True,
        "all_random": False,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": torch.zeros(num_requests),
        "presence_penalties": torch.zeros(num_requests),
        "repetition_penalties": torch.ones(num_requests),
        "output_token_ids": [[] for _ in range(num_requests)],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
    }
    return SamplingMetadata(**{**plain, **options})


def saying(*tokens: int) -> torch.Tensor:
    """Logits of rows whose likeliest tokens are these."""
    torch.manual_seed(0)
    logits = torch.randn(len(tokens), VOCABULARY)
    for row, token in zip(logits, tokens, strict=True):
        row[token] = 9.0
    return logits.to(torch.bfloat16)


def parsed(output: Any) -> list[list[int]]:
    tokens: list[list[int]]
    tokens, _ = Verifier.parse_output(output.sampled_token_ids, VOCABULARY)
    return tokens


def test_accepted_guesses_and_the_token_behind_them() -> None:
    guesses = [[1, 2, 3], [], [4, 5], [6, 7]]
    logits = saying(1, 2, 3, 30, 31, 4, 33, 34, 20, 7, 35)
    output = Verifier(Sampler())(given(guesses), None, logits, sampling(4))
    assert parsed(output) == [[1, 2, 3, 30], [31], [4, 33], [20]]


def test_steps_without_accepted_guesses_are_the_samplers() -> None:
    verifier = Verifier(Sampler())
    assert parsed(verifier(given([[], []]), None, saying(8, 9), sampling(2))) == [[8], [9]]
    output = verifier(given([[1], []]), None, saying(8, 7, 9), sampling(2))
    assert output.sampled_token_ids.tolist() == [[8], [9]]


def test_ties_are_decided_as_without_guesses() -> None:
    logits = saying(5, 6)
    logits[:, [3, 5, 7]] = 20.0
    alone = Sampler()(logits[:1].clone(), sampling(1)).sampled_token_ids.tolist()[0]
    output = Verifier(Sampler())(given([alone]), None, logits, sampling(1))
    assert parsed(output) == [alone * 2]


def test_log_probabilities_are_those_of_the_tokens() -> None:
    guesses = [[1, 2], [], [4]]
    logits = saying(1, 20, 30, 31, 4, 33)
    expected = logits.log_softmax(-1, dtype=torch.float32)
    output = Verifier(Sampler())(given(guesses), None, logits, sampling(3, max_num_logprobs=2))
    tokens, lists = Verifier.parse_output(
        output.sampled_token_ids, VOCABULARY, logprobs_tensors=output.logprobs_tensors
    )
    assert tokens == [[1, 20], [31], [4, 33]]
    said = [lists.slice_request(i, len(row)) for i, row in enumerate(tokens)]
    rows = [[0, 1], [3], [4, 5]]
    for row, own, of_request in zip(rows, tokens, said, strict=True):
        for place, (logit_row, token) in enumerate(zip(row, own, strict=True)):
            assert of_request.logprob_token_ids[place][0] == token
            assert of_request.logprobs[place][0] == expected[logit_row, token]
            assert of_request.sampled_token_ranks[place] == 1


def test_all_log_probabilities_of_a_step_keep_guesses_out() -> None:
    output = Verifier(Sampler())(
        given([[1], []]), None, saying(1, 20, 31), sampling(2, max_num_logprobs=-1)
    )
    assert output.sampled_token_ids.tolist() == [[1], [31]]
    assert output.logprobs_tensors.logprobs.shape == (2, VOCABULARY)


def test_who_samples_gets_the_same_tokens_beside_guesses() -> None:
    """vLLM's own sampler gives other tokens, and on CPU of another temperature."""
    torch.manual_seed(1)
    flat = torch.randn(1, VOCABULARY).to(torch.bfloat16)

    def beside(guesses: list[int], greedy: torch.Tensor) -> int:
        options = sampling(
            2,
            all_greedy=False,
            temperature=torch.tensor([0.0, 0.7]),
            top_p=torch.tensor([1.0, 0.9]),
            generators={1: torch.Generator().manual_seed(7)},
        )
        step = given([guesses, []])
        output = Verifier(Sampler())(step, None, torch.cat([greedy, flat]), options)
        return parsed(output)[1][0]

    assert beside([1, 2], saying(1, 2, 3)) == beside([1, 9], saying(1, 2, 3))
    assert beside([1, 2], saying(1, 2, 3)) == beside([], saying(1))
