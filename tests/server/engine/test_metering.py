"""Tokens are counted where vLLM's handlers call the engine."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.metrics.stats import RequestStateStats

from server.engine.metering import meter
from server.metering import METER, Meter
from server.turns import Turns

PROMPT = {"prompt_token_ids": [1, 2, 3]}


class Client:
    """Gives two choices of five tokens each, in the way that the parameters ask for."""

    def __init__(self) -> None:
        self.closed = 0

    async def generate(
        self, _prompt: Any, sampling: SamplingParams, _request_id: str
    ) -> AsyncIterator[Any]:
        try:
            for number in range(1, 6):
                if sampling.output_kind == RequestOutputKind.FINAL_ONLY and number < 5:
                    continue
                new = sampling.output_kind == RequestOutputKind.DELTA
                token_ids = [7] if new else [7] * number
                yield SimpleNamespace(
                    outputs=[SimpleNamespace(index=i, token_ids=token_ids) for i in range(2)],
                    metrics=RequestStateStats(first_token_ts=10.0, last_token_ts=10.0 + number / 4),
                )
        finally:
            self.closed += 1


@pytest.mark.parametrize("kind", list(RequestOutputKind))
async def test_every_kind_of_output(kind: RequestOutputKind) -> None:
    client: Any = Client()
    meter(client)
    METER.set(current := Meter(Turns(4), "acme"))
    sampling = SamplingParams(output_kind=kind)
    for number in (1, 2):
        assert [output async for output in client.generate(PROMPT, sampling, "id")]
        assert (current.input_tokens, current.output_tokens) == (3 * number, 10 * number)


async def test_a_client_that_goes_away_is_charged_so_far_and_ends_the_request() -> None:
    client: Any = Client()
    meter(client)
    METER.set(current := Meter(Turns(4), "acme"))
    outputs = client.generate(PROMPT, SamplingParams(output_kind=RequestOutputKind.DELTA), "id")
    await anext(outputs)
    await outputs.aclose()
    assert (current.tokens, client.closed) == (3 + 2, 1)


async def test_the_servers_own_requests_are_not_counted() -> None:
    client: Any = Client()
    meter(client)
    METER.set(None)
    sampling = SamplingParams(output_kind=RequestOutputKind.DELTA)
    assert [output async for output in client.generate(PROMPT, sampling, "id")]
